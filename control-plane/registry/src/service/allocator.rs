//! Which Service address and which node port a Service gets. What is given out is claimed in the store, before the Service is
//! written: see [`claim`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use coracle_api::meta;
use coracle_apiserver::Objects;
use coracle_store::Range;
use rand::Rng;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::claim::{self, ADDRESSES, Claim, What, failed, stale, take, taken};
pub use super::claim::{Holder, Refusal, holder};
use crate::check::Cidr;
use crate::networking::{self, service_cidr};
use crate::value::{items, text};

/// Addresses at the start of a range that are only given to who asks for them.
const STATIC: u128 = 256;
/// Dynamic addresses come from so many at the start of the range.
const DYNAMIC: u128 = 65_536;
/// How often chance is tried before the range is searched.
const GUESSES: usize = 32;
/// The most that is searched.
const SEARCH: u128 = 1 << 20;

/// Addresses and node ports of Services.
pub struct Allocator {
    /// Whether addresses are of IPv6.
    v6: bool,
    ports: (u16, u16),
    /// Set when every Service that was there before this server has its claims.
    ready: OnceCell<()>,
}

impl Allocator {
    /// An allocator of addresses of one family, and of ports from the first to the last of `ports`.
    pub fn new(v6: bool, ports: (u16, u16)) -> Self {
        Self { v6, ports, ready: OnceCell::new() }
    }

    /// Sees to it that Services that were made without claims, by an older version, have theirs.
    async fn ready(&self, objects: &Objects) -> Result<(), Refusal> {
        let claimed = self.ready.get_or_try_init(|| async {
            for service in objects.list("", "services", None).await.map_err(Refusal::Failed)? {
                let holder = holder(&service);
                for what in What::of(&service) {
                    if objects.store().get(&what.key()).is_none() {
                        claim::claim(what, &holder, objects).await?;
                    }
                }
            }
            Ok(())
        });
        claimed.await.copied()
    }

    /// The first and the last node port.
    pub fn port_range(&self) -> (u16, u16) {
        self.ports
    }

    /// Whether addresses are of IPv6.
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    /// Takes this address. `keep` false only looks whether it could.
    pub async fn take_address(
        &self,
        ip: IpAddr,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
    ) -> Result<(), Refusal> {
        let ranges = self.ranges(objects).await?;
        if !ranges.iter().any(|range| range.contains(ip) && ip != range.base) {
            return Err(Refusal::OutOfRange);
        }
        self.ready(objects).await?;
        if take(What::Address(ip), holder, objects, keep).await? { Ok(()) } else { Err(Refusal::Taken) }
    }

    /// Takes any free address.
    pub async fn any_address(
        &self,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
    ) -> Result<IpAddr, Refusal> {
        self.ready(objects).await?;
        for range in self.ranges(objects).await? {
            if let Some(ip) = any_of(range, holder, objects, keep).await? {
                return Ok(ip);
            }
        }
        Err(Refusal::Full)
    }

    /// The ranges of Service addresses: those of the ServiceCIDRs of its family, that of the server first, then the oldest
    /// first. One that is being deleted gives out nothing more.
    async fn ranges(&self, objects: &Objects) -> Result<Vec<Cidr>, Refusal> {
        let found = objects.list(networking::GROUP, service_cidr::PLURAL, None).await;
        let mut found = found.map_err(Refusal::Failed)?;
        found.retain(|o| meta::deletion_timestamp(o).is_none());
        found.sort_by_key(|o| {
            (meta::name(o) != Some(service_cidr::DEFAULT), text(o, "/metadata/creationTimestamp").to_owned())
        });
        let ranges = found.iter().flat_map(|o| items(o, "/spec/cidrs")).filter_map(Value::as_str);
        Ok(ranges.filter_map(Cidr::parse).filter(|range| range.base.is_ipv6() == self.v6).collect())
    }

    /// Takes this node port.
    pub async fn take_port(
        &self,
        port: i64,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
    ) -> Result<(), Refusal> {
        let Some(port) = u16::try_from(port).ok().filter(|p| (self.ports.0..=self.ports.1).contains(p))
        else {
            return Err(Refusal::OutOfRange);
        };
        self.ready(objects).await?;
        if take(What::Port(port), holder, objects, keep).await? { Ok(()) } else { Err(Refusal::Taken) }
    }

    /// Takes any free node port but those of `except`.
    pub async fn any_port(
        &self,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
        except: &[i64],
    ) -> Result<u16, Refusal> {
        self.ready(objects).await?;
        let (first, last) = self.ports;
        let guesses: Vec<u16> = {
            let mut rng = rand::rng();
            (0..GUESSES).filter(|_| first <= last).map(|_| rng.random_range(first..=last)).collect()
        };
        for port in guesses.into_iter().chain(first..=last) {
            let what = What::Port(port);
            // One that this Service holds already is for another of its ports.
            let free =
                !except.contains(&i64::from(port)) && !taken(what, &Holder::default(), objects).await?;
            if free && take(what, holder, objects, keep).await? {
                return Ok(port);
            }
        }
        Err(Refusal::Full)
    }

    /// Gives back everything of a Service that neither `but` nor the Service as it is stored holds. What cannot be given
    /// back now is found out later.
    pub async fn release(&self, service: &Value, but: Option<&Value>, objects: &Objects) {
        let (namespace, name) = holder(service);
        let Ok(stored) = objects.get("", "services", Some(&namespace), &name).await else { return };
        for what in What::of(service) {
            if but.is_some_and(|but| what.held_by(but)) || stored.as_ref().is_some_and(|s| what.held_by(s)) {
                continue;
            }
            let Some(kv) = objects.store().get(&what.key()) else { continue };
            if !Claim::of(&kv).is_some_and(|claim| claim.is_of(&(namespace.clone(), name.clone()))) {
                continue;
            }
            if let Err(error) = objects.store().txn(claim::unclaim(what, kv.mod_revision)).await {
                tracing::debug!(%error, namespace, name, "a claim is given back later");
            }
        }
    }
}

/// Takes any free address of a range, if it has one.
async fn any_of(
    range: Cidr,
    holder: &Holder,
    objects: &Objects,
    keep: bool,
) -> Result<Option<IpAddr>, Refusal> {
    let size = size(range);
    let start = if size > STATIC * 2 { STATIC } else { 1 };
    let end = size.min(start + DYNAMIC);
    let guesses: Vec<u128> = {
        let mut rng = rand::rng();
        (0..GUESSES).filter(|_| end > start).map(|_| rng.random_range(start..end)).collect()
    };
    // Guesses first, then everything, the static part last.
    let searched = (start..size.min(SEARCH)).chain(1..start);
    for offset in guesses.into_iter().chain(searched) {
        let Some(ip) = address(range, offset) else { continue };
        let what = What::Address(ip);
        if objects.store().get(&what.key()).is_none() && take(what, holder, objects, keep).await? {
            return Ok(Some(ip));
        }
    }
    let held = objects.store().range(&Range::prefix(ADDRESSES)).map_err(failed)?;
    for kv in held.kvs {
        let text = kv.key.get(ADDRESSES.len()..).and_then(|key| std::str::from_utf8(key).ok());
        let Some(ip) = text.and_then(|text| text.parse().ok()) else { continue };
        let what = What::Address(ip);
        let free = range.contains(ip) && stale(what, Claim::of(&kv).as_ref(), objects).await?;
        if free && take(what, holder, objects, keep).await? {
            return Ok(Some(ip));
        }
    }
    Ok(None)
}

/// Usable offsets are 1 to this, exclusive: neither the first nor, for IPv4, the last address is given out.
fn size(range: Cidr) -> u128 {
    let (width, last) = if range.base.is_ipv6() { (128, 0) } else { (32, 1) };
    let bits = width - u32::from(range.bits);
    1u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(last)
}

fn address(range: Cidr, offset: u128) -> Option<IpAddr> {
    match range.base {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).ok()?;
            Some(Ipv4Addr::from(u32::from(base).checked_add(offset)?).into())
        }
        IpAddr::V6(base) => Some(Ipv6Addr::from(u128::from(base).checked_add(offset)?).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_store::Store;
    use serde_json::json;
    use std::sync::Arc;

    async fn objects(range: &str) -> Objects {
        let store = Store::in_memory(&coracle_store::Options::new("unused"));
        let options = crate::RegistryOptions::default();
        let resources =
            crate::builtin(&options, &store).unwrap().resources.into_iter().map(Arc::new).collect();
        let objects = Objects::new(Arc::new(store), resources);
        let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": service_cidr::DEFAULT}, "spec": {"cidrs": [range]}});
        let (key, stored) = objects.stored(networking::GROUP, service_cidr::PLURAL, &cidr).unwrap();
        objects.store().txn(coracle_store::Txn::create(key, stored, None)).await.unwrap();
        objects
    }

    fn who(name: &str) -> Holder {
        ("n".into(), name.into())
    }

    #[tokio::test]
    async fn nothing_is_given_twice() {
        let objects = objects("127.96.0.0/29").await;
        let range = Cidr::parse("127.96.0.0/29").unwrap();
        let a = Allocator::new(false, (30000, 30001));
        let mut seen = Vec::new();
        for i in 0..6 {
            let ip = a.any_address(&who(&i.to_string()), &objects, true).await.unwrap();
            assert!(!seen.contains(&ip) && range.contains(ip) && ip != range.base, "{ip}");
            seen.push(ip);
        }
        assert_eq!(a.any_address(&who("x"), &objects, true).await, Err(Refusal::Full));
        assert_eq!(a.take_address(seen[0], &who("x"), &objects, true).await, Err(Refusal::Taken));
        assert_eq!(
            a.take_address("10.0.0.1".parse().unwrap(), &who("x"), &objects, true).await,
            Err(Refusal::OutOfRange)
        );
        a.release(
            &json!({"metadata": {"namespace": "n", "name": "0"}, "spec": {"clusterIP": seen[0].to_string()}}),
            None,
            &objects,
        )
        .await;
        assert_eq!(a.any_address(&who("x"), &objects, true).await, Ok(seen[0]));
        let p = a.any_port(&who("a"), &objects, true, &[]).await.unwrap();
        let q = a.any_port(&who("b"), &objects, true, &[]).await.unwrap();
        assert_ne!(p, q);
        assert_eq!(a.any_port(&who("c"), &objects, true, &[]).await, Err(Refusal::Full));
        assert_eq!(a.take_port(80, &who("c"), &objects, true).await, Err(Refusal::OutOfRange));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_given_twice_at_once() {
        let objects = objects("127.96.0.0/24").await;
        // As two servers would.
        let a: Vec<_> = (0..2).map(|_| Arc::new(Allocator::new(false, (30000, 32767)))).collect();
        let tasks: Vec<_> = (0..200)
            .map(|i| {
                let (a, objects) = (a[i % 2].clone(), objects.clone());
                tokio::spawn(
                    async move { a.any_address(&who(&i.to_string()), &objects, true).await.unwrap() },
                )
            })
            .collect();
        let mut seen = std::collections::HashSet::new();
        for task in tasks {
            assert!(seen.insert(task.await.unwrap()));
        }
    }
}
