//! Carries plans out with Debian's iproute2 and nftables. What is there already is left as it is.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::nft::TABLE;
use super::routes::Plan;

/// The device that has the DNS's address, and on which the Service range seems to lie.
const DEVICE: &str = "coracle-svc";
/// By this number the kernel's routes are known as ours.
const PROTOCOL: &str = "201";

/// Runs a program; its standard output.
async fn run(program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| {
            format!("{program} cannot be started: profile routed needs iproute2 and nftables")
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.with_context(|| format!("speak to {program}"))?;
    }
    let out = child.wait_with_output().await.with_context(|| format!("wait for {program}"))?;
    if !out.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

async fn ip(args: &[&str]) -> anyhow::Result<String> {
    run("ip", args, "").await
}

/// Makes the device for Services and lets the node forward.
///
/// # Errors
/// Without root, or iproute2.
pub async fn prepare(service_cidr: &str, node_ip: &str, dns: Option<Ipv4Addr>) -> anyhow::Result<()> {
    let doing = "profile routed needs root: make the device for Services";
    if ip(&["link", "show", DEVICE]).await.is_err() {
        // A bridge without a port: every kernel that runs this profile has bridges, not every one has dummy devices.
        ip(&["link", "add", DEVICE, "type", "bridge"]).await.context(doing)?;
    }
    ip(&["link", "set", DEVICE, "up"]).await.context(doing)?;
    if let Some(dns) = dns {
        ip(&["address", "replace", &format!("{dns}/32"), "dev", DEVICE]).await.context(doing)?;
    }
    // Without it a node that has no default route could not even begin a connection to a Service.
    let route = ["route", "replace", service_cidr, "dev", DEVICE, "src", node_ip, "proto", PROTOCOL];
    ip(&route).await.context("lead the Service range to its device")?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("let the node forward (ip_forward)")
}

/// Removes everything; what is gone already is fine.
pub async fn remove() {
    let removed = [
        run("nft", &["delete", "table", "ip", TABLE], "").await,
        run("nft", &["delete", "table", "bridge", TABLE], "").await,
        ip(&["route", "flush", "proto", PROTOCOL]).await,
        ip(&["link", "delete", DEVICE]).await,
    ];
    for error in removed.into_iter().filter_map(Result::err) {
        tracing::debug!(error = format!("{error:#}"), "removing what profile routed made");
    }
}

/// What has been carried out last.
#[derive(Default)]
pub struct Done {
    routes: Option<Plan>,
    addresses: Option<BTreeSet<Ipv4Addr>>,
    script: Option<String>,
}

impl Done {
    /// Brings the routes to other nodes up to date; whether all of it worked.
    pub async fn routes(&mut self, plan: &Plan) -> bool {
        if self.routes.as_ref() == Some(plan) {
            return true;
        }
        let mut fine = true;
        for (range, via) in &plan.via {
            let via = via.to_string();
            let added = ip(&["route", "replace", range, "via", &via, "proto", PROTOCOL]).await;
            if let Err(error) = added {
                fine = false;
                tracing::warn!(
                    error = format!("{error:#}"),
                    range,
                    "no route to a node's pods; nodes have to share a link, for tunnels between others are not made yet"
                );
            }
        }
        // What an earlier process left, or a node that is gone.
        match ip(&["route", "show", "proto", PROTOCOL]).await {
            Ok(listed) => {
                let gone = listed.lines().filter_map(|line| {
                    let range = line.split_whitespace().next().filter(|_| line.contains(" via "))?;
                    Some(range).filter(|range| !plan.via.contains_key(*range))
                });
                for range in gone {
                    fine &= ip(&["route", "delete", range, "proto", PROTOCOL]).await.is_ok();
                }
            }
            Err(_) => fine = false,
        }
        self.routes = fine.then(|| plan.clone());
        fine
    }

    /// Answers on the link for these addresses, and for no others than them; whether all of it worked.
    pub async fn addresses(&mut self, wanted: &BTreeSet<Ipv4Addr>) -> bool {
        if self.addresses.as_ref() == Some(wanted) {
            return true;
        }
        // A load balancer's addresses are the local routes of our protocol on the device.
        let listed = ip(&["route", "show", "table", "local", "dev", DEVICE, "proto", PROTOCOL]).await;
        let Ok(listed) = listed else { return false };
        let there: BTreeSet<Ipv4Addr> =
            listed.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
        let mut fine = true;
        let changes = wanted.difference(&there).map(|ip| ("replace", ip));
        for (verb, address) in changes.chain(there.difference(wanted).map(|ip| ("delete", ip))) {
            let route = format!("{address}/32");
            let args = ["route", verb, "local", &route, "dev", DEVICE, "table", "local", "proto", PROTOCOL];
            if let Err(error) = ip(&args).await {
                fine = false;
                tracing::warn!(error = format!("{error:#}"), %address, "the address of a load balancer");
            }
        }
        self.addresses = fine.then(|| wanted.clone());
        fine
    }

    /// Replaces the table of nftables; whether it worked.
    pub async fn nft(&mut self, script: String) -> bool {
        if self.script.as_ref() == Some(&script) {
            return true;
        }
        match run("nft", &["-f", "-"], &script).await {
            Ok(_) => self.script = Some(script),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "Services are not led to their endpoints");
                return false;
            }
        }
        true
    }
}
