//! What an operator sets of a node: reservations, eviction, image collection, logs, static pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use coracle_api::quantity::Quantity;

use crate::cpus::set::Set;
use crate::cpus::{self, Policy};
use crate::eviction::thresholds::Threshold;
use crate::images::gc;
use crate::logs::rotate::Limits;
use crate::pods::sysctls::Allowed;
use crate::{memory, numa};

pub mod options;

/// All of it; the default is a kubelet's.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// Of the node's own programs: not for pods.
    pub kube_reserved: Reserved,
    /// Of the system's programs: not for pods.
    pub system_reserved: Reserved,
    /// When pods are evicted.
    pub eviction: Eviction,
    /// When images are removed.
    pub images: gc::Limits,
    /// How large logs may become.
    pub logs: Limits,
    /// A directory of manifests of static pods, or one such file.
    pub static_pods: Option<PathBuf>,
    /// The end of the node.
    pub shutdown: Shutdown,
    /// Processors of their own for containers.
    pub cpus: Policy,
    /// How that is done.
    pub cpu_options: cpus::options::Options,
    /// Processors that are nobody's own; empty: as many as are reserved in all.
    pub reserved_cpus: Set,
    /// Memory of chosen memory nodes for containers.
    pub memory: memory::Policy,
    /// Memory of those nodes that is not for containers.
    pub reserved_memory: memory::Reserved,
    /// How close together what containers get is to be, and what is counted together.
    pub topology: numa::Settings,
    /// Which groups of options may be used.
    pub gates: options::Gates,
    /// What is reserved is kept from all Linux pods together, not from the scheduler alone.
    pub enforce: bool,
    /// Kernel parameters that pods may set besides the safe ones.
    pub sysctls: Allowed,
    /// Containers that name no seccomp profile get the runtime's.
    pub seccomp_default: bool,
}

impl Tuning {
    /// Reserves processors by their numbers: how many they are counts instead of every other amount of `cpu`.
    pub fn reserve(&mut self, cpus: Set) {
        if !cpus.is_empty() {
            let count = i64::try_from(cpus.len()).unwrap_or(i64::MAX);
            self.kube_reserved.0.remove("cpu");
            self.system_reserved.0.insert("cpu".to_owned(), Quantity::from_value(count));
        }
        self.reserved_cpus = cpus;
    }
}

/// When pods are evicted.
#[derive(Clone, Debug)]
pub struct Eviction {
    /// Hard and soft ones.
    pub thresholds: Vec<Threshold>,
    /// How often signals are read.
    pub period: Duration,
    /// How long a condition of the node stays after its cause.
    pub transition: Duration,
    /// The longest grace of a pod that a soft threshold evicts, in seconds.
    pub max_pod_grace: i64,
    /// A JSON file whose amounts stand in for those of the machine, for rehearsals.
    pub signals: Option<PathBuf>,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            thresholds: crate::eviction::thresholds::defaults(),
            period: Duration::from_secs(10),
            transition: Duration::from_secs(300),
            max_pod_grace: 0,
            signals: None,
        }
    }
}

/// How pods end when the machine does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shutdown {
    /// For all pods together; zero: pods are not ended.
    pub grace: Duration,
    /// The part of it that is kept for critical pods.
    pub critical: Duration,
}

/// Amounts by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved(pub BTreeMap<String, Quantity>);

impl Reserved {
    /// Reads `cpu=100m,memory=256Mi,ephemeral-storage=1Gi,pid=100`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for pair in text.split(',').filter(|p| !p.is_empty()) {
            let (name, amount) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not RESOURCE=AMOUNT"))?;
            if !matches!(name, "cpu" | "memory" | "ephemeral-storage" | "pid") {
                return Err(format!("cannot reserve {name:?}: cpu, memory, ephemeral-storage or pid"));
            }
            let amount = Quantity::parse(amount).map_err(|e| format!("{pair:?}: {e}"))?;
            all.insert(name.to_owned(), amount);
        }
        Ok(Self(all))
    }

    /// As a configuration shows it.
    pub fn words(&self) -> BTreeMap<&str, String> {
        self.0.iter().map(|(name, amount)| (name.as_str(), amount.to_string())).collect()
    }

    /// Millicores.
    pub fn cpu(&self) -> i64 {
        self.0.get("cpu").map_or(0, Quantity::milli_value)
    }

    /// Bytes of `memory` or `ephemeral-storage`.
    pub fn bytes(&self, name: &str) -> i64 {
        self.0.get(name).map_or(0, Quantity::value)
    }
}

/// Reads a duration of Go: `1m30s`, `500ms`, `2h`.
///
/// # Errors
/// What is wrong with the text.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 1m30s");
    let (mut rest, mut sum) = (text, Duration::ZERO);
    if rest == "0" {
        return Ok(sum);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let part = match unit {
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "s" => Some(Duration::from_secs(number)),
            "ms" => Some(Duration::from_millis(number)),
            _ => None,
        };
        sum = part.and_then(|part| sum.checked_add(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_by_number_count_instead_of_amounts() {
        let reserved = |text: &str| Reserved::parse(text).expect("amounts");
        let mut tuning = Tuning {
            kube_reserved: reserved("cpu=100m,memory=1Mi"),
            system_reserved: reserved("cpu=3"),
            ..Tuning::default()
        };
        tuning.reserve(Set::new());
        let left = |tuning: &Tuning| crate::node::object::allocatable([8000, 1 << 30, 0], tuning)[0];
        assert_eq!(left(&tuning), 4900);
        tuning.reserve(Set::from([0, 5]));
        assert_eq!((left(&tuning), tuning.kube_reserved.bytes("memory")), (6000, 1 << 20));
    }

    #[test]
    fn reservations_and_durations() {
        let reserved = Reserved::parse("cpu=100m,memory=256Mi").expect("amounts");
        assert_eq!((reserved.cpu(), reserved.bytes("memory")), (100, 256 << 20));
        assert!(Reserved::parse("cpu").is_err() && Reserved::parse("disk=1").is_err());
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert!(duration("").is_err() && duration("5").is_err() && duration("x").is_err());
    }
}
