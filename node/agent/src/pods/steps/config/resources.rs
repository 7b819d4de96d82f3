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
        ..Default::default()
    })
}

/// The same on these processors. Who has some of its own may use them up: a quota would only hold it back.
pub fn on(cpus: Option<Share>, mut resources: cri::LinuxContainerResources) -> cri::LinuxContainerResources {
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
        let two = pod(json!([{"name": "a", "resources": limited}, {"name": "b"}]));
        let both = sandbox(&two, 1 << 30);
        assert_eq!((both.memory_limit_in_bytes, both.cpu_quota, both.cpu_shares), (0, 0, 514));
    }
}
