// Objects of the API in, what a row shows out. Nothing here touches the page.

const UNITS = { n: 1e-9, u: 1e-6, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, T: 1e12, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40 };

export function quantity(text) {
  const [, number, unit] = /^([\d.]+(?:e\d+)?)([a-zA-Z]*)$/.exec(text ?? "") ?? [, "0", ""];
  return Number(number) * (UNITS[unit] ?? 1);
}

export function bytes(count) {
  if (count >= 2 ** 30) return `${(count / 2 ** 30).toFixed(1)} GiB`;
  if (count >= 2 ** 20) return `${Math.round(count / 2 ** 20)} MiB`;
  return `${Math.round(count / 2 ** 10)} KiB`;
}

export function age(time, now = Date.now()) {
  const seconds = Math.max(0, (now - Date.parse(time)) / 1000);
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 120) return `${Math.floor(seconds)}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86400)}d`;
}

const condition = (object, type) => object.status?.conditions?.find((one) => one.type === type);

export function node(object) {
  const ready = condition(object, "Ready")?.status === "True";
  const unschedulable = object.spec?.unschedulable ? ",SchedulingDisabled" : "";
  return { text: (ready ? "Ready" : "NotReady") + unschedulable, tone: ready ? "good" : "bad" };
}

// As `kubectl get pods` says it.
export function pod(object) {
  const { status = {}, metadata } = object;
  let text = status.reason ?? status.phase ?? "Unknown";
  for (const container of [...(status.initContainerStatuses ?? []), ...(status.containerStatuses ?? [])]) {
    const { waiting, terminated } = container.state ?? {};
    if (waiting?.reason && waiting.reason !== "PodInitializing") text = waiting.reason;
    else if (terminated && (terminated.exitCode !== 0 || status.phase === "Succeeded")) text = terminated.reason ?? `ExitCode:${terminated.exitCode}`;
  }
  if (metadata.deletionTimestamp) text = "Terminating";
  const containers = status.containerStatuses ?? [];
  const ready = containers.filter((one) => one.ready).length;
  const count = object.spec?.containers?.length ?? 0;
  const tone = text === "Running" && ready === count ? "good" : ["Completed", "Succeeded"].includes(text) ? "quiet" : /Error|Back|Fail|OOM|Err|Evicted/.test(text) ? "bad" : "wait";
  return { text, tone, ready, count, restarts: containers.reduce((sum, one) => sum + (one.restartCount ?? 0), 0) };
}

// What a workload wants and has, whatever its kind.
export function workload(kind, object) {
  const { spec = {}, status = {} } = object;
  switch (kind) {
    case "DaemonSet":
      return { have: status.numberReady ?? 0, want: status.desiredNumberScheduled ?? 0 };
    case "Job":
      return { have: status.succeeded ?? 0, want: spec.completions ?? 1, failed: condition(object, "Failed")?.status === "True" };
    case "CronJob":
      return { have: status.active?.length ?? 0, want: 0, note: spec.schedule };
    case "KnativeService":
      return { ready: condition(object, "Ready")?.status === "True", note: status.url };
    default:
      return { have: status.readyReplicas ?? 0, want: spec.replicas ?? 1 };
  }
}

export function event(object) {
  const last = object.series?.lastObservedTime ?? object.lastTimestamp ?? object.eventTime ?? object.metadata.creationTimestamp;
  return { last, about: `${(object.involvedObject?.kind ?? "").toLowerCase()}/${object.involvedObject?.name ?? ""}`, bad: object.type === "Warning" };
}
