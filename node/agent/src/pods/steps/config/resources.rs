//! Pure: requests and limits of containers as cgroup values.

use coracle_api::quantity::Quantity;
use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cpus::Share;
use crate::pods::requests;

const PERIOD: i64 = 100_000;

/// The least weight of control groups: of who asks for nothing.
const LEAST_SHARES: i64 = 2;

/// Millicores as a weight: 1024 a processor.
fn shares(milli: i64) -> i64 {
    (milli.saturating_mul(1024) / 1000).max(LEAST_SHARES)
}

/// Millicores as microseconds of a period; the kernel takes no less than a hundredth of one.
fn quota(milli: i64) -> i64 {
    milli.saturating_mul(PERIOD / 1000).max(PERIOD / 100)
}

fn amount(spec: &Container, limits: bool, name: &str) -> Result<Option<Quantity>, String> {
    let resources = spec.resources.as_ref();
    let list = resources.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
    let quantity = list.and_then(|l| l.get(name));
    quantity.map(|q| Quantity::parse(&q.0).map_err(|e| format!("{name} {:?}: {e}", q.0))).transpose()
}

/// How readily the kernel ends a container when memory is short, by the pod's class: -997 to 1000.
fn oom_score(pod: &Pod, spec: &Container, node_memory: i64) -> i64 {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => -997,
        Some("Burstable") => {
            let request = amount(spec, false, "memory").ok().flatten().map_or(0, |q| q.value());
            let share = i128::from(request).saturating_mul(1000) / i128::from(node_memory.max(1));
            (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
        _ => 1000,
    }
}

/// The size of huge pages that a resource (`hugepages-2Mi`) is of, in the words of control groups: `2MB`.
pub fn page_size(resource: &str) -> Option<String> {
    let size = Quantity::parse(resource.strip_prefix("hugepages-")?).ok()?.value();
    let (mut amount, mut unit) = (u64::try_from(size).ok()?, 0);
    while amount >= 1024 && unit < 3 {
        (amount, unit) = (amount / 1024, unit + 1);
    }
    Some(format!("{amount}{}", ["B", "KB", "MB", "GB"].get(unit)?))
}

/// The huge pages that a container asks for.
fn huge_pages(spec: &Container) -> Vec<cri::HugepageLimit> {
    let limits = spec.resources.iter().flat_map(|r| r.limits.iter().flatten());
    let of = limits.filter_map(|(name, amount)| {
        let limit = u64::try_from(Quantity::parse(&amount.0).ok()?.value()).ok()?;
        Some(cri::HugepageLimit { page_size: page_size(name)?, limit })
    });
    of.collect()
}

/// The same with none of the huge pages of these sizes that are not asked for: what is not limited can be used up.
pub fn no_other_pages(
    sizes: &[String],
    mut resources: cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let limits = &mut resources.hugepage_limits;
    for size in sizes {
        if !limits.iter().any(|one| one.page_size == *size) {
            limits.push(cri::HugepageLimit { page_size: size.clone(), limit: 0 });
        }
    }
    resources
}

/// What a container may use; where it has no limit, that of its pod.
///
/// # Errors
/// A quantity that cannot be read.
pub fn container(
    pod: &Pod,
    spec: &Container,
    node_memory: i64,
) -> Result<cri::LinuxContainerResources, String> {
    let own = amount(spec, true, "cpu")?.map(|q| q.milli_value()).filter(|m| *m > 0);
    let request = amount(spec, false, "cpu")?.map(|q| q.milli_value()).or(own).unwrap_or(0);
    let memory = amount(spec, true, "memory")?.map(|q| q.value()).filter(|m| *m > 0);
    let [shared_cpu, shared_memory, _] = requests::own_limits(pod);
    let (limit, memory) = (own.or(shared_cpu), memory.or(shared_memory).unwrap_or(0));
    Ok(cri::LinuxContainerResources {
        cpu_period: if limit.is_some() { PERIOD } else { 0 },
        cpu_quota: limit.map_or(0, quota),
        cpu_shares: shares(request),
        memory_limit_in_bytes: memory,
        // No swap beyond the limit.
        memory_swap_limit_in_bytes: memory,
        oom_score_adj: oom_score(pod, spec, node_memory),
        hugepage_limits: huge_pages(spec),
        ..Default::default()
    })
}

/// The same on these processors and with memory of these memory nodes (empty: all). Who has processors of its own may use
/// them up: a quota would only hold it back.
pub fn on(
    cpus: Option<Share>,
    mems: String,
    mut resources: cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    resources.cpuset_mems = mems;
    if let Some(share) = cpus {
        resources.cpuset_cpus = share.cpus;
        if share.exclusive {
            (resources.cpu_quota, resources.cpu_period) = (0, 0);
        }
    }
    resources
}

/// What all containers of a pod together may use: a limit holds only where each has one, or the pod itself. Who has
/// processors of its own may use them up: then there is no quota.
pub fn sandbox(pod: &Pod, own_cpus: bool) -> cri::LinuxContainerResources {
    let [request, ..] = requests::of_containers(pod);
    let [cpu, memory, _] = requests::limits_of_containers(pod);
    let cpu = cpu.filter(|_| !own_cpus);
    cri::LinuxContainerResources {
        cpu_shares: shares(request),
        cpu_quota: cpu.map_or(0, quota),
        cpu_period: if cpu.is_some() { PERIOD } else { 0 },
        memory_limit_in_bytes: memory.unwrap_or(0),
        ..Default::default()
    }
}

/// What a pod takes besides its containers, if anything.
pub fn overhead(pod: &Pod) -> Option<cri::LinuxContainerResources> {
    let [cpu, memory, _] = requests::overhead(pod);
    (cpu > 0 || memory > 0).then(|| cri::LinuxContainerResources {
        cpu_shares: if cpu > 0 { shares(cpu) } else { 0 },
        cpu_quota: if cpu > 0 { quota(cpu) } else { 0 },
        cpu_period: PERIOD,
        memory_limit_in_bytes: memory,
        ..Default::default()
    })
}

/// Room for both: of each limit the larger one, or none where one has none.
pub fn wider(
    one: &cri::LinuxContainerResources,
    other: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let limit = |a: i64, b: i64| if a > 0 && b > 0 { a.max(b) } else { 0 };
    cri::LinuxContainerResources {
        cpu_shares: one.cpu_shares.max(other.cpu_shares),
        cpu_quota: limit(one.cpu_quota, other.cpu_quota),
        cpu_period: PERIOD,
        memory_limit_in_bytes: limit(one.memory_limit_in_bytes, other.memory_limit_in_bytes),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn huge_pages_are_limited_by_their_size() {
        let spec: Container = serde_json::from_value(json!({"name": "a", "resources":
            {"limits": {"hugepages-2Mi": "64Mi", "hugepages-1Gi": "1Gi", "memory": "1Gi"}}}))
        .expect("a container");
        let made = huge_pages(&spec);
        let made: Vec<_> = made.iter().map(|one| (one.page_size.as_str(), one.limit)).collect();
        assert_eq!(made, [("1GB", 1 << 30), ("2MB", 64 << 20)]);
        assert_eq!(page_size("hugepages-2048Ki").as_deref(), Some("2MB"));
        assert_eq!((page_size("hugepages-64Ki").as_deref(), page_size("memory")), (Some("64KB"), None));
    }

    #[test]
    fn huge_pages_that_are_not_named_are_not_had() {
        let sizes = ["hugepages-1Gi", "hugepages-2Mi"].map(|name| page_size(name).expect("a size"));
        let limits = |resources: serde_json::Value| {
            let spec = json!({"name": "a", "resources": resources});
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [spec]}}))
                .expect("a Pod");
            let of = crate::pods::steps::config::Ingredients { page_sizes: &sizes, ..Default::default() };
            let made =
                crate::pods::steps::config::container(&pod, &pod.spec.as_ref().unwrap().containers[0], of);
            let limits = made.unwrap().linux.unwrap().resources.unwrap().hugepage_limits;
            limits.into_iter().map(|one| (one.page_size, one.limit)).collect::<Vec<_>>()
        };
        let none = [("1GB".to_owned(), 0), ("2MB".to_owned(), 0)];
        assert_eq!(limits(json!({})), none);
        assert_eq!(limits(json!({"limits": {"memory": "1Gi"}})), none);
        let some = [("2MB".to_owned(), 64 << 20), ("1GB".to_owned(), 0)];
        assert_eq!(limits(json!({"limits": {"hugepages-2Mi": "64Mi"}})), some);
    }

    #[test]
    fn limits_become_cgroup_values() {
        let limited =
            json!({"limits": {"cpu": "1", "memory": "4Gi"}, "requests": {"cpu": "0.5", "memory": "500Mi"}});
        let pod = |containers: serde_json::Value| -> Pod {
            let status = json!({"qosClass": "Burstable"});
            serde_json::from_value(
                json!({"metadata": {}, "spec": {"containers": containers}, "status": status}),
            )
            .expect("a Pod")
        };
        let one = pod(json!([{"name": "a", "resources": limited}]));
        let made = container(&one, &one.spec.as_ref().expect("a spec").containers[0], 1000 << 20)
            .expect("resources");
        assert_eq!((made.cpu_quota, made.cpu_period, made.cpu_shares), (100_000, 100_000, 512));
        assert_eq!((made.memory_limit_in_bytes, made.oom_score_adj), (4 << 30, 500));
        let alone = sandbox(&one, false);
        assert_eq!((alone.cpu_shares, alone.cpu_quota, alone.memory_limit_in_bytes), (512, 100_000, 4 << 30));
        assert_eq!(sandbox(&one, true).cpu_quota, 0, "its processors are its own");
        let share = Share { cpus: "2-3".into(), exclusive: true };
        let placed = on(Some(share), "1".into(), made);
        assert_eq!((placed.cpuset_cpus.as_str(), placed.cpuset_mems.as_str()), ("2-3", "1"));
        assert_eq!((placed.cpu_quota, placed.memory_limit_in_bytes), (0, 4 << 30));
        let two = pod(json!([{"name": "a", "resources": limited}, {"name": "b"}]));
        let both = sandbox(&two, false);
        assert_eq!((both.memory_limit_in_bytes, both.cpu_quota, both.cpu_shares), (0, 0, 512));
        assert_eq!(sandbox(&pod(json!([{"name": "b"}, {"name": "c"}])), false).cpu_shares, 2, "BestEffort");
    }

    #[test]
    fn limits_of_the_pod_are_those_of_containers_without() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}},
            "overhead": {"cpu": "250m", "memory": "120Mi"},
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "500m"}}}, {"name": "b"}]}}))
        .expect("a Pod");
        let of = |at: usize| {
            let spec = &pod.spec.as_ref().expect("a spec").containers[at];
            let made = container(&pod, spec, 1 << 30).expect("resources");
            (made.cpu_shares, made.cpu_quota, made.memory_limit_in_bytes)
        };
        assert_eq!((of(0), of(1)), ((512, 50_000, 1 << 30), (2, 200_000, 1 << 30)));
        let all = sandbox(&pod, false);
        assert_eq!((all.cpu_shares, all.cpu_quota, all.memory_limit_in_bytes), (1024, 200_000, 1 << 30));
        let besides = overhead(&pod).expect("overhead");
        assert_eq!((besides.cpu_shares, besides.memory_limit_in_bytes), (256, 120 << 20));
        assert_eq!(wider(&all, &besides).cpu_quota, 200_000);
        assert_eq!(wider(&all, &cri::LinuxContainerResources::default()).memory_limit_in_bytes, 0);
    }
}
