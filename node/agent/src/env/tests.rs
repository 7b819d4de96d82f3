use serde_json::json;

use super::*;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x"}},
        "spec": {"nodeName": "node-1", "containers": [{"name": "a", "resources": {"limits": {"memory": "64Mi", "cpu": "250m"}}}]},
    }))
    .expect("a Pod")
}

fn container(value: serde_json::Value) -> Container {
    let mut value = value;
    value["name"] = json!("a");
    value["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "250m"}});
    serde_json::from_value(value).expect("a Container")
}

fn facts() -> fields::Facts {
    fields::Facts {
        tokens: Default::default(),
        host_ip: "127.0.1.1".into(),
        pod_ips: vec!["127.64.0.2".into()],
        node_cpu_milli: 4000,
        node_memory: 1 << 30,
    }
}

fn sources() -> Sources {
    let keys = |pairs: &[(&str, &str)]| {
        Some(Arc::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect::<Keys>()))
    };
    HashMap::from([
        ((Kind::ConfigMap, "config".into()), keys(&[("GREETING", "hello"), ("A", "from")])),
        ((Kind::Secret, "secret".into()), keys(&[("password", "pw")])),
        ((Kind::ConfigMap, "absent".into()), None),
    ])
}

fn built(value: serde_json::Value) -> Result<Vec<(String, String)>, String> {
    build(&pod(), &container(value), Vec::new(), &sources(), &facts()).map_err(|e| e.to_string())
}

#[test]
fn values() {
    let env = built(json!({
        "envFrom": [{"configMapRef": {"name": "config"}, "prefix": "P_"}, {"configMapRef": {"name": "absent", "optional": true}}],
        "env": [
            {"name": "P_A", "value": "own"},
            {"name": "EXPANDED", "value": "$(P_A)-$(P_GREETING)-$(LATER)"},
            {"name": "LATER", "value": "l"},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "password"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MIB", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "NO", "valueFrom": {"secretKeyRef": {"name": "gone", "key": "k", "optional": true}}},
        ],
    }))
    .expect("an environment");
    let expected = [
        ("P_A", "own"),
        ("P_GREETING", "hello"),
        ("EXPANDED", "own-hello-$(LATER)"),
        ("LATER", "l"),
        ("PW", "pw"),
        ("IP", "127.64.0.2"),
        ("LABEL", "x"),
        ("CPU", "1"),
        ("MIB", "64"),
    ];
    let expected: Vec<_> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    assert_eq!(env, expected);
}

#[test]
fn errors() {
    let table = [
        (json!({"envFrom": [{"configMapRef": {"name": "absent"}}]}), "configmap \"absent\" not found"),
        (
            json!({"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "k"}}}]}),
            "couldn't find key k in Secret ns/secret",
        ),
        (
            json!({"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.what"}}}]}),
            "unsupported fieldPath: spec.what",
        ),
    ];
    for (value, message) in table {
        assert_eq!(built(value), Err(message.to_owned()));
    }
}
