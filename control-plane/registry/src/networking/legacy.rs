//! Ingress as it was before version 1: `extensions/v1beta1` and `networking.k8s.io/v1beta1`, which Kubernetes removed. Served where
//! a cluster asks for it (`--legacy-manifests`), stored as version 1.

use std::sync::Arc;

use coracle_api::field::{Error, root};
use coracle_api::meta::Gvk;
use coracle_api::schema::structural::{self, Structural};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::ingress::Ingress;
use crate::value::{at, items_mut, number, object, present, remove, set, set_default, text};

/// The groups that served it, with the version since which they warned.
const GROUPS: [(&str, &str); 2] = [("networking.k8s.io", "v1.19+"), ("extensions", "v1.14+")];

/// The resources of old; none if the schema is not understood, which a test rules out.
pub fn resources() -> Vec<ResourceDef> {
    let published = schema();
    let Ok(schema) = structural::parse(&published, &root()) else { return Vec::new() };
    let (schema, published) = (Arc::new(schema), Arc::new(published));
    let one = |(group, since): (&'static str, &'static str)| {
        let deprecation = format!(
            "{group}/v1beta1 Ingress is deprecated in {since}, unavailable in v1.22+; use networking.k8s.io/v1 Ingress"
        );
        let strategy = Legacy { group, deprecation, schema: schema.clone() };
        let mut def = ResourceDef::new(group, "v1beta1", "Ingress", "ingresses", Arc::new(strategy))
            .stored_in(super::GROUP)
            .subresource(Subresource::status("Ingress"));
        def.schema = Some(schema.clone());
        def.published = Some(published.clone());
        def.merges_as = Some(Gvk::new(super::GROUP, "v1", "Ingress"));
        def
    };
    GROUPS.into_iter().map(one).collect()
}

fn schema() -> Value {
    let text = json!({"type": "string"});
    let backend = json!({"type": "object", "properties": {
        "serviceName": text,
        "servicePort": {"x-kubernetes-int-or-string": true},
        "resource": {"type": "object", "properties": {"apiGroup": text, "kind": text, "name": text}},
    }});
    let path = json!({"type": "object", "properties": {"path": text, "pathType": text, "backend": backend}});
    json!({"type": "object", "properties": {
        "apiVersion": text, "kind": text, "metadata": {"type": "object"},
        "spec": {"type": "object", "properties": {
            "ingressClassName": text,
            "backend": backend,
            "rules": {"type": "array", "items": {"type": "object", "properties": {
                "host": text,
                "http": {"type": "object", "properties": {"paths": {"type": "array", "items": path}}},
            }}},
            "tls": {"type": "array", "items": {"type": "object", "properties": {
                "hosts": {"type": "array", "items": text}, "secretName": text,
            }}},
        }},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }})
}

struct Legacy {
    group: &'static str,
    deprecation: String,
    schema: Arc<Structural>,
}

impl Legacy {
    fn as_v1(&self, obj: &Value) -> Value {
        let mut v1 = obj.clone();
        self.to_storage(&mut v1);
        v1
    }
}

/// Runs `change` on each backend of a spec: the default one under `default`, and those of its paths.
fn backends(spec: &mut Value, default: &str, change: fn(&mut Value)) {
    if let Some(backend) = spec.get_mut(default) {
        change(backend);
    }
    for rule in items_mut(spec, "rules") {
        let Some(http) = rule.get_mut("http") else { continue };
        items_mut(http, "paths").filter_map(|p| p.get_mut("backend")).for_each(change);
    }
}

fn rename(value: &mut Value, from: &str, to: &str) {
    if let Some(moved) = remove(value, from) {
        set(value, to, moved);
    }
}

fn to_v1(backend: &mut Value) {
    let port = remove(backend, "servicePort").unwrap_or_default();
    let Some(name) = remove(backend, "serviceName") else { return };
    let port = match port {
        Value::Number(n) => json!({"number": n}),
        Value::String(name) => json!({"name": name}),
        _ => json!({}),
    };
    set(backend, "service", json!({"name": name, "port": port}));
}

fn from_v1(backend: &mut Value) {
    let Some(service) = remove(backend, "service") else { return };
    set(backend, "serviceName", text(&service, "/name"));
    match text(&service, "/port/name") {
        "" => set(backend, "servicePort", number(&service, "/port/number")),
        name => set(backend, "servicePort", name),
    }
}

#[async_trait::async_trait]
impl Strategy for Legacy {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            object(status, "loadBalancer");
        }
        let Some(spec) = object(obj, "spec") else { return };
        for rule in items_mut(spec, "rules") {
            let Some(http) = rule.get_mut("http") else { continue };
            items_mut(http, "paths").for_each(|p| set_default(p, "pathType", "ImplementationSpecific"));
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        Ingress.prepare_for_create(cx, obj).await
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = structural::validate(&self.schema, obj);
        errors.extend(Ingress.validate_create(&self.as_v1(obj)));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = structural::validate(&self.schema, new);
        errors.extend(Ingress.validate_update(&self.as_v1(new), &self.as_v1(old)));
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        Ingress.validate_status_update(new, old)
    }

    fn deprecation(&self) -> Option<&str> {
        Some(&self.deprecation)
    }

    fn columns(&self) -> &[Column] {
        Ingress.columns()
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        Ingress.row(obj, now)
    }

    fn converts(&self) -> bool {
        true
    }

    fn from_storage(&self, obj: &mut Value) {
        set(obj, "apiVersion", format!("{}/v1beta1", self.group));
        let Some(spec) = object(obj, "spec") else { return };
        rename(spec, "defaultBackend", "backend");
        backends(spec, "backend", from_v1);
    }

    fn to_storage(&self, obj: &mut Value) {
        set(obj, "apiVersion", format!("{}/v1", super::GROUP));
        let Some(spec) = object(obj, "spec") else { return };
        if present(spec, "/backend") && at(spec, "/defaultBackend").is_null() {
            rename(spec, "backend", "defaultBackend");
        }
        backends(spec, "defaultBackend", to_v1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let [new, old] = resources().try_into().ok().expect("two groups");
        let old_form = json!({"apiVersion": "extensions/v1beta1", "kind": "Ingress", "metadata": {"name": "i"},
            "spec": {"backend": {"serviceName": "d", "servicePort": "http"},
                "rules": [{"http": {"paths": [{"path": "/app", "pathType": "ImplementationSpecific", "backend": {"serviceName": "s", "servicePort": 80}}]}}]}});
        let mut obj = old_form.clone();
        assert!(old.strategy.validate_create(&obj).is_empty(), "{:?}", old.strategy.validate_create(&obj));
        old.strategy.to_storage(&mut obj);
        assert_eq!(obj["apiVersion"], "networking.k8s.io/v1");
        assert_eq!(
            obj["spec"]["defaultBackend"],
            json!({"service": {"name": "d", "port": {"name": "http"}}})
        );
        assert_eq!(
            obj["spec"]["rules"][0]["http"]["paths"][0]["backend"],
            json!({"service": {"name": "s", "port": {"number": 80}}})
        );
        old.strategy.from_storage(&mut obj);
        assert_eq!(obj, old_form);
        assert!(new.strategy.deprecation().unwrap().contains("use networking.k8s.io/v1 Ingress"));
    }
}
