//! Who holds which Service address and which node port.
//!
//! The store is the truth; this is a memory of it, filled at the start. A holder that gave something up without telling (its type
//! changed, its create failed in an odd way) is found out when somebody else wants the same thing, or when the range is full.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use coracle_api::status::Status;
use coracle_apiserver::Objects;
use rand::Rng;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::check::Cidr;
use crate::value::{items, number, text};

/// How long a write may be under way: until then its holder is believed though the store does not show it yet.
const UNDER_WAY: Duration = Duration::from_secs(120);
/// Addresses at the start of a range that are only given to who asks for them.
const STATIC: u128 = 256;
/// Dynamic addresses come from so many at the start of the range.
const DYNAMIC: u128 = 65_536;
/// How often chance is tried before the range is searched.
const GUESSES: usize = 32;
/// The most that is searched.
const SEARCH: u128 = 1 << 20;

/// Why nothing was allocated.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// Outside of the range.
    OutOfRange,
    /// Somebody has it.
    Taken,
    /// Nothing is free.
    Full,
    /// Asking the store failed.
    Failed(Status),
}

/// A Service: namespace and name.
pub type Holder = (String, String);

struct Claim {
    holder: Holder,
    at: Instant,
}

struct Claims<T> {
    held: HashMap<T, Claim>,
}

impl<T: Eq + Hash + Copy> Claims<T> {
    fn new() -> Self {
        Self { held: HashMap::new() }
    }

    fn put(&mut self, what: T, holder: &Holder) {
        self.held.insert(what, Claim { holder: holder.clone(), at: Instant::now() });
    }

    fn release(&mut self, what: T, holder: &Holder) {
        if self.held.get(&what).is_some_and(|c| c.holder == *holder) {
            self.held.remove(&what);
        }
    }

    /// Whether somebody other than `holder` has it, asking the store about claims of some age.
    async fn taken(
        &mut self,
        what: T,
        holder: &Holder,
        objects: &Objects,
        has: impl Fn(&Value) -> bool,
    ) -> Result<bool, Refusal> {
        let Some(claim) = self.held.get(&what) else { return Ok(false) };
        if claim.holder == *holder {
            return Ok(false);
        }
        let (namespace, name) = claim.holder.clone();
        let young = claim.at.elapsed() < UNDER_WAY;
        let found = objects.get("", "services", Some(&namespace), &name).await.map_err(Refusal::Failed)?;
        let gone = !found.as_ref().is_some_and(has);
        if gone && !young {
            self.held.remove(&what);
            return Ok(false);
        }
        Ok(true)
    }
}

struct State {
    addresses: Claims<IpAddr>,
    ports: Claims<u16>,
}

/// Addresses and node ports of Services. One per server; calls are serialised.
pub struct Allocator {
    range: Cidr,
    ports: (u16, u16),
    state: Mutex<State>,
}

/// The addresses that a Service holds.
pub fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = items(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
    all.chain([text(service, "/spec/clusterIP")]).filter_map(|ip| ip.parse().ok()).collect()
}

/// The node ports that a Service holds.
pub fn node_ports(service: &Value) -> Vec<u16> {
    let all = items(service, "/spec/ports").iter().map(|p| number(p, "/nodePort"));
    all.chain([number(service, "/spec/healthCheckNodePort")])
        .filter_map(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
        .collect()
}

/// Namespace and name of a Service.
pub fn holder(service: &Value) -> Holder {
    (text(service, "/metadata/namespace").to_string(), text(service, "/metadata/name").to_string())
}

impl Allocator {
    /// An allocator of addresses of `range` and of ports from the first to the last of `ports`, part of which `services` hold.
    pub fn new(range: Cidr, ports: (u16, u16), services: &[Value]) -> Self {
        let mut state = State { addresses: Claims::new(), ports: Claims::new() };
        for service in services {
            let holder = holder(service);
            addresses(service).into_iter().for_each(|ip| state.addresses.put(ip, &holder));
            node_ports(service).into_iter().for_each(|p| state.ports.put(p, &holder));
        }
        Self { range, ports, state: Mutex::new(state) }
    }

    /// The first and the last node port.
    pub fn port_range(&self) -> (u16, u16) {
        self.ports
    }

    /// Whether the range is of IPv6.
    pub fn is_v6(&self) -> bool {
        self.range.base.is_ipv6()
    }

    /// Takes this address. `keep` false only looks whether it could.
    pub async fn take_address(
        &self,
        ip: IpAddr,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
    ) -> Result<(), Refusal> {
        if !self.range.contains(ip) || ip == self.range.base {
            return Err(Refusal::OutOfRange);
        }
        let mut state = self.state.lock().await;
        if state.addresses.taken(ip, holder, objects, |s| addresses(s).contains(&ip)).await? {
            return Err(Refusal::Taken);
        }
        if keep {
            state.addresses.put(ip, holder);
        }
        Ok(())
    }

    /// Takes any free address.
    pub async fn any_address(
        &self,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
    ) -> Result<IpAddr, Refusal> {
        let mut state = self.state.lock().await;
        let size = self.size();
        let start = if size > STATIC * 2 { STATIC } else { 1 };
        let end = size.min(start + DYNAMIC);
        let guesses: Vec<u128> = {
            let mut rng = rand::rng();
            (0..GUESSES).filter(|_| end > start).map(|_| rng.random_range(start..end)).collect()
        };
        // Guesses first, then everything, the static part last.
        let searched = (start..size.min(SEARCH)).chain(1..start);
        for offset in guesses.into_iter().chain(searched) {
            let Some(ip) = self.address(offset) else { continue };
            if !state.addresses.held.contains_key(&ip) {
                if keep {
                    state.addresses.put(ip, holder);
                }
                return Ok(ip);
            }
        }
        let held: Vec<IpAddr> = state.addresses.held.keys().copied().collect();
        for ip in held {
            let free = !state.addresses.taken(ip, holder, objects, |s| addresses(s).contains(&ip)).await?;
            if free && self.range.contains(ip) {
                if keep {
                    state.addresses.put(ip, holder);
                }
                return Ok(ip);
            }
        }
        Err(Refusal::Full)
    }

    /// Usable offsets are 1 to this, exclusive: neither the first nor, for IPv4, the last address is given out.
    fn size(&self) -> u128 {
        let (width, last) = if self.is_v6() { (128, 0) } else { (32, 1) };
        let bits = width - u32::from(self.range.bits);
        1u128.checked_shl(bits).unwrap_or(u128::MAX).saturating_sub(last)
    }

    fn address(&self, offset: u128) -> Option<IpAddr> {
        match self.range.base {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).ok()?;
                Some(Ipv4Addr::from(u32::from(base).checked_add(offset)?).into())
            }
            IpAddr::V6(base) => Some(Ipv6Addr::from(u128::from(base).checked_add(offset)?).into()),
        }
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
        let mut state = self.state.lock().await;
        if state.ports.taken(port, holder, objects, |s| node_ports(s).contains(&port)).await? {
            return Err(Refusal::Taken);
        }
        if keep {
            state.ports.put(port, holder);
        }
        Ok(())
    }

    /// Takes any free node port but those of `except`.
    pub async fn any_port(
        &self,
        holder: &Holder,
        objects: &Objects,
        keep: bool,
        except: &[i64],
    ) -> Result<u16, Refusal> {
        let mut state = self.state.lock().await;
        let (first, last) = self.ports;
        let guesses: Vec<u16> = {
            let mut rng = rand::rng();
            (0..GUESSES).filter(|_| first <= last).map(|_| rng.random_range(first..=last)).collect()
        };
        for port in guesses.into_iter().chain(first..=last) {
            if except.contains(&i64::from(port)) {
                continue;
            }
            if !state
                .ports
                .taken(port, &Holder::default(), objects, |s| node_ports(s).contains(&port))
                .await?
            {
                if keep {
                    state.ports.put(port, holder);
                }
                return Ok(port);
            }
        }
        Err(Refusal::Full)
    }

    /// Gives back everything of a Service that `but` does not hold.
    pub async fn release(&self, service: &Value, but: Option<&Value>) {
        let holder = holder(service);
        let (kept_ips, kept_ports) = but.map_or_else(Default::default, |s| (addresses(s), node_ports(s)));
        let mut state = self.state.lock().await;
        for ip in addresses(service).into_iter().filter(|ip| !kept_ips.contains(ip)) {
            state.addresses.release(ip, &holder);
        }
        for port in node_ports(service).into_iter().filter(|p| !kept_ports.contains(p)) {
            state.ports.release(port, &holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_store::Store;
    use serde_json::json;
    use std::sync::Arc;

    fn objects() -> Objects {
        let store = Store::in_memory(&coracle_store::Options::new("unused"));
        let options = crate::RegistryOptions::default();
        let resources =
            crate::builtin(&options, &store).unwrap().resources.into_iter().map(Arc::new).collect();
        Objects::new(Arc::new(store), resources)
    }

    fn who(name: &str) -> Holder {
        ("n".into(), name.into())
    }

    #[tokio::test]
    async fn nothing_is_given_twice() {
        let (objects, range) = (objects(), Cidr::parse("127.96.0.0/29").unwrap());
        let a = Allocator::new(range, (30000, 30001), &[]);
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
        let objects = objects();
        let a = Arc::new(Allocator::new(Cidr::parse("127.96.0.0/24").unwrap(), (30000, 32767), &[]));
        let tasks: Vec<_> = (0..200)
            .map(|i| {
                let (a, objects) = (a.clone(), objects.clone());
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
