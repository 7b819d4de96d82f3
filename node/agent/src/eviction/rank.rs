//! Pure: who is evicted first, and the words of it.

use k8s_openapi::api::core::v1::Pod;

use super::signals::Signal;
use super::thresholds::Crossed;
use crate::pods::state::{init_containers, is_sidecar, main_containers};
use crate::pods::static_pods::is_static;
use coracle_api::quantity::Quantity;

/// Pods of this priority and above keep the cluster alive: they are not evicted.
const CRITICAL: i32 = 2_000_000_000;

/// Whether the node keeps a pod whatever happens: static pods and those of a critical priority.
pub fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || priority(pod) >= CRITICAL
}

/// 0 where nothing is said.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
}

/// What a container asks for, in bytes.
pub fn request(pod: &Pod, container: Option<&str>, resource: &str) -> u64 {
    let sidecars = init_containers(pod).iter().filter(|c| is_sidecar(c));
    let all =
        main_containers(pod).iter().chain(sidecars).filter(|c| container.is_none_or(|name| c.name == name));
    let amounts = all.filter_map(|c| c.resources.as_ref()?.requests.as_ref()?.get(resource));
    amounts.filter_map(|q| u64::try_from(Quantity::parse(&q.0).ok()?.value()).ok()).sum()
}

/// Processes of a pod; where they cannot be counted, as with guests of wasm, every container is one.
pub fn processes(counted: Option<&u64>, containers: &[(String, u64, u64)]) -> u64 {
    let containers = u64::try_from(containers.len()).unwrap_or(u64::MAX);
    counted.map_or(containers, |counted| containers.max(*counted))
}

/// A pod that could be evicted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Its uid.
    pub uid: String,
    /// See [`priority`].
    pub priority: i32,
    /// What it uses of what is short: bytes or processes.
    pub usage: u64,
    /// What it asked for of that; 0 for processes.
    pub request: u64,
    /// The same by container: name, usage, request.
    pub containers: Vec<(String, u64, u64)>,
}

/// The one to be evicted: who uses more than was asked for goes first, then the lower priority, then who is most over it.
pub fn first(signal: Signal, mut candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.sort_by_key(|c| {
        let within = c.usage <= c.request;
        let over = c.usage.saturating_sub(c.request);
        let by_request = signal != Signal::PidAvailable;
        (by_request && within, c.priority, std::cmp::Reverse(if by_request { over } else { c.usage }))
    });
    candidates.into_iter().next()
}

/// As Kubernetes writes amounts of bytes.
fn shown(signal: Signal, amount: u64) -> String {
    if matches!(signal.resource(), "inodes" | "pids") {
        return amount.to_string();
    }
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    // Whole units where it has them; otherwise the largest that loses nothing much.
    let exact = units.iter().find(|(bits, _)| amount > 0 && amount.is_multiple_of(1 << bits));
    let (bits, unit) = exact.copied().unwrap_or((10, "Ki"));
    if amount < 1024 { amount.to_string() } else { format!("{}{unit}", amount >> bits) }
}

/// The words of an eviction.
pub fn message(crossed: &Crossed, chosen: &Candidate) -> String {
    let signal = crossed.threshold.signal;
    let resource = signal.resource();
    let threshold = shown(signal, crossed.threshold.amount.of(crossed.reading.capacity));
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {}. ",
        shown(signal, crossed.reading.available)
    );
    if signal == Signal::PidAvailable {
        return text;
    }
    for (name, usage, request) in chosen.containers.iter().filter(|(_, usage, request)| usage > request) {
        text += &format!(
            "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
            shown(signal, *usage),
            shown(signal, *request)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::signals::Reading;
    use crate::eviction::thresholds::hard;

    #[test]
    fn who_goes_first() {
        let candidate = |uid: &str, priority, usage, request| Candidate {
            uid: uid.into(),
            priority,
            usage,
            request,
            containers: vec![("main".into(), usage, request)],
        };
        let first_of = |signal, all: &[Candidate]| first(signal, all.to_vec()).map(|c| c.uid);
        let guaranteed = candidate("guaranteed", 0, 900, 1000);
        let burstable = candidate("burstable", 0, 300, 100);
        let best_effort = candidate("best-effort", 0, 250, 0);
        let important = candidate("important", 10, 800, 0);
        let all = [guaranteed.clone(), burstable.clone(), best_effort.clone(), important];
        assert_eq!(first_of(Signal::MemoryAvailable, &all).as_deref(), Some("best-effort"));
        let kept = [guaranteed.clone(), candidate("within", 0, 10, 500)];
        assert_eq!(first_of(Signal::MemoryAvailable, &kept).as_deref(), Some("guaranteed"));
        assert_eq!(first_of(Signal::PidAvailable, &all).as_deref(), Some("guaranteed"));
        assert_eq!(first(Signal::MemoryAvailable, Vec::new()), None);
    }

    #[test]
    fn of_processes_the_pod_with_the_most_goes_first() {
        let of = |uid: &str, counted: Option<u64>, containers: usize| Candidate {
            uid: uid.into(),
            usage: processes(counted.as_ref(), &vec![("a".into(), 0, 0); containers]),
            ..Default::default()
        };
        let all = vec![of("wide", Some(3), 3), of("forks", Some(900), 1), of("wasm", None, 4)];
        assert_eq!(all[2].usage, 4);
        assert_eq!(first(Signal::PidAvailable, all).map(|c| c.uid).as_deref(), Some("forks"));
    }

    #[test]
    fn words() {
        let threshold = hard("memory.available<100Mi").expect("a threshold").remove(0);
        let crossed = Crossed { threshold, reading: Reading { available: 50 << 20, capacity: 1 << 30 } };
        let chosen = Candidate {
            containers: vec![("main".into(), 2048, 0), ("fine".into(), 1, 5)],
            ..Default::default()
        };
        assert_eq!(
            message(&crossed, &chosen),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container main was using 2Ki, request is 0, has larger consumption of memory. "
        );
    }
}
