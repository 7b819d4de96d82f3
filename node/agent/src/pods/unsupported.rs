//! Promises of a pod that this node cannot keep: it is refused, not run without them.

use k8s_openapi::api::core::v1::Pod;

/// The first field that asks for something this node does not do.
pub fn field(pod: &Pod) -> Option<String> {
    let mapped = pod.spec.as_ref()?.host_users == Some(false);
    mapped.then(|| "spec.hostUsers".to_owned())
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
        assert_eq!(named(json!({"containers": [{"name": "a"}]})), None);
        assert_eq!(named(json!({"containers": [], "hostUsers": false})).as_deref(), Some("spec.hostUsers"));
    }
}
