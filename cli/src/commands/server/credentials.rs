//! What a server hands to clients on its own host: kubeconfigs, tokens, a node's certificates.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use coracle_apiserver::ca::{ClusterCa, kubeconfig};
use coracle_registry::Cidr;

use super::Options;
use crate::kubeconfig::write_secret;

/// The names under which a server is reached.
pub fn names(service_cidr: Cidr, ip: IpAddr) -> Vec<String> {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(String::from)
    .into();
    names.push(ip.to_string());
    if ip.to_string() != "127.0.0.1" {
        names.push("127.0.0.1".into());
    }
    names.extend(first_address(service_cidr.base).map(|address| address.to_string()));
    names
}

/// The address of the Service `kubernetes`: the first of the range.
fn first_address(base: IpAddr) -> Option<std::net::Ipv4Addr> {
    let IpAddr::V4(base) = base else { return None };
    Some(std::net::Ipv4Addr::from(u32::from(base).checked_add(1)?))
}

/// A secret of 256 random bits, made once.
pub fn token(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => {
            bail!("{} is empty; remove it to make a new one", path.display())
        }
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let bytes: [u8; 32] = rand::random();
    let text = hex::encode(bytes);
    write_secret(path, &text)?;
    Ok(text)
}

/// Writes the administrator's kubeconfig, and what a node on the same host needs.
pub fn write(
    options: &Options,
    ca: &ClusterCa,
    url: &str,
    admin_token: &str,
    node_token: &str,
) -> Result<()> {
    let admin = ca.ensure_client("admin", "kubernetes-admin", &["system:masters"])?;
    let config = kubeconfig(url, ca.cert_pem(), &admin, Some(admin_token));
    if let Some(path) = &options.write_kubeconfig {
        write_secret(path, &config)?;
    }
    let Some((name, address)) = &options.local_node else { return Ok(()) };
    let dir = options.data_dir.join("node");
    let user = format!("system:node:{name}");
    let client = ca.ensure_client(&format!("node-{name}"), &user, &["system:nodes"])?;
    let serving =
        ca.ensure_server(&format!("node-{name}-serving"), &user, &[name.clone(), address.to_string()])?;
    write_secret(&dir.join("serving.crt"), &serving.cert_pem)?;
    write_secret(&dir.join("serving.key"), &serving.key_pem)?;
    write_secret(&dir.join("ca.crt"), ca.cert_pem())?;
    // A name without a registry means the built-in one, and never a stranger's; names of other registries are looked up
    // there first.
    let registries = serde_json::json!({"defaultRegistry": null, "mirrors": [{
        "url": url, "everyRegistry": true, "caPem": ca.cert_pem(), "credentials": {"basic": {"username": "node", "password": node_token}},
    }]});
    write_secret(&dir.join("registries.json"), &serde_json::to_string_pretty(&registries)?)?;
    // Last: who waits for it finds the others.
    write_secret(&dir.join("kubeconfig"), &kubeconfig(url, ca.cert_pem(), &client, None))
}
