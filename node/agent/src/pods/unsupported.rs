//! Promises of a pod that this node cannot keep: it is refused, not run without them.

use k8s_openapi::api::core::v1::Pod;

/// The first field that asks for something this node does not do.
pub fn field(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if spec.active_deadline_seconds.is_some() {
        return Some("spec.activeDeadlineSeconds".to_owned());
    }
    let lists = [
        ("initContainers", spec.init_containers.as_deref()),
        ("containers", Some(spec.containers.as_slice())),
    ];
    lists.into_iter().find_map(|(list, containers)| {
        let at = containers?.iter().position(|one| one.lifecycle.is_some())?;
        Some(format!("spec.{list}[{at}].lifecycle"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hooks_and_deadlines_are_named() {
        let named = |spec: serde_json::Value| {
            field(&serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap())
        };
        assert_eq!(named(json!({"containers": [{"name": "a"}]})), None);
        let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
        let spec = json!({"containers": [{"name": "a"}, {"name": "b", "lifecycle": hook}]});
        assert_eq!(named(spec).as_deref(), Some("spec.containers[1].lifecycle"));
        let spec = json!({"containers": [{"name": "a"}], "activeDeadlineSeconds": 5});
        assert_eq!(named(spec).as_deref(), Some("spec.activeDeadlineSeconds"));
    }
}
