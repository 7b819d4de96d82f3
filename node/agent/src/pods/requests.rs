//! Pure: what a pod asks for in all, as the scheduler counts it.

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use std::collections::BTreeMap;

use super::state::{init_containers, is_sidecar, main_containers};

/// Millicores, bytes of memory, bytes of ephemeral storage.
pub type Amounts = [i64; 3];

/// The resources that [`Amounts`] are of.
pub const NAMES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let of = |name: &str| list.and_then(|l| l.get(name)).and_then(|q| Quantity::parse(&q.0).ok());
    NAMES.map(|name| of(name).map_or(0, |q| if name == "cpu" { q.milli_value() } else { q.value() }))
}

fn of(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

fn limits(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

fn join(a: Amounts, b: Amounts, with: fn(i64, i64) -> i64) -> Amounts {
    std::array::from_fn(|at| {
        let one = |of: Amounts| of.get(at).copied().unwrap_or(0);
        with(one(a), one(b))
    })
}

/// The sum of main containers and sidecars, or what an init container needs beside the sidecars before it.
fn total(pod: &Pod, of: fn(&Container) -> Amounts) -> Amounts {
    let (mut sidecars, mut init) = (Amounts::default(), Amounts::default());
    for spec in init_containers(pod) {
        if is_sidecar(spec) {
            sidecars = join(sidecars, of(spec), i64::saturating_add);
            init = join(init, sidecars, i64::max);
        } else {
            init = join(init, join(sidecars, of(spec), i64::saturating_add), i64::max);
        }
    }
    let mains = main_containers(pod).iter().map(of).fold(sidecars, |a, b| join(a, b, i64::saturating_add));
    join(mains, init, i64::max)
}

fn own(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref().and_then(|s| s.resources.as_ref())
}

/// What its containers ask for together; what the pod itself asks for counts instead.
pub fn of_containers(pod: &Pod) -> Amounts {
    let all = total(pod, of);
    let Some(own) = own(pod).and_then(|r| r.requests.as_ref()) else { return all };
    let said = amounts(Some(own));
    std::array::from_fn(|at| {
        let named = NAMES.get(at).is_some_and(|name| own.contains_key(*name));
        if named { said.get(at) } else { all.get(at) }.copied().unwrap_or(0)
    })
}

/// The same with the pod's overhead.
pub fn of_pod(pod: &Pod) -> Amounts {
    join(of_containers(pod), overhead(pod), i64::saturating_add)
}

/// What the pod takes besides its containers.
pub fn overhead(pod: &Pod) -> Amounts {
    amounts(pod.spec.as_ref().and_then(|s| s.overhead.as_ref()))
}

/// What its containers may use together, without overhead: of what each of them has a limit, or the pod itself.
pub fn limits_of_containers(pod: &Pod) -> [Option<i64>; 3] {
    let (all, said) = (set(total(pod, limits)), own_limits(pod));
    let each: Vec<_> = init_containers(pod).iter().chain(main_containers(pod)).map(limits).map(set).collect();
    std::array::from_fn(|at| {
        let of = |amounts: &[Option<i64>; 3]| amounts.get(at).copied().flatten();
        of(&said).or_else(|| of(&all).filter(|_| each.iter().all(|one| of(one).is_some())))
    })
}

/// The limits of the pod itself.
pub fn own_limits(pod: &Pod) -> [Option<i64>; 3] {
    set(amounts(own(pod).and_then(|r| r.limits.as_ref())))
}

fn set(amounts: Amounts) -> [Option<i64>; 3] {
    amounts.map(|amount| Some(amount).filter(|n| *n > 0))
}

/// The first resource of which there is not enough: its name, what is asked for, used and there.
pub fn lacking(asked: Amounts, used: Amounts, capacity: Amounts) -> Option<(&'static str, i64, i64, i64)> {
    let all = NAMES.iter().zip(asked).zip(used).zip(capacity);
    let mut rows = all.map(|(((name, asked), used), capacity)| (*name, asked, used, capacity));
    rows.find(|(_, asked, used, capacity)| *asked > 0 && used.saturating_add(*asked) > *capacity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sums_and_what_is_lacking() {
        let cpu = |name: &str, cpu: &str, more: serde_json::Value| {
            let mut c = json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
            if let (Some(c), Some(more)) = (c.as_object_mut(), more.as_object()) {
                c.extend(more.clone());
            }
            c
        };
        let none = || json!({});
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "initContainers": [cpu("i", "700m", none()), cpu("s", "100m", json!({"restartPolicy": "Always"})),
                cpu("j", "650m", none())],
            "containers": [cpu("a", "200m", none()), cpu("b", "300m", none())], "overhead": {"cpu": "5m"},
        }}))
        .expect("a Pod");
        assert_eq!((of_pod(&pod), of_containers(&pod)), ([755, 0, 0], [750, 0, 0]));
        assert_eq!(lacking([755, 0, 0], [300, 9, 9], [1000, 5, 5]), Some(("cpu", 755, 300, 1000)));
        assert_eq!(lacking([700, 0, 0], [300, 9, 9], [1000, 5, 5]), None);
    }

    #[test]
    fn limits_hold_where_each_container_has_one_or_the_pod() {
        let pod = |init: &str, own: serde_json::Value| -> Pod {
            let limits = |limits: serde_json::Value| json!({"limits": limits});
            let init = if init.is_empty() { json!({}) } else { limits(json!({"cpu": init})) };
            serde_json::from_value(json!({"metadata": {}, "spec": {"resources": own,
                "initContainers": [{"name": "i", "resources": init}], "containers": [
                {"name": "a", "resources": limits(json!({"cpu": "200m", "memory": "1Mi"}))},
                {"name": "b", "resources": limits(json!({"cpu": "300m"}))}]}}))
            .expect("a Pod")
        };
        assert_eq!(limits_of_containers(&pod("100m", json!({}))), [Some(500), None, None]);
        assert_eq!(limits_of_containers(&pod("2", json!({}))), [Some(2000), None, None]);
        assert_eq!(limits_of_containers(&pod("", json!({}))), [None, None, None]);
        let own = json!({"limits": {"cpu": "3", "memory": "4Mi"}});
        assert_eq!(limits_of_containers(&pod("", own)), [Some(3000), Some(4 << 20), None]);
    }
}
