// The Kubernetes API as whoever signed in: lists, watches that go on, and logs.

const PAUSE = 2000; // ms between two tries
const KEY = "coracle-token"; // kept until the tab is closed

export class Refused extends Error {}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

export async function call(path, options = {}) {
  const response = await fetch(path, {
    ...options,
    credentials: "omit",
    headers: { Authorization: `Bearer ${token.get()}`, Accept: "application/json", ...options.headers },
  });
  if (response.status === 401) throw new Refused("The token is not valid.");
  if (!response.ok) {
    const status = await response.json().catch(() => ({}));
    throw Object.assign(new Error(status.message ?? response.statusText), { code: response.status });
  }
  return response;
}

export const get = async (path) => (await call(path)).json();

export const post = async (path, body) =>
  (await call(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })).json();

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}

const pause = (signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, PAUSE);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

// Keeps `objects` (by uid) as the server's list of a path is, and calls `changed` after each change.
export async function follow(path, objects, changed, signal) {
  let version;
  while (!signal.aborted) {
    try {
      if (version === undefined) {
        const list = await get(path);
        objects.clear();
        for (const object of list.items ?? []) objects.set(object.metadata.uid, object);
        version = list.metadata.resourceVersion;
        changed();
      }
      const query = `?watch=true&allowWatchBookmarks=true&resourceVersion=${version}`;
      for await (const line of lines(await call(path + query, { signal }))) {
        const { type, object } = JSON.parse(line);
        if (type === "ERROR") {
          version = undefined;
          break;
        }
        version = object.metadata.resourceVersion;
        if (type === "BOOKMARK") continue;
        if (type === "DELETED") objects.delete(object.metadata.uid);
        else objects.set(object.metadata.uid, object);
        changed();
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) throw error;
      if (error.code === 403 || error.code === 404) {
        objects.clear();
        changed();
        await pause(signal);
      }
      if (error.code === 410) version = undefined;
      await pause(signal);
    }
  }
}

// The lines of a container's log, the new ones as they come.
export async function* logs(namespace, pod, container, signal) {
  const query = new URLSearchParams({ container, follow: "true", tailLines: "500" });
  yield* lines(await call(`/api/v1/namespaces/${namespace}/pods/${pod}/log?${query}`, { signal }));
}
