//! The network of pods on one node: a bridge, a pair of virtual cables a pod, and local routes for pods without a
//! namespace. Routes to other nodes and Services are not made here.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::io::AsyncWriteExt as _;

use crate::namespaces::within;

/// The kernel's table of addresses that are its own.
const LOCAL_TABLE: u32 = 255;

/// The bridge of a node without a CNI configuration.
const OWN: &str = "coracle0";
/// Our table is gone, whether it was there or not.
const NO_TABLE: &str = "table ip coracle_pods\ndelete table ip coracle_pods";

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub base: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

impl Subnet {
    /// The first address of a host in it.
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.base).saturating_add(1))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl std::str::FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an IPv4 range such as 10.22.0.0/16");
        let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let (base, prefix): (Ipv4Addr, u8) =
            (base.parse().map_err(|_| wrong())?, prefix.parse().map_err(|_| wrong())?);
        if prefix > 32 {
            return Err(wrong());
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self { base: Ipv4Addr::from(u32::from(base) & mask), prefix })
    }
}

/// The bridge that pods are connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub name: String,
    /// The addresses of the node's pods.
    pub subnet: Subnet,
    /// The bridge's own address, by which pods leave the node.
    pub gateway: Ipv4Addr,
    /// Whether the bridge has that address.
    pub is_gateway: bool,
    /// What pods reach through the gateway.
    pub routes: Vec<Subnet>,
    /// Traffic of pods to what lies outside this range gets the node's own address.
    pub masquerade: Option<Subnet>,
    /// Bytes; `None` leaves it to the kernel.
    pub mtu: Option<u32>,
}

impl Bridge {
    /// The bridge of a node without a CNI configuration.
    pub fn of_node(subnet: Subnet, cluster: Subnet) -> Self {
        Self {
            name: OWN.into(),
            subnet,
            gateway: subnet.first(),
            is_gateway: true,
            routes: vec![Subnet { base: Ipv4Addr::UNSPECIFIED, prefix: 0 }],
            masquerade: Some(cluster),
            mtu: None,
        }
    }
}

/// The name of a pod's cable on the node's side; the kernel takes 15 bytes.
pub fn cable(sandbox: &str) -> String {
    format!("co{}", sandbox.get(..13).unwrap_or(sandbox))
}

/// A connection to the kernel from the namespace of the calling thread; its task ends with the handle.
fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn index(handle: &Handle, name: &str) -> anyhow::Result<Option<u32>> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|l| l.header.index)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(error).with_context(|| format!("look for the device {name}")),
    }
}

fn exists_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        other => other,
    }
}

fn absent_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    let fine = [-libc::ESRCH, -libc::ENODEV, -libc::ENOENT];
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if fine.contains(&error.raw_code()) => Ok(()),
        other => other,
    }
}

/// Makes the bridge, or what is missing of it, and lets the node forward.
pub async fn set_up(bridge: &Bridge) -> anyhow::Result<()> {
    let doing = || format!("make the bridge {}", bridge.name);
    let handle = connect().with_context(doing)?;
    let mut link = LinkBridge::new(&bridge.name);
    if let Some(mtu) = bridge.mtu {
        link = link.mtu(mtu);
    }
    exists_is_fine(handle.link().add(link.build()).execute().await).with_context(doing)?;
    let own = index(&handle, &bridge.name).await?.with_context(doing)?;
    let up = LinkUnspec::new_with_index(own).up().build();
    handle.link().set(up).execute().await.with_context(doing)?;
    if bridge.is_gateway {
        let gateway = IpAddr::V4(bridge.gateway);
        let added = handle.address().add(own, gateway, bridge.subnet.prefix).execute().await;
        exists_is_fine(added).with_context(|| format!("give {} to {}", bridge.gateway, bridge.name))?;
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("let the node forward (ip_forward)")?;
    masquerade(bridge).await
}

/// Gives what leaves for the outside the node's own address, by nftables.
async fn masquerade(bridge: &Bridge) -> anyhow::Result<()> {
    let rule = match bridge.masquerade {
        Some(inside) => format!(
            "ip saddr {} ip daddr != {inside} ip daddr != 224.0.0.0/4 oifname != \"{}\" masquerade",
            bridge.subnet, bridge.name
        ),
        None => String::new(),
    };
    nft(&format!(
        "{NO_TABLE}\ntable ip coracle_pods {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n    {rule}\n  }}\n}}\n"
    ))
    .await
}

async fn nft(script: &str) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft cannot be started: install nftables")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await?;
    }
    let out = child.wait_with_output().await?;
    if !out.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// Takes away what [`set_up`] made for [`Bridge::of_node`], once no pod is left; what is not there is fine.
///
/// # Errors
/// When the kernel keeps the bridge, or nft cannot be started.
pub async fn take_down() -> anyhow::Result<()> {
    let doing = || format!("take the bridge {OWN} away");
    let handle = connect().with_context(doing)?;
    if let Some(found) = index(&handle, OWN).await? {
        absent_is_fine(handle.link().del(found).execute().await).with_context(doing)?;
    }
    forget().await
}

/// Takes away only the table of rules by which pods leave the node, as for a bridge that a CNI configuration names.
///
/// # Errors
/// When nft cannot be started.
pub async fn forget() -> anyhow::Result<()> {
    nft(&format!("{NO_TABLE}\n")).await
}

/// Connects a pod's network namespace to the bridge, under this address.
pub async fn plug(bridge: &Bridge, sandbox: &str, netns: &Path, address: Ipv4Addr) -> anyhow::Result<()> {
    let name = cable(sandbox);
    let doing = || format!("connect the pod to the bridge {} as {address}", bridge.name);
    let handle = connect().with_context(doing)?;
    let controller = index(&handle, &bridge.name).await?;
    let controller = controller.with_context(|| format!("there is no bridge {}", bridge.name))?;
    let target = File::open(netns).with_context(doing)?;
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").setns_by_fd(target.as_raw_fd());
    let mut link = LinkMessageBuilder::<LinkVeth>::new(&name, "eth0").controller(controller).up();
    if let Some(mtu) = bridge.mtu {
        (peer, link) = (peer.mtu(mtu), link.mtu(mtu));
    }
    let link = link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
    handle.link().add(link.build()).execute().await.with_context(doing)?;
    let bridge = bridge.clone();
    let netns = netns.to_owned();
    let inside = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(dress(&bridge, address)).map_err(|e| io::Error::other(format!("{e:#}")))
    };
    let dressed = tokio::task::spawn_blocking(move || within(&netns, inside)).await?;
    dressed.with_context(doing)
}

/// Inside the pod's namespace: loopback, address, routes.
async fn dress(bridge: &Bridge, address: Ipv4Addr) -> anyhow::Result<()> {
    let handle = connect()?;
    for name in ["lo", "eth0"] {
        let found = index(&handle, name).await?.with_context(|| format!("no device {name}"))?;
        let up = LinkUnspec::new_with_index(found).up().build();
        handle.link().set(up).execute().await.with_context(|| format!("bring {name} up"))?;
    }
    let eth0 = index(&handle, "eth0").await?.context("no device eth0")?;
    handle
        .address()
        .add(eth0, address.into(), bridge.subnet.prefix)
        .execute()
        .await
        .context("add the address")?;
    for route in &bridge.routes {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.base, route.prefix)
            .gateway(bridge.gateway)
            .build();
        handle.route().add(route).execute().await.context("add a route")?;
    }
    Ok(())
}

/// Brings the loopback device of a namespace up, for a pod that is connected to nothing. Blocking.
pub fn bring_loopback_up(netns: &Path) -> io::Result<()> {
    within(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let handle = connect()?;
            let found = index(&handle, "lo").await.map_err(io::Error::other)?.unwrap_or(1);
            let up = LinkUnspec::new_with_index(found).up().build();
            handle.link().set(up).execute().await.map_err(io::Error::other)
        })
    })
}

/// Takes a pod's cable away; again is fine.
pub async fn unplug(sandbox: &str) -> anyhow::Result<()> {
    let handle = connect()?;
    if let Some(found) = index(&handle, &cable(sandbox)).await? {
        absent_is_fine(handle.link().del(found).execute().await).context("remove the pod's cable")?;
    }
    Ok(())
}

fn local(address: Ipv4Addr, device: u32) -> rtnetlink::packet_route::route::RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .output_interface(device)
        .table_id(LOCAL_TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build()
}

/// Makes a pod's address one of this node's own, so that a wasm pod can listen on it; again is fine.
pub async fn add_local(bridge: &Bridge, address: Ipv4Addr) -> anyhow::Result<()> {
    let doing = || format!("make {address} an address of this node");
    let handle = connect().with_context(doing)?;
    let device = index(&handle, &bridge.name).await?;
    let device = device.with_context(|| format!("there is no bridge {}", bridge.name))?;
    exists_is_fine(handle.route().add(local(address, device)).execute().await).with_context(doing)
}

/// Undoes [`add_local`]; again is fine.
pub async fn remove_local(bridge: &Bridge, address: Ipv4Addr) -> anyhow::Result<()> {
    let doing = || format!("take {address} from this node");
    let handle = connect().with_context(doing)?;
    let Some(device) = index(&handle, &bridge.name).await? else { return Ok(()) };
    absent_is_fine(handle.route().del(local(address, device)).execute().await).with_context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly() {
        let subnet: Subnet = "10.22.3.4/16".parse().unwrap();
        assert_eq!(
            (subnet.to_string().as_str(), subnet.first()),
            ("10.22.0.0/16", Ipv4Addr::new(10, 22, 0, 1))
        );
        assert_eq!("0.0.0.0/0".parse::<Subnet>().unwrap().prefix, 0);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        assert!(cable(&"a".repeat(64)).len() <= 15);
    }
}
