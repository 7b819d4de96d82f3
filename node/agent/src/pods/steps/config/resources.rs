//! Pure: requests and limits of containers as cgroup values.

use coracle_api::quantity::Quantity;
use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::cpus::Share;

const PERIOD: i64 = 100_000;

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

/// What a container may use.
///
/// # Errors
/// A quantity that cannot be read.
pub fn container(
    pod: &Pod,
    spec: &Container,
    node_memory: i64,
) -> Result<cri::LinuxContainerResources, String> {
    let limit = amount(spec, true, "cpu")?.map(|q| q.milli_value()).filter(|m| *m > 0);
    let request = amount(spec, false, "cpu")?.map(|q| q.milli_value()).or(limit).unwrap_or(0);
    let memory = amount(spec, true, "memory")?.map_or(0, |q| q.value());
    Ok(cri::LinuxContainerResources {
        cpu_period: if limit.is_some() { PERIOD } else { 0 },
        cpu_quota: limit.map_or(0, |milli| milli.saturating_mul(PERIOD / 1000).max(1000)),
        cpu_shares: (request.saturating_mul(1024) / 1000).max(2),
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

/// What all main containers of a pod together may use: a limit holds only where each has one.
pub fn sandbox(pod: &Pod, node_memory: i64) -> cri::LinuxContainerResources {
    let specs = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
    let mut sum = cri::LinuxContainerResources::default();
    let (mut cpu, mut memory) = (true, true);
    for one in specs.iter().filter_map(|spec| container(pod, spec, node_memory).ok()) {
        sum.cpu_shares = sum.cpu_shares.saturating_add(one.cpu_shares);
        (cpu, memory) = (cpu && one.cpu_quota > 0, memory && one.memory_limit_in_bytes > 0);
        sum.cpu_quota = sum.cpu_quota.saturating_add(one.cpu_quota);
        sum.memory_limit_in_bytes = sum.memory_limit_in_bytes.saturating_add(one.memory_limit_in_bytes);
    }
    cri::LinuxContainerResources {
        cpu_period: if cpu { PERIOD } else { 0 },
        cpu_quota: if cpu { sum.cpu_quota } else { 0 },
        memory_limit_in_bytes: if memory { sum.memory_limit_in_bytes } else { 0 },
        ..sum
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
        assert_eq!(sandbox(&one, 1 << 30).memory_limit_in_bytes, 4 << 30);
        let share = Share { cpus: "2-3".into(), exclusive: true };
        let placed = on(Some(share), "1".into(), made);
        assert_eq!((placed.cpuset_cpus.as_str(), placed.cpuset_mems.as_str()), ("2-3", "1"));
        assert_eq!((placed.cpu_quota, placed.memory_limit_in_bytes), (0, 4 << 30));
        let two = pod(json!([{"name": "a", "resources": limited}, {"name": "b"}]));
        let both = sandbox(&two, 1 << 30);
        assert_eq!((both.memory_limit_in_bytes, both.cpu_quota, both.cpu_shares), (0, 0, 514));
    }
}
