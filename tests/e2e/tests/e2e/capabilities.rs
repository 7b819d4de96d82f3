//! What a manifest grants to a wasm pod beyond WASI, and what is counted of its containers. Profile: loopback.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, curl, eventually};
use serde_json::{Value, json};

use super::pods::{SOON, apply, cluster, status};

/// A pod that carries out the steps of tests/guests' `store` with a ConfigMap and a volume mounted.
fn pod(node: &str, name: &str, annotations: Value, steps: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "nodeName": node, "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": "store:v1", "args": steps,
                "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, {"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "data", "emptyDir": {}}],
        },
    })
}

/// Row: runtime: wasi:config and wasi:keyvalue are granted by the manifest, and refused with the reason without it
/// Profile: loopback
#[test]
fn settings_and_values_are_granted_by_the_manifest() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["store"])?;
    cluster.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
        "--from-literal=size=9",
    ])?;
    let granted = json!({"coracle.dev/wasi-config": "/settings", "coracle.dev/wasi-keyvalue": "/data"});
    let half = json!({"coracle.dev/wasi-config": "/settings"});
    let steps =
        ["config,color", "config-all", "set,cart,apples,3", "increment,cart,apples,4", "get,cart,apples"];
    apply(&cluster, &[pod(&node, "granted", granted, &steps), pod(&node, "half", half, &steps)])?;
    status(&cluster, "granted", "ends", |s| s["phase"] == "Succeeded")?;
    let log = cluster.kubectl(&["logs", "granted"])?;
    let expected = "Ok(Some(\"blue\"))\nOk([(\"color\", \"blue\"), (\"size\", \"9\")])\nOk(())\nOk(7)\nOk(Some(\"7\"))\n";
    ensure!(log == expected, "{log}");
    eventually("the other is refused", SOON, || {
        let described = cluster.kubectl(&["describe", "pod", "half"])?;
        let words = ["wasi:keyvalue/", "was not granted", "coracle.dev/wasi-keyvalue"];
        Ok(words.iter().all(|words| described.contains(words)))
    })?;
    cluster.stop()
}

/// The value of a sample whose line has all of these words.
fn sample(text: &str, words: &[&str]) -> Option<u64> {
    let line =
        text.lines().find(|line| !line.starts_with('#') && words.iter().all(|word| line.contains(word)))?;
    line.rsplit(' ').nth(1)?.parse().ok()
}

/// A collector of OpenTelemetry, as far as this test needs one: keeps what is posted to `/v1/traces`.
struct Collector {
    address: SocketAddr,
    posted: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let collector = Self { address: listener.local_addr()?, posted: Arc::default() };
        let posted = collector.posted.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let posted = posted.clone();
                std::thread::spawn(move || collect(stream, &posted));
            }
        });
        Ok(collector)
    }

    /// The span of this name.
    fn span(&self, name: &str) -> Option<(Value, Value)> {
        let posted = self.posted.lock().unwrap();
        let resources = posted.iter().flat_map(|body| body["resourceSpans"].as_array().into_iter().flatten());
        let mut spans = resources.flat_map(|resource| {
            let spans = resource["scopeSpans"][0]["spans"].as_array().into_iter().flatten();
            spans.map(|span| (resource["resource"]["attributes"].clone(), span.clone()))
        });
        spans.find(|(_, span)| span["name"] == name)
    }
}

fn collect(stream: TcpStream, posted: &Mutex<Vec<Value>>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if first.starts_with("POST /v1/traces ") {
            posted.lock().unwrap().push(serde_json::from_slice(&body)?);
        }
        (&stream)
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")?;
    }
}

/// What a guest measures is in the node's metrics, and its spans come to the collector.
fn guests_are_observed(cluster: &Cluster, node: &str, collector: &Collector) -> Result<()> {
    let pod = |name: &str, annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "shop", "image": "observe:v1"}]},
        })
    };
    apply(cluster, &[pod("seen", json!({"coracle.dev/observe": "true"})), pod("unseen", json!({}))])?;
    status(cluster, "seen", "runs", |s| s["phase"] == "Running")?;
    let mut log = String::new();
    eventually("it has measured and traced", SOON, || {
        log = cluster.kubectl(&["logs", "seen"])?;
        Ok(log.contains("00-"))
    })?;
    ensure!(log.starts_with("Ok(())\nOk(())\nOk(())\nOk(())\nOk(())\nErr("), "{log}");
    ensure!(log.matches("Ok(())").count() == 10 && log.matches("Err(").count() == 1, "{log}");
    let text = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/cadvisor")])?;
    for (words, value) in [
        (["coracle_guest_orders_total{", "pod=\"seen\"", "kind=\"book\""], 5),
        (["coracle_guest_orders_total{", "pod=\"seen\"", "kind=\"pen\""], 1),
        (["coracle_guest_queue_depth{", "pod=\"seen\"", "container=\"shop\""], 7),
    ] {
        ensure!(sample(&text, &words) == Some(value), "{words:?} is not {value} in\n{text}");
    }
    ensure!(text.contains("# TYPE coracle_guest_orders_total counter"), "{text}");
    // A histogram is one, with bounds that are numbers; what has fractions keeps them.
    ensure!(text.contains("# TYPE coracle_guest_took_seconds histogram"), "{text}");
    for (name, label, value) in [
        ("took_seconds_bucket", "le=\"0.1\"} 1 ", 1),
        ("took_seconds_bucket", "le=\"1\"} 2 ", 2),
        ("took_seconds_bucket", "le=\"+Inf\"} 3 ", 3),
        ("took_seconds_count", "kind=\"book\"} 3 ", 3),
    ] {
        let words = [&format!("coracle_guest_{name}{{"), "pod=\"seen\"", label];
        ensure!(sample(&text, &words) == Some(value), "{words:?} in\n{text}");
    }
    for (name, value) in [("took_seconds_sum", "} 20.8 "), ("load", "} 0.25 ")] {
        let found = text.lines().find(|line| line.starts_with(&format!("coracle_guest_{name}{{")));
        ensure!(found.is_some_and(|line| line.contains(value) && !line.contains("__value__")), "{found:?}");
    }
    eventually("the spans have come", SOON, || {
        Ok(collector.span("order").is_some() && collector.span("payment").is_some())
    })?;
    let (who, order) = collector.span("order").context("a span")?;
    let (_, payment) = collector.span("payment").context("a span")?;
    ensure!(
        payment["traceId"] == order["traceId"] && payment["parentSpanId"] == order["spanId"],
        "{payment:#}"
    );
    ensure!(payment["status"]["code"] == 2 && payment["events"][0]["name"] == "declined", "{payment:#}");
    ensure!(
        order["attributes"][0] == json!({"key": "customer", "value": {"stringValue": "ann"}}),
        "{order:#}"
    );
    ensure!(who.to_string().contains("\"seen\"") && who.to_string().contains("k8s.pod.name"), "{who:#}");
    let shown = log.lines().last().unwrap_or_default();
    ensure!(
        shown
            == format!(
                "00-{}-{}-01",
                payment["traceId"].as_str().unwrap_or_default(),
                payment["spanId"].as_str().unwrap_or_default()
            ),
        "{log}"
    );
    eventually("the other is refused", SOON, || {
        let described = cluster.kubectl(&["describe", "pod", "unseen"])?;
        Ok(["coracle:observe/", "was not granted", "coracle.dev/observe"]
            .iter()
            .all(|w| described.contains(w)))
    })
}

/// Row: metrics: /metrics/cadvisor of a node tells CPU, memory, instances, requests, cold starts and latencies of each container, and what guests measure; their spans come to a collector by OTLP
/// Profile: loopback
#[test]
fn a_node_tells_the_requests_of_each_container() -> Result<Ended> {
    let collector = Collector::start()?;
    let endpoint = format!("--otlp-endpoint=http://{}", collector.address);
    let mut cluster = Cluster::start_with(Profile::Loopback, &[&endpoint])?;
    for guest in ["web", "observe"] {
        cluster.push(guest, &format!("{guest}:v1"))?;
    }
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    guests_are_observed(&cluster, &node, &collector)?;
    apply(
        &cluster,
        &[json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "counted"},
            "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web:v1", "ports": [{"containerPort": 8080}]}]},
        })],
    )?;
    let running = status(&cluster, "counted", "runs", |s| s["phase"] == "Running" && s["podIP"].is_string())?;
    let url = format!("http://{}:8080/", running["podIP"].as_str().context("an address")?);
    eventually("it answers", SOON, || Ok(curl(&url).is_ok()))?;
    for _ in 0..4 {
        curl(&url)?;
    }
    let text = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/cadvisor")])?;
    let of = |name: &str, more: &[&str]| {
        let pod = [name, "pod=\"counted\"", "container=\"web\"", "namespace=\"default\""];
        sample(&text, &[&pod[..], more].concat()).with_context(|| format!("no {name} in\n{text}"))
    };
    let requests = of("coracle_container_requests_total{", &[])?;
    ensure!(requests >= 5, "{text}");
    ensure!(of("coracle_container_request_duration_milliseconds_count{", &[])? == requests, "{text}");
    let every = of("coracle_container_request_duration_milliseconds_bucket{", &["le=\"+Inf\""])?;
    ensure!(every == requests, "{text}");
    ensure!(of("container_memory_working_set_bytes{", &[])? > 0, "{text}");
    ensure!(of("coracle_container_instances{", &[])? >= 1, "{text}");
    of("coracle_container_cold_starts_total{", &[])?;
    of("coracle_container_cpu_usage_milliseconds_total{", &[])?;
    let types = [
        "# TYPE coracle_container_request_duration_milliseconds histogram",
        "# TYPE container_cpu_usage_seconds_total counter",
    ];
    ensure!(types.iter().all(|line| text.lines().any(|l| l == *line)), "{text}");
    cluster.stop()
}
