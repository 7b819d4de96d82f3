//! Promises of a pod that this node cannot keep: it is refused, not run without them.

use k8s_openapi::api::core::v1::Pod;

/// The first field that asks for something this node does not do.
pub fn field(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if spec.host_users == Some(false) {
        return Some("spec.hostUsers".to_owned());
    }
    let lists = [
        ("initContainers", spec.init_containers.as_deref()),
        ("containers", Some(spec.containers.as_slice())),
    ];
    lists.into_iter().find_map(|(list, containers)| {
        let signal = |one: &k8s_openapi::api::core::v1::Container| {
            one.lifecycle.as_ref().is_some_and(|l| l.stop_signal.is_some())
        };
        let at = containers?.iter().position(signal)?;
        Some(format!("spec.{list}[{at}].lifecycle.stopSignal"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_refused_is_named() {
        let named = |spec: serde_json::Value| {
            field(&serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap())
        };
        let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
        assert_eq!(named(json!({"containers": [{"name": "a", "lifecycle": hook}]})), None);
        let spec =
            json!({"containers": [{"name": "a"}, {"name": "b", "lifecycle": {"stopSignal": "SIGUSR1"}}]});
        assert_eq!(named(spec).as_deref(), Some("spec.containers[1].lifecycle.stopSignal"));
        assert_eq!(named(json!({"containers": [], "hostUsers": false})).as_deref(), Some("spec.hostUsers"));
    }
}
