//! Suite `api`: ConfigMaps of 1 KiB over TLS and HTTP/2, a connection a client.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coracle_e2e::Cluster;
use serde_json::json;

use crate::connection::{Ask, Endpoint};
use crate::figures::Figures;
use crate::load::{Load, Outcome};
use crate::watch;

const SUITE: &str = "api";
const CLIENTS: [usize; 3] = [1, 16, 64];
/// How many ConfigMaps are read and listed.
const LISTED: u64 = 1000;
/// Objects of a long list.
const MANY: u64 = 16_000;
/// A rate of creates ends here at the latest, so that the disk is bounded.
const MOST_CREATED: u64 = 200_000;

pub async fn run(cluster: &Cluster, duration: Duration, figures: &mut Figures) -> Result<()> {
    let endpoint = Endpoint::read(&cluster.data_dir().join("kubeconfig")).await?;
    let pid = cluster.pid("server")?;
    let idle = crate::process::memory(pid).context("memory of the idle server")?.rss;
    figures.add(SUITE, "idle/server/rss", "MiB", Some(idle as f64 / 1_048_576.0));
    let mut connection = endpoint.connect().await?;
    for name in ["bench-read", "bench-write"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        connection.ask(Ask::post("/api/v1/namespaces".into(), namespace.to_string().into())).await?;
    }
    for number in 0..LISTED {
        connection.ask(create("bench-read", number)).await?;
    }
    let load =
        |clients, most_requests| Load { endpoint: endpoint.clone(), clients, duration, most_requests, pid };

    let reads = Arc::new(AtomicU64::new(0));
    for clients in CLIENTS {
        // A stride that is prime to the number of objects: every one is read, and none right after its neighbour.
        let get =
            |serial: u64| Ask::get(format!("{}/{}", folder("bench-read"), name((serial * 617) % LISTED)));
        report(figures, "get", clients, &load(clients, u64::MAX).run(&reads, get).await?);
    }
    let size = connection.ask(Ask::get(folder("bench-read"))).await?;
    ensure!(size > 1024 * 1000, "the list of {LISTED} ConfigMaps has only {size} bytes");
    let list = |_| Ask::get(folder("bench-read"));
    for clients in CLIENTS {
        report(figures, "list-1000", clients, &load(clients, u64::MAX).run(&reads, list).await?);
    }

    let writes = Arc::new(AtomicU64::new(0));
    for clients in CLIENTS {
        let created =
            load(clients, MOST_CREATED).run(&writes, |number| create("bench-write", number)).await?;
        report(figures, "create", clients, &created);
    }
    let created = writes.load(std::sync::atomic::Ordering::Relaxed);
    let memory = |figures: &mut Figures, when: &str| -> Result<()> {
        let rss = crate::process::memory(pid).context("memory of the server")?.rss;
        figures.add(SUITE, format!("{when}/server/rss"), "MiB", Some(rss as f64 / 1_048_576.0));
        Ok(())
    };
    memory(figures, "after-creates")?;
    figures.add(SUITE, "after-creates/objects", "ConfigMaps", Some((created + LISTED) as f64));
    if created >= MANY {
        let list = |_| Ask::get(format!("{}?limit={MANY}", folder("bench-write")));
        report(figures, "list-16000", 1, &load(1, u64::MAX).run(&reads, list).await?);
    }
    let updates = Arc::new(AtomicU64::new(0));
    for clients in CLIENTS {
        let outcome = load(clients, u64::MAX).run(&updates, update).await?;
        report(figures, "update", clients, &outcome);
    }
    // Half of what was created: the warm-up is not counted, and nothing is to be deleted twice.
    let remove = |number| Ask::delete(format!("{}/{}", folder("bench-write"), name(number)));
    report(figures, "delete", 16, &load(16, created / 2).run(&Arc::default(), remove).await?);
    watch::run(&endpoint, pid, duration, figures).await?;
    memory(figures, "at-the-end")?;
    ensure!(cluster.pid("server")? == pid, "the server was started again while it was measured");
    Ok(())
}

fn folder(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn name(number: u64) -> String {
    format!("bench-{number:08}")
}

/// Creates a ConfigMap with 1 KiB of data.
fn create(namespace: &str, number: u64) -> Ask {
    let value = format!("{number:01024}");
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(number)}, "data": {"v": value}});
    Ask::post(folder(namespace), Bytes::from(body.to_string()))
}

/// Writes one of the listed ConfigMaps anew.
fn update(serial: u64) -> Ask {
    let name = name((serial * 617) % LISTED);
    let value = format!("{serial:01024}");
    let body =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": value}});
    Ask::put(format!("{}/{name}", folder("bench-read")), Bytes::from(body.to_string()))
}

fn report(figures: &mut Figures, what: &str, clients: usize, outcome: &Outcome) {
    eprintln!("{what} by {clients} clients: {} answers in {:.1?}", outcome.samples.len(), outcome.elapsed);
    let answered = outcome.samples.len() as f64;
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let mut add =
        |name: &str, unit, value| figures.add(SUITE, format!("{what}/{clients}/{name}"), unit, value);
    add("rate", "1/s", Some(answered / outcome.elapsed.as_secs_f64()));
    add("p50", "ms", outcome.samples.percentile(50).map(millis));
    add("p99", "ms", outcome.samples.percentile(99).map(millis));
    add("errors", "requests", Some(outcome.errors as f64));
    add("server-cpu", "ms/request", Some(millis(outcome.server_cpu) / answered));
    add("client-cpu", "ms/request", Some(millis(outcome.client_cpu) / answered));
    if let Some(error) = &outcome.first_error {
        eprintln!("{what}/{clients}: the first error was: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_one_kibibyte_of_data() {
        let ask = create("n", 7);
        let body: serde_json::Value = serde_json::from_slice(&ask.body).unwrap();
        assert_eq!(body["data"]["v"].as_str().map(str::len), Some(1024));
        assert_eq!(
            (ask.path.as_str(), &body["metadata"]["name"]),
            ("/api/v1/namespaces/n/configmaps", &json!("bench-00000007"))
        );
    }

    #[test]
    fn reads_reach_every_object() {
        let read: std::collections::BTreeSet<_> = (0..LISTED).map(|serial| (serial * 617) % LISTED).collect();
        assert_eq!(read.len() as u64, LISTED);
    }
}
