//! Bad input gets a status, a reason and words that kubectl users know. Profile: loopback.
//!
//! Three tables: what kubectl refuses or is refused, what the API answers to a call, and what becomes of pods that cannot run.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, curl, eventually, succeed};
use serde_json::Value;

/// Manifest; what `kubectl apply` puts in its parentheses (empty: it never asks the server); words in its answer.
const REFUSED: [(&str, &str, &str); 9] = [
    ("apiVersion: v1\nkind: ConfigMap\nmetadata: [", "", "error converting YAML to JSON"),
    ("{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\":", "", "error"),
    (
        "apiVersion: v1\nkind: Nonsense\nmetadata:\n  name: x\n",
        "",
        "no matches for kind \"Nonsense\" in version \"v1\"",
    ),
    (
        "apiVersion: nope.example.com/v1\nkind: Nonsense\nmetadata:\n  name: x\n",
        "",
        "no matches for kind \"Nonsense\" in version \"nope.example.com/v1\"",
    ),
    ("kind: Service\nmetadata:\n  name: x\n", "", "apiVersion not set"),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\nspec:\n  types: NodePort\n  ports:\n  - port: 80\n",
        "BadRequest",
        "strict decoding error: unknown field \"spec.types\"",
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\ndata:\n  a: 1\n",
        "BadRequest",
        "cannot unmarshal number into Go struct field ConfigMap.data of type string",
    ),
    (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\n  namespace: nowhere\n",
        "NotFound",
        "namespaces \"nowhere\" not found",
    ),
    (
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Not_A_Name\nspec:\n  containers:\n  - name: a\n    image: b\n",
        "",
        "metadata.name: Invalid value: \"Not_A_Name\"",
    ),
];

/// Row: bad input: malformed, unknown and wrong manifests are refused in known words
#[test]
fn manifests_are_refused_in_known_words() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    for (manifest, reason, words) in REFUSED {
        let file = cluster.file("bad.yaml", manifest)?;
        let said = cluster.kubectl_fails(&["apply", "-f", &file])?;
        ensure!(said.contains(words), "no {words:?} for {manifest:?} in {said}");
        let reason = format!("Error from server ({reason})");
        ensure!(reason.ends_with("()") || said.contains(&reason), "no {reason:?} for {manifest:?} in {said}");
    }
    cluster.stop()
}

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const STRICT: &str = "/api/v1/namespaces/default/configmaps?fieldValidation=Strict";

/// Path; content type; body; code; reason; words.
const CALLS: [(&str, &str, &str, u16, &str, &str); 11] = [
    (
        CONFIG_MAPS,
        JSON,
        "{\"apiVersion\": \"v1\", \"kind\":",
        400,
        "BadRequest",
        "unexpected end of JSON input",
    ),
    (CONFIG_MAPS, YAML, "metadata: [", 400, "BadRequest", "error converting YAML to JSON: yaml: line 1"),
    (
        CONFIG_MAPS,
        JSON,
        r#"{"apiVersion": "v1", "kind": "Nonsense", "metadata": {"name": "x"}}"#,
        400,
        "BadRequest",
        "no kind \"Nonsense\" is registered for version \"v1\"",
    ),
    (
        "/api/v1/namespaces/default/nonsenses",
        JSON,
        "{}",
        404,
        "NotFound",
        "could not find the requested resource",
    ),
    (
        STRICT,
        JSON,
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dat": {}}"#,
        400,
        "BadRequest",
        "strict decoding error: unknown field \"dat\"",
    ),
    (
        STRICT,
        JSON,
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "name": "y"}}"#,
        400,
        "BadRequest",
        "strict decoding error: duplicate field \"metadata.name\"",
    ),
    (
        STRICT,
        YAML,
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\n  name: z\n",
        400,
        "BadRequest",
        "line 5: key \"name\" already set in map",
    ),
    (
        "/api/v1/namespaces/default/configmaps?fieldValidation=Sometimes",
        JSON,
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}"#,
        422,
        "Invalid",
        "fieldValidation: Unsupported value: \"Sometimes\"",
    ),
    (
        CONFIG_MAPS,
        JSON,
        r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "X_"}}"#,
        422,
        "Invalid",
        "a lowercase RFC 1123 subdomain must consist of",
    ),
    (CONFIG_MAPS, "text/plain", "{}", 415, "UnsupportedMediaType", "accepted media types include"),
    (
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        JSON,
        "{}",
        422,
        "Invalid",
        "spec.names.plural: Required value",
    ),
];

/// Row: bad input: malformed bodies, unknown and duplicate fields get the code, the reason and the words of Kubernetes
#[test]
fn calls_are_refused_with_a_code_a_reason_and_words() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    for (path, kind, body, code, reason, words) in CALLS {
        let (answered, status) = post(&cluster, path, kind, body)?;
        let row = format!("{body:?} to {path}: {answered} {status}");
        ensure!(answered == code && status["code"] == code, "no {code} for {row}");
        ensure!(status["kind"] == "Status" && status["reason"] == reason, "no {reason} for {row}");
        ensure!(status["message"].as_str().is_some_and(|m| m.contains(words)), "no {words:?} for {row}");
    }
    // kubectl drops a duplicate field before it sends an object; as it is, it arrives with --raw.
    let file = cluster.file("twice.json", CALLS[5].2)?;
    let said = cluster.kubectl_fails(&["create", "--raw", STRICT, "-f", &file])?;
    ensure!(said.contains("Error from server (BadRequest)") && said.contains(CALLS[5].5), "{said}");
    // Nothing of all that was kept.
    let kept = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
    ensure!(kept.lines().all(|name| name.ends_with("/kube-root-ca.crt")), "{kept}");
    cluster.stop()
}

/// POSTs a body with the administrator's token: code and answer.
fn post(cluster: &Cluster, path: &str, kind: &str, body: &str) -> Result<(u16, Value)> {
    let pki = cluster.data_dir().join("server/pki");
    let token = std::fs::read_to_string(pki.join("admin.token"))?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--http1.1", "--cacert"])
        .arg(pki.join("ca.crt"));
    curl.args(["--header", &format!("Authorization: Bearer {}", token.trim())]);
    curl.args(["--header", &format!("Content-Type: {kind}"), "--data-binary", body]);
    curl.args(["--write-out", "\n%{http_code}", &format!("{}{path}", server(cluster)?)]);
    let said = succeed(&mut curl)?;
    let (answer, code) = said.rsplit_once('\n').context("no code")?;
    Ok((code.parse()?, serde_json::from_str(answer).with_context(|| said.clone())?))
}

/// `https://ADDRESS:PORT` of the API server.
fn server(cluster: &Cluster) -> Result<String> {
    let view = ["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"];
    Ok(cluster.kubectl(&view)?.trim().to_owned())
}

/// A pod that cannot run, and how that is told.
struct Unfit {
    name: &'static str,
    containers: &'static str,
    /// Of the last container: why it waits, in the end.
    waiting: &'static str,
    /// Of the last container: how it ended before, if it ran.
    ended: Option<(i64, &'static str)>,
    /// Reason of a warning Event.
    event: &'static str,
    /// In the container's status or in that Event.
    words: &'static str,
    /// In what `kubectl logs` of the last container says, be it a log or a refusal.
    logs: &'static str,
}

/// Port 8099 is taken on every pod address; see [`take_ports`].
const UNFIT: [Unfit; 8] = [
    Unfit {
        name: "lost",
        containers: "[{name: a, image: 'nowhere:v1'}]",
        waiting: "ImagePullBackOff",
        ended: None,
        event: "Failed",
        words: "Failed to pull image \"nowhere:v1\"",
        logs: "Error from server (BadRequest): container \"a\" in pod \"lost\" is waiting to start: trying and failing to pull image",
    },
    Unfit {
        name: "misnamed",
        containers: "[{name: a, image: 'web:V1:'}]",
        waiting: "InvalidImageName",
        ended: None,
        event: "InspectFailed",
        words: "image name \"web:V1:\" is invalid",
        logs: "is waiting to start: InvalidImageName",
    },
    Unfit {
        name: "unconfigured",
        containers: "[{name: a, image: 'web:v1', envFrom: [{configMapRef: {name: absent}}]}]",
        waiting: "CreateContainerConfigError",
        ended: None,
        event: "Failed",
        words: "configmap \"absent\" not found",
        logs: "is waiting to start: CreateContainerConfigError",
    },
    Unfit {
        name: "traps",
        containers: "[{name: a, image: 'probe:v1', args: [fail]}]",
        waiting: "CrashLoopBackOff",
        ended: Some((134, "Error")),
        event: "BackOff",
        words: "wasm trap: wasm `unreachable` instruction executed",
        logs: "panicked at src/bin/probe.rs",
    },
    Unfit {
        name: "grows",
        containers: "[{name: a, image: 'probe:v1', args: [grow, '64'], resources: {limits: {memory: 16Mi}}}]",
        waiting: "CrashLoopBackOff",
        ended: Some((137, "OOMKilled")),
        event: "BackOff",
        words: "over its memory limit of 16777216 bytes",
        logs: "",
    },
    Unfit {
        name: "sleeps",
        containers: "[{name: a, image: 'web:v1', command: [sleep, '3600']}]",
        waiting: "CreateContainerError",
        ended: None,
        event: "Failed",
        words: "container a: command \"sleep\" is not in image web:v1",
        logs: "is waiting to start: CreateContainerError",
    },
    Unfit {
        name: "twice",
        containers: "[{name: a, image: 'web:v1', ports: [{containerPort: 8080}]}, {name: b, image: 'web:v1', ports: [{containerPort: 8080}]}]",
        waiting: "CreateContainerError",
        ended: None,
        event: "Failed",
        words: "port 8080 of pod default/twice is already served by another container",
        logs: "container \"b\" in pod \"twice\" is waiting to start: CreateContainerError",
    },
    Unfit {
        name: "taken",
        containers: "[{name: a, image: 'web:v1', ports: [{containerPort: 8099}]}]",
        waiting: "CrashLoopBackOff",
        ended: Some((128, "StartError")),
        event: "Failed",
        words: "port 8099 of pod default/taken",
        logs: "",
    },
];

/// Row: bad input: pods that cannot run say why: no such image, no such ConfigMap, a trap (CrashLoopBackOff, exit code), too much memory, a command that a handler has not, a port that is taken
#[test]
fn pods_that_cannot_run_say_why() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("probe", "probe:v1")?;
    cluster.push("web", "web:v1")?;
    let taken = take_ports(&cluster)?;
    for row in &UNFIT {
        pod(&cluster, row.name, "Always", row.containers)?;
    }
    for row in &UNFIT {
        eventually(&format!("{} is {}", row.name, row.waiting), SOON, || told(&cluster, row))?;
    }
    drop(taken);
    let before = cluster.kubectl(&["logs", "traps", "--previous"])?;
    ensure!(before.contains("as asked") && before.contains("wasm backtrace"), "{before}");
    // A port that was taken is tried again.
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/taken", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    cluster.stop()
}

fn pod(cluster: &Cluster, name: &str, restart: &str, containers: &str) -> Result<()> {
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {restart}\n  containers: {containers}\n"
    );
    let file = cluster.file(&format!("{name}.yaml"), &manifest)?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

/// Listens on port 8099 of the node's first pod addresses.
fn take_ports(cluster: &Cluster) -> Result<Vec<TcpListener>> {
    let range = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].spec.podCIDR}"])?;
    let first: Ipv4Addr = range.split('/').next().unwrap_or_default().parse().context(range.clone())?;
    (2..40_u32).map(|n| Ok(TcpListener::bind((Ipv4Addr::from(u32::from(first) + n), 8099))?)).collect()
}

/// Whether everything that a row says is told.
fn told(cluster: &Cluster, row: &Unfit) -> Result<bool> {
    let status = cluster.get(&["pod", row.name])?["status"].clone();
    let container = status["containerStatuses"].as_array().and_then(|all| all.last()).context("no status")?;
    ensure!(container["state"]["waiting"]["reason"] == row.waiting, "{container}");
    let ended = &container["lastState"]["terminated"];
    if let Some((code, reason)) = row.ended {
        ensure!(ended["exitCode"] == code && ended["reason"] == reason, "{container}");
    }
    let of_pod = format!("--field-selector=involvedObject.name={},type=Warning", row.name);
    let events = cluster.get(&["events", &of_pod])?;
    let events: Vec<_> =
        events["items"].as_array().into_iter().flatten().filter(|e| e["reason"] == row.event).collect();
    ensure!(!events.is_empty(), "no Event {}", row.event);
    let mut messages = vec![&container["state"]["waiting"]["message"], &ended["message"]];
    messages.extend(events.iter().map(|e| &e["message"]));
    let words = messages.iter().any(|m| m.as_str().is_some_and(|m| m.contains(row.words)));
    ensure!(words, "no {:?} in {messages:?}", row.words);
    let name = container["name"].as_str().unwrap_or_default();
    let logs = ["logs", row.name, "-c", name];
    let said = cluster.kubectl(&logs).or_else(|_| cluster.kubectl_fails(&logs))?;
    ensure!(said.contains(row.logs), "no {:?} in {said}", row.logs);
    Ok(true)
}

/// Row: bad input: a guest that reaches for the host's loopback is refused
#[test]
fn the_hosts_loopback_is_out_of_reach() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("probe", "probe:v1")?;
    cluster.push("web", "web:v1")?;
    let secret = TcpListener::bind("127.0.0.1:0")?;
    secret.set_nonblocking(true)?;
    let secret_at = secret.local_addr()?.to_string();
    let api = server(&cluster)?.replace("https://", "");
    let port = api.rsplit(':').next().context("no port")?.to_owned();
    let node = cluster.get(&["nodes"])?["items"][0]["status"].clone();
    let node_api = format!(
        "{}:{}",
        node["addresses"][0]["address"].as_str().context("address")?,
        node["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    );
    // That a guest can connect where it may is seen first.
    pod(&cluster, "friend", "Never", "[{name: a, image: 'probe:v1', args: [listen, '0.0.0.0:7000']}]")?;
    pod(&cluster, "fetches", "Always", "[{name: a, image: 'web:v1'}]")?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/friend", "pod/fetches", "--timeout=60s"])?;
    let friend = format!("{}:7000", address(&cluster, "friend")?);
    let targets = [
        friend,
        api.clone(),
        format!("localhost:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        node_api,
        secret_at.clone(),
    ];
    let containers: Vec<_> = targets
        .iter()
        .enumerate()
        .map(|(n, to)| format!("{{name: c{n}, image: 'probe:v1', args: [connect, '{to}']}}"))
        .collect();
    pod(&cluster, "reaches", "Never", &format!("[{}]", containers.join(", ")))?;
    eventually("every attempt ended", SOON, || {
        Ok(cluster.get(&["pod", "reaches"])?["status"]["phase"] == "Succeeded")
    })?;
    for (n, to) in targets.iter().enumerate() {
        let said = cluster.kubectl(&["logs", "reaches", "-c", &format!("c{n}")])?;
        let expected = if n == 0 { "connected from " } else { "error " };
        ensure!(said.starts_with(expected), "connecting to {to}: {said}");
    }
    let fetches = address(&cluster, "fetches")?;
    for target in [&api, &secret_at] {
        let said = curl(&format!("http://{fetches}:8080/fetch?http://{target}/"));
        // The guest answers 502 when it is refused, which curl --fail tells.
        ensure!(said.as_ref().is_err_and(|e| e.to_string().contains("502")), "fetching {target}: {said:?}");
    }
    match secret.accept() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        other => bail!("somebody reached the host's loopback: {other:?}"),
    }
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    cluster.stop()
}

fn address(cluster: &Cluster, pod: &str) -> Result<String> {
    Ok(cluster.get(&["pod", pod])?["status"]["podIP"].as_str().context("podIP")?.to_owned())
}

/// Row: bad input: a Service port that an unprivileged user may not listen on is told by an Event on the Service
#[test]
fn a_low_port_without_privilege_is_told() -> Result<Ended> {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    let first: u16 = first.trim().parse()?;
    ensure!(
        first > 1,
        "this machine lets everyone listen on every port, so the refusal cannot be observed here"
    );
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "service", "clusterip", "low", &format!("--tcp={}:8080", first - 1)])?;
    eventually("an Event says why the Service does not listen", SOON, || {
        let described = cluster.kubectl(&["describe", "service", "low"])?;
        Ok(["FailedToListen", "Permission denied", "ip_unprivileged_port_start"]
            .iter()
            .all(|word| described.contains(word)))
    })?;
    cluster.stop()
}
