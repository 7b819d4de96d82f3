//! A host of its own as its network namespace shows it: whatever is in there, the cluster brought.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use super::process::Process;
use crate::netns::Host;
use crate::succeed;

/// The network of all hosts.
const LINK: [u8; 3] = [192, 168, 77];
/// The bridge of a CNI configuration: it stays without pods.
const CONFIGURED: &str = "cni0";

fn lines(host: &Host, program: &str, args: &[&str]) -> Result<Vec<String>> {
    let said = succeed(host.command(program).args(args))?;
    Ok(said.lines().map(|line| line.trim().to_owned()).collect())
}

/// The names of its devices.
pub fn links(host: &Host) -> Result<Vec<String>> {
    let all = lines(host, "ip", &["-o", "link", "show"])?;
    Ok(all
        .iter()
        .filter_map(|line| line.split([':', '@']).nth(1))
        .map(|name| name.trim().to_owned())
        .collect())
}

/// Addresses and ranges that it holds to be its own, each with what the kernel says of it.
pub fn local_routes(host: &Host) -> Result<Vec<(Ipv4Addr, String)>> {
    let all = lines(host, "ip", &["-o", "route", "show", "table", "local", "type", "local"])?;
    let to = |line: &String| line.split_whitespace().find_map(|word| word.split('/').next()?.parse().ok());
    Ok(all.into_iter().filter_map(|line| Some((to(&line)?, line))).collect())
}

/// All that a host has not by itself, beside these processes.
///
/// # Errors
/// When its namespace cannot be looked at.
pub fn after(host: &Host, kept: &[&Process]) -> Result<Vec<String>> {
    let own: Option<Ipv4Addr> = host.address.parse().ok();
    let mut left = processes(host, kept)?;
    let mut devices = links(host)?;
    left.extend(lines(host, "nft", &["list", "tables"])?);
    devices.retain(|name| !["lo", "eth0", CONFIGURED].contains(&name.as_str()));
    left.extend(devices.iter().map(|name| format!("device {name}")));
    let addresses = local_routes(host)?.into_iter().filter(|(to, _)| !to.is_loopback() && Some(*to) != own);
    left.extend(
        addresses.map(|(_, line)| line).filter(|line| ours(line)).map(|line| format!("address {line}")),
    );
    let routes = lines(host, "ip", &["-o", "route", "show"])?.into_iter().filter(|line| !is_link(line));
    left.extend(routes.filter(|line| ours(line)).map(|line| format!("route {line}")));
    Ok(left.into_iter().map(|what| format!("{what} on {}", host.name)).collect())
}

fn ours(line: &str) -> bool {
    !line.contains(&format!("dev {CONFIGURED} "))
}

/// Whether a route leads to the network that all hosts share.
fn is_link(route: &str) -> bool {
    let to = route.split(['/', ' ']).next().and_then(|word| word.parse::<Ipv4Addr>().ok());
    to.is_some_and(|to| to.octets().starts_with(&LINK))
}

/// Those in its namespace, whatever they are.
fn processes(host: &Host, kept: &[&Process]) -> Result<Vec<String>> {
    let pids = succeed(Command::new("ip").args(["netns", "pids", &host.name]))?;
    let is_kept = |pid: &&str| kept.iter().any(|process| process.pid().to_string() == **pid);
    let shown = |pid: &str| {
        // It may have ended by now.
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        format!("process {pid}: {}", line.replace('\0', " ").trim())
    };
    Ok(pids.split_whitespace().filter(|pid| !is_kept(pid)).map(shown).collect())
}
