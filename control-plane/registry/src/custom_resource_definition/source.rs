//! From definitions to resources that are served, and the end of a definition: its objects go first.

use std::sync::Arc;

use axum::body::Body;
use coracle_api::field::root;
use coracle_api::meta;
use coracle_api::schema::structural;
use coracle_apiserver::{
    ApiServer, ResourceDef, ResourceSource, ScalePaths, Subresource, SubresourceAction, UserInfo,
};
use http::{Method, Request, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use coracle_apiserver::webhook::WebhookClient;
use coracle_store::{Range, Txn};

use super::conversion::Conversion;
use super::custom_resource::CustomResource;
use super::json_path::JsonPath;
use super::{FINALIZER, GROUP, PLURAL, names, resource};
use crate::admission_webhook::services::Services;
use crate::value::{at, flag, items, present, text};

/// Serves what CustomResourceDefinitions define.
pub struct Source {
    services: Arc<Services>,
    client: Arc<WebhookClient>,
}

impl Source {
    /// A source that finds conversion webhooks through these Services.
    pub fn new(services: Arc<Services>) -> Self {
        Self { client: Arc::new(WebhookClient::new(services.clone())), services }
    }
}

/// The identity that deletes the objects of a definition that is deleted.
const USER: &str = "system:apiserver";

#[async_trait::async_trait]
impl ResourceSource for Source {
    fn prefix(&self) -> String {
        resource().prefix()
    }

    fn resources(&self, definition: &Value) -> Vec<ResourceDef> {
        if !names::is_established(definition) {
            return Vec::new();
        }
        let served = items(definition, "/spec/versions").iter().filter(|v| flag(v, "/served"));
        served.filter_map(|version| one(definition, version, &self.client)).collect()
    }

    async fn tend(&self, server: &ApiServer, definitions: &[Value]) -> bool {
        self.services.know(server.objects());
        let mut unfinished = false;
        for definition in definitions.iter().filter(|d| meta::deletion_timestamp(d).is_some()) {
            if meta::finalizers(definition).any(|f| f == FINALIZER) {
                unfinished |= !finish(server, definition).await;
            }
        }
        for definition in definitions.iter().filter(|d| names::are_free_now(d, definitions)) {
            let path = format!("/apis/{GROUP}/v1/{PLURAL}/{}", meta::name(definition).unwrap_or_default());
            // Whatever is written, its names are looked at again.
            unfinished |= !call(server, Method::PATCH, &path, json!({})).await;
        }
        unfinished
    }
}

fn one(definition: &Value, version: &Value, client: &Arc<WebhookClient>) -> Option<ResourceDef> {
    let published = at(version, "/schema/openAPIV3Schema");
    let schema = match structural::parse(published, &root()) {
        Ok(schema) => Arc::new(schema),
        Err(errors) => {
            let name = text(definition, "/metadata/name");
            tracing::warn!(
                definition = name,
                ?errors,
                "a stored definition has a schema that is not understood"
            );
            return None;
        }
    };
    let names = at(definition, "/status/acceptedNames");
    let conversion = Conversion::of(definition, client);
    let strategy = Arc::new(CustomResource::new(definition, version, schema.clone(), conversion));
    let (group, name) = (text(definition, "/spec/group"), text(version, "/name"));
    let mut def = ResourceDef::new(group, name, text(names, "/kind"), text(names, "/plural"), strategy);
    let list =
        |pointer: &str| -> Vec<&str> { items(names, pointer).iter().filter_map(Value::as_str).collect() };
    def = def.short_names(&list("/shortNames")).categories(&list("/categories"));
    def.list_kind = text(names, "/listKind").to_owned();
    def.singular = text(names, "/singular").to_owned();
    def.namespaced = text(definition, "/spec/scope") == "Namespaced";
    def.schema = Some(schema);
    def.published = Some(Arc::new(published.clone()));
    if present(version, "/subresources/status") {
        def = def.subresource(Subresource::status(text(names, "/kind")));
    }
    let scale = at(version, "/subresources/scale");
    if !scale.is_null() {
        def = def.subresource(scale_of(scale));
    }
    Some(def)
}

fn scale_of(scale: &Value) -> Subresource {
    let pointer = |name: &str| JsonPath::parse(text(scale, name)).ok().and_then(|p| p.pointer());
    let paths = ScalePaths {
        spec_replicas: pointer("/specReplicasPath").unwrap_or_default(),
        status_replicas: pointer("/statusReplicasPath").unwrap_or_default(),
        // A path to nothing where there is none.
        selector: pointer("/labelSelectorPath").filter(|p| !p.is_empty()).unwrap_or_else(|| "/ ".into()),
    };
    let mut out = Subresource::scale();
    out.action = SubresourceAction::Scale(paths);
    out
}

/// Deletes the objects of a definition, and lets go of it when none is left. False: it is not done yet.
async fn finish(server: &ApiServer, definition: &Value) -> bool {
    let (group, plural) = (text(definition, "/spec/group"), text(definition, "/spec/names/plural"));
    let served = items(definition, "/spec/versions").iter().find(|v| flag(v, "/served"));
    let objects = server.objects();
    if let Some(version) = served
        && names::is_established(definition)
    {
        let root = format!("/apis/{group}/{}", text(version, "/name"));
        let Ok(left) = objects.list(group, plural, None).await else { return false };
        for object in left.iter().filter(|o| meta::deletion_timestamp(o).is_none()) {
            let name = meta::name(object).unwrap_or_default();
            let path = match meta::namespace(object) {
                Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
                None => format!("{root}/{plural}/{name}"),
            };
            call(server, Method::DELETE, &path, Value::Null).await;
        }
        match objects.list(group, plural, None).await {
            Ok(left) if left.is_empty() => {}
            _ => return false,
        }
    } else if !remove_unserved(server, group, plural).await {
        return false;
    }
    let rest: Vec<&str> = meta::finalizers(definition).filter(|f| *f != FINALIZER).collect();
    let change = json!({"metadata": {
        "finalizers": rest, "resourceVersion": meta::resource_version(definition),
    }});
    let path = format!("/apis/{GROUP}/v1/{PLURAL}/{}", meta::name(definition).unwrap_or_default());
    call(server, Method::PATCH, &path, change).await
}

/// Removes the objects of a definition that serves none of its versions: nobody could take their finalizers away any more.
async fn remove_unserved(server: &ApiServer, group: &str, plural: &str) -> bool {
    let store = server.objects().store();
    let prefix = format!("/registry/{group}/{plural}/");
    let Ok(left) = store.range(&Range::prefix(prefix)) else { return false };
    let mut gone = true;
    for kv in left.kvs {
        let done = store.txn(Txn::delete(kv.key.clone(), kv.mod_revision)).await;
        gone &= done.is_ok_and(|done| done.succeeded);
    }
    gone
}

/// Whether a call succeeded, or found its work done.
async fn call(server: &ApiServer, method: Method, path: &str, body: Value) -> bool {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/merge-patch+json")
        .header(header::USER_AGENT, "coracle-apiserver")
        .body(body);
    let Ok(request) = request else { return false };
    let service = server.service_as(UserInfo::new(USER, &["system:masters"]));
    let code = match service.oneshot(request).await {
        Ok(response) => response.status(),
        Err(never) => match never {},
    };
    code.is_success() || code == http::StatusCode::NOT_FOUND
}
