use super::*;
use proptest::prelude::*;
use serde_json::json;

fn strict(kind: &Gvk, body: &Value) -> Result<Value, Status> {
    decode(kind, Input::Json(body.to_string().as_bytes()), Validation::Strict).map(|d| d.object)
}

fn deployment() -> Gvk {
    Gvk::new("apps", "v1", "Deployment")
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
}

#[test]
fn unknown_fields_have_paths() {
    let body = json!({"spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "imagee": "x"}], "volumes": []}, "y": 1}}});
    let error = strict(&deployment(), &body).unwrap_err();
    assert_eq!(
        error.message,
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.template.spec.containers[1].imagee\", unknown field \"spec.template.y\""
    );
    let lenient =
        decode(&deployment(), Input::Json(body.to_string().as_bytes()), Validation::Ignore).unwrap();
    assert!(lenient.warnings.is_empty());
    assert!(lenient.object.pointer("/spec/template/spec/containers/1/imagee").is_none());
}

#[test]
fn duplicates_have_paths_and_the_last_wins() {
    let body = br#"{"metadata":{"name":"a","labels":{"x":"1","x":"2"},"name":"b"},"spec":{"replicas":1,"replicas":2}}"#;
    let decoded = decode(&deployment(), Input::Json(body), Validation::Warn).unwrap();
    assert_eq!(
        decoded.warnings,
        [
            "duplicate field \"metadata.labels.x\"",
            "duplicate field \"metadata.name\"",
            "duplicate field \"spec.replicas\""
        ]
    );
    assert_eq!(decoded.object["metadata"]["name"], "b");
    assert_eq!(decoded.object["spec"]["replicas"], 2);
}

#[test]
fn wrong_types_in_gos_words() {
    let table = [
        (
            json!({"containers": "x"}),
            "json: cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            json!({"containers": [{"name": 1}]}),
            "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string",
        ),
        (
            json!({"containers": [{"ports": [{"containerPort": "80"}]}]}),
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            json!({"priority": 3_000_000_000u64}),
            "json: cannot unmarshal number 3000000000 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            json!({"priority": 1.5}),
            "json: cannot unmarshal number 1.5 into Go struct field PodSpec.spec.priority of type int32",
        ),
        (
            json!({"hostNetwork": "yes"}),
            "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            json!({"nodeSelector": {"a": true}}),
            "json: cannot unmarshal bool into Go struct field PodSpec.spec.nodeSelector of type string",
        ),
        (json!([]), "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
        (
            json!({"containers": [{"resources": {"limits": {"cpu": "1x"}}}]}),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            json!({"tolerations": [{"tolerationSeconds": []}]}),
            "json: cannot unmarshal array into Go struct field Toleration.spec.tolerations.tolerationSeconds of type int64",
        ),
    ];
    for (spec, words) in table {
        let error = strict(&Gvk::new("", "v1", "Pod"), &pod(spec)).unwrap_err();
        assert_eq!(error.message, format!("Pod in version \"v1\" cannot be handled as a Pod: {words}"));
    }
}

#[test]
fn values_are_written_back_as_kubernetes_does() {
    let body = pod(json!({
        "hostNetwork": false, "nodeName": "", "volumes": [], "nodeSelector": {}, "enableServiceLinks": false, "hostPID": null,
        "containers": [{"name": "c", "image": "i", "stdin": false, "args": ["", null], "securityContext": {},
            "resources": {"limits": {"cpu": "1000m", "memory": 1024}}, "env": [{"name": "A", "value": ""}],
            "livenessProbe": {"httpGet": {"port": 80}}}],
    }));
    let object = strict(&Gvk::new("", "v1", "Pod"), &body).unwrap();
    assert_eq!(
        object["spec"],
        json!({
            "enableServiceLinks": false,
            "containers": [{"name": "c", "image": "i", "args": ["", ""], "securityContext": {},
                "resources": {"limits": {"cpu": "1", "memory": "1024"}}, "env": [{"name": "A"}],
                "livenessProbe": {"httpGet": {"port": 80}}}],
        })
    );
    assert_eq!(object["status"], json!({}));
}

#[test]
fn kinds_that_do_not_fit() {
    let service = Gvk::new("", "v1", "Service");
    let table = [
        (
            json!({"apiVersion": "v2", "kind": "Service"}),
            "Service in version \"v2\" cannot be handled as a Service: no kind \"Service\" is registered for version \"v2\" in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
        ),
        (
            json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            "Deployment in version \"v1\" cannot be handled as a Service: converting (v1.Deployment) to (core.Service): unknown conversion",
        ),
        (
            json!([]),
            "the object provided is unrecognized (must be of type Service): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)",
        ),
    ];
    for (body, words) in table {
        assert_eq!(strict(&service, &body).unwrap_err().message, words);
    }
    assert_eq!(strict(&service, &json!({})).unwrap()["kind"], "Service");
    assert_eq!(strict(&Gvk::new("x", "v1", "Y"), &json!({})).unwrap_err().code, 500);
}

#[test]
fn depth_is_bounded() {
    let deep = format!("{{\"kind\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(decode(&deployment(), Input::Json(deep.as_bytes()), Validation::Warn).unwrap_err().code, 400);
    let nested = format!("{}1{}", "{\"a\":".repeat(5000), "}".repeat(5000));
    let deep = format!("{{\"metadata\":{{\"managedFields\":[{{\"fieldsV1\":{nested}}}]}}}}");
    assert_eq!(decode(&deployment(), Input::Json(deep.as_bytes()), Validation::Warn).unwrap_err().code, 400);
}

#[test]
fn problems_are_bounded() {
    let body: serde_json::Map<String, Value> = (0..500).map(|i| (format!("f{i}"), json!(1))).collect();
    let decoded =
        decode(&deployment(), Input::Json(Value::Object(body).to_string().as_bytes()), Validation::Warn)
            .unwrap();
    assert_eq!(decoded.warnings.len(), MAX_PROBLEMS);
}

#[test]
fn times_and_base64() {
    let lease = Gvk::new("coordination.k8s.io", "v1", "Lease");
    let body = json!({"spec": {"renewTime": "2026-01-02T03:04:05.5+01:00"}});
    assert_eq!(strict(&lease, &body).unwrap()["spec"]["renewTime"], "2026-01-02T02:04:05.500000Z");
    let secret = Gvk::new("", "v1", "Secret");
    for (text, at) in [("%%%", 0), ("YQ=", 3), ("YWI", 3), ("YQ==x", 4), ("YWJj!", 4)] {
        let error = strict(&secret, &json!({"data": {"a": text}})).unwrap_err().message;
        assert!(error.contains("illegal base64 data at input byte "), "{text}: {error}");
        let _ = at;
    }
    assert_eq!(strict(&secret, &json!({"data": {"a": "YQ==\n"}})).unwrap()["data"]["a"], "YQ==");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,6}|1Gi|v1".prop_map(Value::from),
    ];
    let key = "[a-b]|apiVersion|kind|metadata|name|labels|spec|status|containers|env|image|ports|containerPort|resources|limits|volumes|items|template|data";
    leaf.prop_recursive(6, 60, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn decoding_never_panics_and_is_idempotent(value in any_json()) {
        for kind in ["Pod", "Secret", "Service", "Event"] {
            let gvk = Gvk::new("", "v1", kind);
            let ty = for_gvk(&gvk).unwrap();
            if let Ok((once, _)) = decode_value(ty, &value) {
                let (twice, problems) = decode_value(ty, &once).unwrap();
                prop_assert_eq!(&twice, &once);
                prop_assert!(problems.is_empty());
            }
            let text = value.to_string();
            let _ = decode(&gvk, Input::Json(text.as_bytes()), Validation::Strict);
            let _ = decode(&gvk, Input::Yaml(text.as_bytes()), Validation::Strict);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = decode(&deployment(), Input::Json(&bytes), Validation::Strict);
        let _ = decode(&deployment(), Input::Yaml(&bytes), Validation::Strict);
    }
}
