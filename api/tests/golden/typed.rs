//! What decoding makes must be readable by typed clients, and what they write must decode.

use coracle_api::{Gvk, schema};
use k8s_openapi::Resource;
use k8s_openapi::api::{
    apps, autoscaling, batch, coordination, core, discovery, networking, policy, rbac, storage,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn check<K: Resource + Default + Serialize + DeserializeOwned>() {
    let ty = schema::for_gvk(&Gvk::new(K::GROUP, K::VERSION, K::KIND)).expect(K::KIND);
    let shallow = json!({"apiVersion": K::API_VERSION, "kind": K::KIND});
    let deep = deep_of(ty, 0);
    for body in [shallow, deep, serde_json::to_value(K::default()).expect("JSON")] {
        let (mut object, problems) = schema::decode_value(ty, &body).expect(K::KIND);
        assert!(problems.is_empty(), "{}: {problems:?}", K::KIND);
        object["apiVersion"] = K::API_VERSION.into();
        object["kind"] = K::KIND.into();
        if let Err(e) = serde_json::from_value::<K>(object.clone()) {
            panic!("{}: {e}: {object}", K::KIND);
        }
    }
}

// An object with every field that is an object or a list of objects, so that every field that is always written shows.
fn deep_of(ty: &schema::Type, depth: usize) -> Value {
    let mut out = serde_json::Map::new();
    if depth > 12 {
        return Value::Object(out);
    }
    for field in &ty.fields {
        let value = match &field.schema.kind {
            schema::Kind::Object(r) if r.get().leaf.is_none() => deep_of(r.get(), depth + 1),
            // Validation asks for the times that a type requires; nothing stored lacks them.
            schema::Kind::Object(_) if field.required && field.name.contains("Time") => {
                "2026-01-02T03:04:05Z".into()
            }
            schema::Kind::List(item) => match &item.kind {
                schema::Kind::Object(r) if r.get().leaf.is_none() => json!([deep_of(r.get(), depth + 1)]),
                _ => continue,
            },
            _ => continue,
        };
        out.insert(field.name.clone(), value);
    }
    Value::Object(out)
}

#[test]
fn typed_clients_read_what_decoding_makes() {
    check::<core::v1::Pod>();
    check::<core::v1::Namespace>();
    check::<core::v1::Node>();
    check::<core::v1::Service>();
    check::<core::v1::ConfigMap>();
    check::<core::v1::Secret>();
    check::<core::v1::ServiceAccount>();
    check::<core::v1::Event>();
    check::<core::v1::PersistentVolume>();
    check::<core::v1::PersistentVolumeClaim>();
    check::<core::v1::ResourceQuota>();
    check::<core::v1::LimitRange>();
    check::<apps::v1::Deployment>();
    check::<apps::v1::ReplicaSet>();
    check::<apps::v1::StatefulSet>();
    check::<apps::v1::DaemonSet>();
    check::<batch::v1::Job>();
    check::<batch::v1::CronJob>();
    check::<coordination::v1::Lease>();
    check::<discovery::v1::EndpointSlice>();
    check::<networking::v1::Ingress>();
    check::<networking::v1::NetworkPolicy>();
    check::<policy::v1::PodDisruptionBudget>();
    check::<autoscaling::v2::HorizontalPodAutoscaler>();
    check::<rbac::v1::Role>();
    check::<rbac::v1::ClusterRole>();
    check::<rbac::v1::RoleBinding>();
    check::<storage::v1::StorageClass>();
    check::<storage::v1::CSIDriver>();
}
