//! Several servers: any one may be lost; and what is left when all are. Profile: loopback.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coracle_e2e::nodes::Nodes;
use coracle_e2e::servers::Servers;
use coracle_e2e::{Ended, SOON, eventually, guest_file, succeed};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

/// Row: high availability: three servers under writes, each killed in turn: nothing acknowledged is lost, watchers see each revision once
#[test]
fn mission_m26_three_servers_any_one_lost() -> Result<Ended> {
    let mut servers = Servers::start(3)?;
    ensure!(servers.coracle(2, &["member", "list"])?.matches("voter").count() == 2);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Runtime::new()?;
    let paths: Vec<PathBuf> = (0..3).map(|index| servers.kubeconfig(index)).collect();
    let from = runtime.block_on(async {
        let maps = config_maps(&paths[0]).await?;
        let list = maps.list(&ListParams::default()).await?;
        list.metadata.resource_version.context("a list without revision")
    })?;
    let writer = runtime.spawn(write(paths.clone(), stop.clone(), written.clone()));
    let watcher = runtime.spawn(watch(paths, from, stop.clone()));
    for index in 0..3 {
        progress(&servers, &written, "before the kill")?;
        servers.kill(index)?;
        // Others go on: writes, reads, and what controllers do.
        progress(&servers, &written, &format!("while server {index} is away"))?;
        let other = (index + 1) % 3;
        servers.kubectl(other, &["create", "ns", &format!("made-{index}")])?;
        eventually("the controllers work", Duration::from_secs(30), || {
            let name = format!("made-{index}");
            servers.kubectl(other, &["-n", &name, "get", "serviceaccount", "default"]).map(|_| true)
        })
        .with_context(|| servers.logs())?;
        servers.restart(index)?;
    }
    progress(&servers, &written, "at the end")?;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = runtime.block_on(writer)??;
    let seen = runtime.block_on(watcher)??;
    // Each server, by itself, has all that was acknowledged.
    for index in 0..3 {
        let held = runtime.block_on(async {
            let maps = config_maps(&servers.kubeconfig(index)).await?;
            anyhow::Ok(maps.list(&ListParams::default().labels("test=m26")).await?)
        })?;
        let held: BTreeMap<_, _> = held.items.into_iter().map(|map| (name(&map), value(&map))).collect();
        for (name, value) in &acknowledged {
            ensure!(
                held.get(name) == Some(value),
                "server {index} lost {name}={value}: {:?}",
                held.get(name)
            );
        }
    }
    // The watch, taken up at one server after the other, told each revision once and in order, and missed none.
    ensure!(
        seen.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "revisions of the watch are not in order: {seen:?}"
    );
    for made in &acknowledged {
        ensure!(seen.iter().any(|(_, map)| map == made), "the watch missed {made:?}");
    }
    servers.end()
}

/// Waits until fifty more writes are acknowledged.
fn progress(servers: &Servers, written: &AtomicUsize, when: &str) -> Result<()> {
    let goal = written.load(Ordering::Relaxed) + 50;
    eventually(&format!("writes go on {when}"), Duration::from_secs(30), || {
        Ok(written.load(Ordering::Relaxed) >= goal)
    })
    .with_context(|| servers.logs())
}

async fn config_maps(kubeconfig: &PathBuf) -> Result<Api<ConfigMap>> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(1));
    Ok(Api::namespaced(Client::try_from(config)?, "default"))
}

/// Creates objects through one server after the other; returns those that were acknowledged.
async fn write(
    servers: Vec<PathBuf>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
) -> Result<Vec<(String, String)>> {
    let mut clients = Vec::new();
    for path in &servers {
        clients.push(config_maps(path).await?);
    }
    let mut acknowledged = Vec::new();
    let mut n = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let (name, value) = (format!("m26-{n}"), n.to_string());
        let map = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"test": "m26"}}, "data": {"value": value},
        }))?;
        let maps = &clients[n % clients.len()];
        // A server that is away, or a write whose outcome is not known: the next name.
        if maps.create(&PostParams::default(), &map).await.is_ok() {
            acknowledged.push((name, value));
            written.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(acknowledged)
}

/// Watches from a revision, going on at the next server wherever a watch ends; returns every object with its revision.
async fn watch(
    servers: Vec<PathBuf>,
    from: String,
    stop: Arc<AtomicBool>,
) -> Result<Vec<(u64, (String, String))>> {
    let mut seen = Vec::new();
    let mut revision = from;
    for round in 0.. {
        let maps = config_maps(&servers[round % servers.len()]).await?;
        let params = WatchParams::default().labels("test=m26").timeout(5);
        let Ok(events) = maps.watch(&params, &revision).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut events = std::pin::pin!(events);
        let ended = stop.load(Ordering::Relaxed);
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(map) | WatchEvent::Modified(map)) => {
                    let at = map.metadata.resource_version.clone().context("no resourceVersion")?;
                    seen.push((at.parse()?, (name(&map), value(&map))));
                    revision = at;
                }
                Ok(WatchEvent::Bookmark(mark)) => revision = mark.metadata.resource_version,
                Ok(WatchEvent::Error(status)) if status.code == 410 => bail!("the watch was told {status:?}"),
                Ok(WatchEvent::Error(_) | WatchEvent::Deleted(_)) | Err(_) => break,
            }
        }
        // One that was begun after the last write has told all.
        if ended {
            break;
        }
    }
    Ok(seen)
}

fn name(map: &ConfigMap) -> String {
    map.metadata.name.clone().unwrap_or_default()
}

fn value(map: &ConfigMap) -> String {
    map.data.as_ref().and_then(|data| data.get("value")).cloned().unwrap_or_default()
}

/// Row: state: `coracle snapshot save`, everything lost, `restore`: all objects are back, tokens and certificates too, and revisions go on upward
#[test]
fn mission_m02_snapshot_saved_everything_lost_and_restored() -> Result<Ended> {
    let mut servers = Servers::start_with(1, &["--snapshot-every=60", "--snapshot-to=scheduled"])?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = servers.dir().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let manifest = file("m02.yaml", MANIFEST)?;
    servers.kubectl(0, &["create", "ns", "precious"])?;
    servers.kubectl(0, &["apply", "-f", &manifest])?;
    let wanted = ["-n", "precious", "get", "configmap/kept", "secret/kept", "service/kept", "-o", "json"];
    let before: serde_json::Value = serde_json::from_str(&servers.kubectl(0, &wanted)?)?;
    let saved = servers.dir().join("snapshot.db").display().to_string();
    servers.coracle(0, &["snapshot", "save", &saved])?;
    let sealed = servers.dir().join("sealed.db").display().to_string();
    let passphrase = file("passphrase", "open sesame\n")?;
    servers.coracle(0, &["snapshot", "save", "--passphrase-file", &passphrase, &sealed])?;
    ensure!(
        servers
            .coracle(0, &["snapshot", "status", &sealed])
            .is_err_and(|e| e.to_string().contains("is encrypted"))
    );
    // What was encrypted is nowhere written as it was: there is no place for it.
    let status = ["snapshot", "status", "--passphrase-file", &passphrase, &sealed];
    let held = succeed(servers.command(servers.binary()).args(status).env("TMPDIR", "/nonexistent"))?;
    ensure!(held.contains("encrypted:  with a passphrase") && held.contains("members:    1"), "{held}");
    ensure!(servers.coracle(0, &["snapshot", "status", &saved])?.contains("encrypted:  no"));
    // The schedule has saved one already.
    eventually("a scheduled snapshot", SOON, || {
        let mut kept = std::fs::read_dir(servers.dir().join("scheduled"))?;
        let Some(one) = kept.next().transpose()? else { return Ok(false) };
        // What is not whole yet is refused: it is looked at again.
        let held = servers.coracle(0, &["snapshot", "status", &one.path().display().to_string()])?;
        Ok(held.contains("members:    1"))
    })?;
    servers.kubectl(0, &["-n", "precious", "create", "configmap", "too-late"])?;
    let old_config = std::fs::read(servers.kubeconfig(0))?;
    servers.kill(0)?;
    std::fs::remove_dir_all(servers.data_dir(0))?;

    let data_dir = servers.data_dir(0).display().to_string();
    let damaged = servers.dir().join("damaged.db");
    let mut bytes = std::fs::read(&saved)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes)?;
    let restore = |from: &str| {
        let args = ["snapshot", "restore", "--passphrase-file", &passphrase, from, "--data-dir", &data_dir];
        succeed(servers.command(servers.binary()).args(args))
    };
    let refused = restore(&damaged.display().to_string());
    ensure!(refused.is_err_and(|error| error.to_string().contains("checksum does not match")));
    restore(&sealed)?;
    let again = restore(&saved);
    ensure!(again.is_err_and(|error| error.to_string().contains("is not empty")));
    servers.restart(0)?;
    // The credentials of before still open it.
    std::fs::write(servers.kubeconfig(0), old_config)?;
    let after: serde_json::Value = serde_json::from_str(&servers.kubectl(0, &wanted)?)?;
    ensure!(before["items"] == after["items"], "{before:#}\nbecame\n{after:#}");
    servers.kubectl_fails(0, &["-n", "precious", "get", "configmap", "too-late"])?;
    let revision = |text: &str| text.trim().parse::<u64>();
    let kept = revision(before["items"][0]["metadata"]["resourceVersion"].as_str().context("a revision")?)?;
    servers.kubectl(0, &["-n", "precious", "create", "configmap", "new"])?;
    let path = "-o=jsonpath={.metadata.resourceVersion}";
    let new = revision(&servers.kubectl(0, &["-n", "precious", "get", "configmap", "new", path])?)?;
    ensure!(new > kept);
    // It can grow again.
    let second = servers.add()?;
    servers.kubectl(second, &["-n", "precious", "get", "configmap", "kept", "new"])?;
    // What the runbook says, on a cluster that is well and on one that is not.
    let status = servers.coracle(second, &["server", "status"])?;
    ensure!(status.matches("Ready").count() == 2 && status.contains("leader"), "{status}");
    servers.coracle(0, &["server", "compact"])?;
    for id in ["1", "2"] {
        let done = servers.coracle(0, &["server", "defragment", id])?;
        ensure!(done.contains("bytes became"), "{done}");
    }
    servers.kubectl(second, &["-n", "precious", "get", "configmap", "kept", "new"])?;
    servers.stop(second)?;
    let status = servers.coracle(0, &["server", "status"]);
    ensure!(status.is_err_and(|error| error.to_string().contains("not well")));
    servers.end()
}

const MANIFEST: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: kept, namespace: precious}
data: {a: b}
---
apiVersion: v1
kind: Secret
metadata: {name: kept, namespace: precious}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Service
metadata: {name: kept, namespace: precious}
spec: {selector: {app: kept}, ports: [{port: 80}]}
";

/// Row: high availability: a node goes on when the server that it joined is lost, runs new pods, and pulls images that were pushed there
#[test]
fn a_node_goes_on_at_another_server() -> Result<Ended> {
    let mut nodes = Nodes::join(Servers::start(3)?, 1)?;
    let push = |nodes: &Nodes, tag: &str| -> Result<()> {
        let copy = nodes.servers.dir().join("hello.wasm");
        std::fs::copy(guest_file("hello")?, &copy)?;
        nodes.servers.coracle(0, &["image", "push", &copy.display().to_string(), tag]).map(drop)
    };
    push(&nodes, "hello:v1")?;
    let servers = &mut nodes.servers;
    servers.kubectl(0, &["create", "deployment", "web", "--image=hello:v1"])?;
    servers.kubectl(0, &["rollout", "status", "deploy/web", "--timeout=90s"])?;
    // Every server has the blobs soon, though one was given them.
    let blobs = |servers: &Servers, index: usize| -> Result<usize> {
        let folder = servers.data_dir(index).join("images/blobs/sha256");
        let found = std::fs::read_dir(folder)?.flatten();
        Ok(found.map(|dir| std::fs::read_dir(dir.path()).map_or(0, Iterator::count)).sum())
    };
    eventually("the other servers have the image", SOON, || {
        Ok(blobs(servers, 0)? > 0 && (1..3).all(|index| blobs(servers, index).ok() == blobs(servers, 0).ok()))
    })?;
    servers.kill(0)?;
    eventually("the API answers", SOON, || servers.kubectl(1, &["get", "nodes"]).map(|_| true))?;
    servers.kubectl(1, &["scale", "deploy/web", "--replicas=3"])?;
    let scaled = servers.kubectl(1, &["rollout", "status", "deploy/web", "--timeout=90s"]);
    scaled.with_context(|| nodes.logs(0)).with_context(|| nodes.servers.logs())?;
    // The Service's endpoints name those that live.
    let servers = &nodes.servers;
    let (gone, live) = (servers.slot().server(0), servers.slot().server(1));
    eventually("the lost server is no endpoint any more", Duration::from_secs(30), || {
        let listed = servers.kubectl(1, &["get", "endpointslice", "kubernetes", "-o", "yaml"])?;
        Ok(!listed.contains(&format!("- {gone}\n")) && listed.contains(&format!("- {live}\n")))
    })?;
    nodes.end()
}

/// Row: high availability: servers join with the token and are removed; no two servers hand out one Service address; the API of a minority fails instead of lying
#[test]
fn servers_join_with_a_token_and_are_removed() -> Result<Ended> {
    let mut servers = Servers::start(2)?;
    let token = std::fs::read_to_string(servers.data_dir(0).join("server-token"));
    // The one in the file is void since another was made.
    let void = token.context("the first server writes its token down")?;
    let zeros = format!("{}.{}", "0".repeat(64), "0".repeat(64));
    for (token, words) in
        [(void.trim(), "join token"), (zeros.as_str(), "not of the cluster"), ("x", "64 hex")]
    {
        let mut join = servers.command("timeout");
        join.arg("20").arg(servers.binary()).args(["server", "--listen", &servers.address(5)]);
        join.arg("--data-dir").arg(servers.dir().join("stranger"));
        join.arg(format!("--join={}", servers.url(0))).arg(format!("--token={token}"));
        let out = join.output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success() && said.contains(words), "{token}: {said}");
    }
    // A node does not try for long with what no server could know.
    let mut join = servers.command("timeout");
    join.arg("20").arg(servers.binary()).args(["node", "--runtime-endpoint=unix:///none", "--token=x.y"]);
    join.arg("--root-dir").arg(servers.dir().join("strange-node"));
    let out = join.arg(format!("--join={}", servers.url(0))).output()?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(out.status.code() == Some(1) && said.contains("the token is malformed"), "{said}");
    let third = servers.add()?;
    // Services made at all servers at the same time.
    let made: Vec<_> = std::thread::scope(|scope| {
        let servers = &servers;
        let makers: Vec<_> = (0..3)
            .map(|index| {
                scope.spawn(move || -> Result<()> {
                    for n in 0..10 {
                        let name = format!("s{index}-{n}");
                        servers.kubectl(index, &["create", "service", "nodeport", &name, "--tcp=80"])?;
                    }
                    Ok(())
                })
            })
            .collect();
        makers.into_iter().map(|maker| maker.join()).collect()
    });
    for made in made {
        made.map_err(|_| anyhow::anyhow!("a thread failed"))??;
    }
    let path = "jsonpath={range .items[*]}{.spec.clusterIP} {.spec.ports[0].nodePort}{\"\\n\"}{end}";
    let listed = servers.kubectl(1, &["get", "services", "-o", path])?;
    for column in 0..2 {
        let all: Vec<_> = listed.lines().filter_map(|line| line.split(' ').nth(column)).collect();
        let given: Vec<_> = all.into_iter().filter(|text| !text.is_empty()).collect();
        let unique: std::collections::BTreeSet<_> = given.iter().collect();
        ensure!(given.len() >= 30 && unique.len() == given.len(), "{listed}");
    }
    let all: serde_json::Value =
        serde_json::from_str(&servers.kubectl(0, &["get", "--raw", "/api/v1/services"])?)?;
    let seen = all["metadata"]["resourceVersion"].as_str().context("a list without revision")?;
    // Without a majority nothing is answered that could be old.
    servers.kill(1)?;
    servers.kill(third)?;
    // (A leader may answer for as long as no other can have been elected.)
    eventually("a minority answers no reads", SOON, || {
        let said = servers.kubectl_fails(0, &["get", "services", "--request-timeout=30s"])?;
        ensure!(said.contains("unavailable") || said.contains("did not answer in time"), "{said}");
        Ok(true)
    })?;
    // Unless the caller says that it may be, or from when it has to be.
    for how in ["resourceVersion=0", &format!("resourceVersion={seen}&resourceVersionMatch=NotOlderThan")] {
        let held = servers.kubectl(0, &["get", "--raw", &format!("/api/v1/services?{how}")])?;
        ensure!(held.contains("s2-9"), "{how}: {held}");
    }
    servers.restart(1)?;
    servers.kubectl(0, &["get", "services"])?;
    servers.restart(third)?;
    servers.coracle(0, &["member", "remove", "3"])?;
    eventually("the removed server ends", Duration::from_secs(40), || servers.ended(third))?;
    let again = servers.restart(third);
    ensure!(again.is_err_and(|error| format!("{error:#}").contains("removed from the cluster")));
    let members = servers.coracle(1, &["member", "list"])?;
    ensure!(members.lines().count() == 3, "{members}");
    servers.stop(1)?;
    servers.end()
}

/// Row: high availability: five servers, two of them killed at once under writes: writes, reads and controllers go on, and both come back with all that was acknowledged
#[test]
fn two_of_five_servers_are_lost() -> Result<Ended> {
    let mut servers = Servers::start(5)?;
    ensure!(servers.coracle(4, &["member", "list"])?.matches("voter").count() == 4);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Runtime::new()?;
    let paths: Vec<PathBuf> = (0..5).map(|index| servers.kubeconfig(index)).collect();
    let writer = runtime.spawn(write(paths, stop.clone(), written.clone()));
    progress(&servers, &written, "with all five")?;
    let said = servers.coracle(0, &["member", "list"])?;
    let leader = (0..5).find(|index| {
        let address = format!("{}:", servers.slot().server(*index));
        said.lines().any(|line| line.contains("leader") && line.contains(&address))
    });
    let leader = leader.with_context(|| format!("no leader in {said}"))?;
    let (other, left) = ((leader + 1) % 5, (leader + 2) % 5);
    servers.kill(leader)?;
    servers.kill(other)?;
    progress(&servers, &written, "without two of five")?;
    servers.kubectl(left, &["create", "ns", "made-by-three"])?;
    eventually("the controllers work", Duration::from_secs(30), || {
        servers.kubectl(left, &["-n", "made-by-three", "get", "serviceaccount", "default"]).map(|_| true)
    })
    .with_context(|| servers.logs())?;
    for index in [leader, other] {
        servers.spawn(index)?;
    }
    for index in [leader, other] {
        servers.wait_ready(index)?;
    }
    progress(&servers, &written, "at the end")?;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = runtime.block_on(writer)??;
    for index in 0..5 {
        let held = runtime.block_on(async {
            let maps = config_maps(&servers.kubeconfig(index)).await?;
            anyhow::Ok(maps.list(&ListParams::default().labels("test=m26")).await?)
        })?;
        let held: BTreeMap<_, _> = held.items.into_iter().map(|map| (name(&map), value(&map))).collect();
        for (name, value) in &acknowledged {
            ensure!(held.get(name) == Some(value), "server {index} lost {name}={value}");
        }
    }
    servers.end()
}
