// The page: what is followed, and how it is put on the screen.

import { Refused, follow, get, logs, post, token } from "./api.js";
import { age, bytes, event, node, pod, quantity, workload } from "./describe.js";
import { table, tiles } from "./view.js";

const byId = (id) => document.getElementById(id);
const MOST_ROWS = 500; // of a table; the rest is counted
const MOST_LINES = 5000; // of a log
const METRICS = 15000; // ms between two readings

const WORKLOADS = [
  ["Deployment", "/apis/apps/v1/deployments"],
  ["StatefulSet", "/apis/apps/v1/statefulsets"],
  ["DaemonSet", "/apis/apps/v1/daemonsets"],
  ["Job", "/apis/batch/v1/jobs"],
  ["CronJob", "/apis/batch/v1/cronjobs"],
  ["KnativeService", "/apis/serving.knative.dev/v1/services"],
];
const CORE = { nodes: "/api/v1/nodes", namespaces: "/api/v1/namespaces", pods: "/api/v1/pods", events: "/api/v1/events" };

const cluster = { usage: new Map() };
for (const name of [...Object.keys(CORE), ...WORKLOADS.map(([kind]) => kind)]) cluster[name] = new Map();

let session; // aborts everything that the signed-in user started

async function start() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    token.set(given);
    history.replaceState(null, "", location.pathname);
  }
  byId("enter").addEventListener("close", () => enter(byId("token").value.trim()));
  byId("enter").addEventListener("cancel", (cancel) => cancel.preventDefault());
  byId("leave").addEventListener("click", () => leave(""));
  byId("logs-close").addEventListener("click", closeLogs);
  byId("namespace").addEventListener("change", draw);
  byId("filter").addEventListener("input", draw);
  setInterval(draw, 5000); // ages
  if (token.get()) await enter(token.get());
  else ask("");
}

function ask(why) {
  byId("refused").textContent = why;
  byId("token").value = "";
  if (!byId("enter").open) byId("enter").showModal();
}

function leave(why) {
  session?.abort();
  token.clear();
  for (const objects of Object.values(cluster)) objects.clear();
  closeLogs();
  byId("user").textContent = "";
  byId("leave").hidden = true;
  draw();
  ask(why);
}

async function enter(value) {
  token.set(value);
  try {
    const review = { apiVersion: "authentication.k8s.io/v1", kind: "SelfSubjectReview" };
    const [who, version] = await Promise.all([post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review), get("/version")]);
    byId("user").textContent = who.status.userInfo.username;
    byId("version").textContent = version.gitVersion;
    byId("leave").hidden = false;
  } catch (error) {
    leave(error.message);
    return;
  }
  session = new AbortController();
  const { signal } = session;
  const paths = [...Object.entries(CORE), ...WORKLOADS];
  for (const [name, path] of paths) {
    follow(path, cluster[name], schedule, signal).catch((error) => error instanceof Refused && leave(error.message));
  }
  measure(signal);
}

// Reads what nodes use, where metrics.k8s.io is served.
async function measure(signal) {
  while (!signal.aborted) {
    const list = await get("/apis/metrics.k8s.io/v1beta1/nodes").catch(() => ({ items: [] }));
    cluster.usage.clear();
    for (const item of list.items) cluster.usage.set(item.metadata.name, item.usage);
    schedule();
    await new Promise((resolve) => setTimeout(resolve, METRICS));
  }
}

let scheduled = false;
function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(draw);
}

function shown(objects) {
  const namespace = byId("namespace").value;
  const filter = byId("filter").value.toLowerCase();
  return [...objects.values()]
    .filter(({ metadata }) => (!namespace || !metadata.namespace || metadata.namespace === namespace) && metadata.name.includes(filter))
    .sort((a, b) => (a.metadata.namespace ?? "").localeCompare(b.metadata.namespace ?? "") || a.metadata.name.localeCompare(b.metadata.name));
}

function draw() {
  scheduled = false;
  drawNamespaces();
  drawTiles();
  drawNodes();
  drawWorkloads();
  drawPods();
  drawEvents();
}

function drawNamespaces() {
  const select = byId("namespace");
  const names = ["", ...[...cluster.namespaces.values()].map(({ metadata }) => metadata.name).sort()];
  if (names.length === select.options.length && names.every((name, at) => select.options[at].value === name)) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => new Option(name || "all", name)));
  select.value = names.includes(chosen) ? chosen : "";
}

function drawTiles() {
  const nodes = [...cluster.nodes.values()];
  const pods = shown(cluster.pods).map(pod);
  const ready = nodes.filter((one) => node(one).tone === "good").length;
  const running = pods.filter(({ tone }) => tone === "good").length;
  const failing = pods.filter(({ tone }) => tone === "bad").length;
  const workloads = WORKLOADS.reduce((sum, [kind]) => sum + shown(cluster[kind]).length, 0);
  tiles(byId("tiles"), [
    { name: "nodes ready", value: `${ready}/${nodes.length}`, tone: ready === nodes.length ? "good" : "bad" },
    { name: "workloads", value: workloads },
    { name: "pods ready", value: `${running}/${pods.length}` },
    { name: "pods failing", value: failing, tone: failing ? "bad" : "" },
    { name: "namespaces", value: cluster.namespaces.size },
  ]);
}

function drawNodes() {
  const counts = new Map();
  for (const { spec } of cluster.pods.values()) counts.set(spec.nodeName, (counts.get(spec.nodeName) ?? 0) + 1);
  const rows = [...cluster.nodes.values()].map((object) => {
    const { name } = object.metadata;
    const usage = cluster.usage.get(name);
    const capacity = object.status?.capacity ?? {};
    const cpu = usage && { text: `${quantity(usage.cpu).toFixed(2)} cores`, bar: quantity(usage.cpu) / quantity(capacity.cpu) };
    const memory = usage && { text: bytes(quantity(usage.memory)), bar: quantity(usage.memory) / quantity(capacity.memory) };
    return { key: name, cells: [name, node(object), cpu ?? "", memory ?? "", { text: counts.get(name) ?? 0, number: true }, age(object.metadata.creationTimestamp)] };
  });
  table(byId("nodes"), ["Name", "Status", "CPU", "Memory", "Pods", "Age"], rows);
}

function drawWorkloads() {
  const rows = WORKLOADS.flatMap(([kind, path]) =>
    shown(cluster[kind]).map((object) => {
      const { have, want, ready, failed, note } = workload(kind, object);
      const whole = ready ?? have >= want;
      const state = ready === undefined ? `${have}/${want}` : ready ? "Ready" : "Not ready";
      const { namespace, name, creationTimestamp } = object.metadata;
      const label = kind === "KnativeService" ? "Service (Knative)" : kind;
      return { key: `${path}/${namespace}/${name}`, cells: [namespace, name, label, { text: failed ? "Failed" : state, tone: failed ? "bad" : whole ? "good" : "wait", number: true }, note ?? "", age(creationTimestamp)] };
    }));
  table(byId("workloads"), ["Namespace", "Name", "Kind", "Ready", "", "Age"], rows.slice(0, MOST_ROWS));
}

function drawPods() {
  const all = shown(cluster.pods);
  const rows = all.slice(0, MOST_ROWS).map((object) => {
    const { metadata, spec, status } = object;
    const state = pod(object);
    return {
      key: `${metadata.namespace}/${metadata.name}`,
      pick: () => openLogs(object),
      cells: [metadata.namespace, metadata.name, { text: `${state.ready}/${state.count}`, number: true }, state, { text: state.restarts, number: true }, status?.podIP ?? "", spec.nodeName ?? "", age(metadata.creationTimestamp)],
    };
  });
  if (all.length > rows.length) rows.push({ key: "more", cells: ["", `and ${all.length - rows.length} more`] });
  table(byId("pods"), ["Namespace", "Name", "Ready", "Status", "Restarts", "Address", "Node", "Age"], rows);
}

function drawEvents() {
  const rows = shown(cluster.events)
    .map((object) => ({ object, ...event(object) }))
    .sort((a, b) => Date.parse(b.last) - Date.parse(a.last))
    .slice(0, 200)
    .map(({ object, last, about, bad }) => ({
      key: object.metadata.uid,
      cells: [age(last), { text: object.reason, tone: bad ? "bad" : "" }, about, { text: object.message ?? object.note ?? "", wide: true }],
    }));
  table(byId("events"), ["Last", "Reason", "Object", "Message"], rows);
}

let reading;
function closeLogs() {
  reading?.abort();
  byId("logs").hidden = true;
}

function openLogs(object) {
  const { namespace, name } = object.metadata;
  const containers = [...(object.spec.initContainers ?? []), ...object.spec.containers].map((one) => one.name);
  byId("logs-of").textContent = `${namespace}/${name}`;
  byId("container").replaceChildren(...containers.map((one) => new Option(one, one)));
  byId("container").value = object.spec.containers[0].name;
  byId("container").onchange = () => readLogs(namespace, name, byId("container").value);
  byId("logs").hidden = false;
  readLogs(namespace, name, byId("container").value);
}

async function readLogs(namespace, name, container) {
  reading?.abort();
  reading = new AbortController();
  const { signal } = reading;
  const target = byId("lines");
  target.replaceChildren();
  const write = (line) => {
    const atEnd = target.scrollHeight - target.scrollTop - target.clientHeight < 40;
    target.append(`${line}\n`);
    while (target.childNodes.length > MOST_LINES) target.firstChild.remove();
    if (atEnd) target.scrollTop = target.scrollHeight;
  };
  try {
    for await (const line of logs(namespace, name, container, signal)) write(line);
    write("(the log has ended)");
  } catch (error) {
    if (!signal.aborted) write(`(${error.message})`);
  }
}

start();
