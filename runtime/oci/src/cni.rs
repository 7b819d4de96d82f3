//! CNI configurations of type `bridge` with `host-local` addresses: read and honoured by the runtime itself; no plugin
//! programs are run.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::network::{Bridge, Subnet};

/// The longest configuration that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plugin {
    #[serde(default)]
    name: String,
    r#type: String,
    #[serde(default)]
    bridge: String,
    #[serde(default)]
    is_gateway: bool,
    #[serde(default)]
    is_default_gateway: bool,
    #[serde(default)]
    ip_masq: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    ipam: Ipam,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    r#type: String,
    subnet: String,
    gateway: Option<Ipv4Addr>,
    routes: Vec<Route>,
    ranges: Vec<Vec<Range>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    subnet: String,
    #[serde(default)]
    gateway: Option<Ipv4Addr>,
}

#[derive(Deserialize)]
struct Route {
    dst: String,
}

/// The first configuration of a folder, by name; `None` when there is none.
pub fn load(dir: &Path) -> anyhow::Result<Option<Bridge>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    paths.retain(|p| {
        p.extension().and_then(|e| e.to_str()).is_some_and(|e| ["conf", "conflist", "json"].contains(&e))
    });
    paths.sort();
    let Some(path) = paths.first() else { return Ok(None) };
    if std::fs::metadata(path)?.len() > MAX_FILE {
        bail!("{} is longer than {MAX_FILE} bytes", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).map(Some).with_context(|| format!("CNI configuration {}", path.display()))
}

/// The bridge of a configuration (`.conf`) or of the first plugin of type `bridge` in a list (`.conflist`).
pub fn parse(text: &str) -> anyhow::Result<Bridge> {
    let value: Value = serde_json::from_str(text)?;
    let plugin = match value.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins
            .iter()
            .find(|p| p["type"] == "bridge")
            .context("none of its plugins is of type bridge, the only one that is understood")?
            .clone(),
        None => value,
    };
    let plugin: Plugin = serde_json::from_value(plugin)?;
    if plugin.r#type != "bridge" {
        bail!("network {:?} is of type {:?}; only bridge is understood", plugin.name, plugin.r#type);
    }
    if plugin.ipam.r#type != "host-local" {
        bail!("addresses of type {:?}; only host-local is understood", plugin.ipam.r#type);
    }
    let first = plugin.ipam.ranges.into_iter().flatten().next();
    let (subnet, gateway) = match first {
        Some(range) => (range.subnet, range.gateway),
        None => (plugin.ipam.subnet, plugin.ipam.gateway),
    };
    let subnet: Subnet = subnet.parse().map_err(|e: String| anyhow::anyhow!(e))?;
    let mut routes = Vec::new();
    for route in &plugin.ipam.routes {
        routes.push(route.dst.parse::<Subnet>().map_err(|e| anyhow::anyhow!(e))?);
    }
    if plugin.is_default_gateway && !routes.iter().any(|r| r.prefix == 0) {
        routes.push(Subnet { base: Ipv4Addr::UNSPECIFIED, prefix: 0 });
    }
    Ok(Bridge {
        name: if plugin.bridge.is_empty() { "cni0".into() } else { plugin.bridge },
        subnet,
        gateway: gateway.unwrap_or_else(|| subnet.first()),
        is_gateway: plugin.is_gateway || plugin.is_default_gateway,
        routes,
        masquerade: plugin.ip_masq.then_some(subnet),
        mtu: (plugin.mtu > 0).then_some(plugin.mtu),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_is_read() {
        let text = r#"{"cniVersion": "0.3.1", "name": "mynet", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}"#;
        let bridge = parse(text).unwrap();
        assert_eq!((bridge.name.as_str(), bridge.gateway), ("cni0", Ipv4Addr::new(10, 22, 0, 1)));
        assert_eq!(bridge.subnet.to_string(), "10.22.0.0/16");
        assert_eq!(bridge.routes, [Subnet { base: Ipv4Addr::UNSPECIFIED, prefix: 0 }]);
        assert!(bridge.is_gateway && bridge.masquerade.is_some());
        let list =
            format!(r#"{{"cniVersion": "1.0.0", "name": "x", "plugins": [{text}, {{"type": "portmap"}}]}}"#);
        assert_eq!(parse(&list).unwrap().name, "cni0");
        for (text, words) in [
            (r#"{"type": "macvlan"}"#, "macvlan"),
            (r#"{"type": "bridge", "ipam": {"type": "dhcp"}}"#, "dhcp"),
            (r#"{"type": "bridge", "ipam": {"type": "host-local", "subnet": "x"}}"#, "x"),
            ("{", "EOF"),
        ] {
            assert!(parse(text).unwrap_err().to_string().contains(words), "{text}");
        }
    }
}
