//! Server-side apply: the object becomes what a configuration says, where nobody else owns what it says.

use axum::body::Body;
use coracle_api::apply::{self, Apply, Operation, Scope, Writer};
use coracle_api::{Gvk, Status, meta, yaml};
use http::{Response, StatusCode};
use serde_json::Value;

use crate::call::Call;
use crate::objects::MAX_ATTEMPTS;
use crate::query::WriteOptions;
use crate::request::FieldValidation;
use crate::write::{self, Rules, Written};
use crate::{decode, managed, respond, validate};

/// The content type of a configuration.
pub(crate) const MEDIA_TYPE: &str = "application/apply-patch+yaml";

/// Applies the body to the object (or its status); makes the object if there is none.
pub(crate) async fn apply(mut call: Call, rules: Rules) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(&call.query);
    validate::write_options(&options, "PatchOptions", true)?;
    let (config, mut warnings) = read(&call)?;
    check(&call, &config)?;
    let force = options.force == Some(true);
    let main = matches!(rules, Rules::Main);
    for _ in 0..MAX_ATTEMPTS {
        let changed =
            write::apply(&call.target, &rules, |old| object(&call, old, true, &config, force)).await;
        let (written, code) = match changed {
            Err(e) if e.is_not_found() && main => match create(&mut call, &config, force).await {
                Err(e) if e.is_already_exists() => continue,
                other => (other?, StatusCode::CREATED),
            },
            other => (other?, StatusCode::OK),
        };
        warnings.extend(call.served.def.strategy.warnings(&written.obj));
        let mut response = written.respond(&call, code)?;
        respond::warn(&mut response, &warnings);
        return Ok(response);
    }
    Err(Status::modified(&call.served.gr, call.name()))
}

/// The configuration in the body, and the fields that it names twice.
fn read(call: &Call) -> Result<(Value, Vec<String>), Status> {
    let document = yaml::one_document(&call.body).map_err(|e| {
        Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {e}"))
    })?;
    if !document.value.is_object() {
        return Err(Status::bad_request("error decoding YAML: the configuration is no object"));
    }
    let twice = match call.cx.field_validation {
        FieldValidation::Strict if !document.duplicates.is_empty() => {
            let words = document.duplicates.join(", ");
            return Err(Status::bad_request(format!("error strict decoding YAML: {words}")));
        }
        FieldValidation::Warn => document.duplicates,
        _ => Vec::new(),
    };
    Ok((document.value, twice))
}

fn check(call: &Call, config: &Value) -> Result<(), Status> {
    let (is, wanted) = (Gvk::of(config), &call.served.gvk);
    if is.kind.is_empty() {
        return Err(Status::bad_request(format!("invalid object type: {is}")));
    }
    if is.api_version() != wanted.api_version() {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {}, expected: {}",
            is.api_version(),
            wanted.api_version()
        )));
    }
    if is.kind != wanted.kind {
        return Err(Status::bad_request(format!(
            "the kind of the configuration ({}) does not match the kind of the resource ({})",
            is.kind, wanted.kind
        )));
    }
    if meta::metadata(config).is_some_and(|m| m.get("managedFields").is_some_and(|v| !v.is_null())) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

async fn create(call: &mut Call, config: &Value, force: bool) -> Result<Written, Status> {
    let gr = call.served.gr.clone();
    if let Some(uid) = meta::uid(config) {
        let words = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(Status::conflict(&gr, call.name(), &words));
    }
    let mut blank = call.served.blank.clone();
    meta::set_gvk(&mut blank, &call.served.gvk);
    let mut new = object(call, &blank, false, config, force)?;
    write::identity(&call.target, &mut new)?;
    meta::remove_metadata(&mut new, "resourceVersion");
    let mut target = call.target.clone();
    target.cx.verb = "create";
    super::create::insert_applied(&mut target, new).await
}

/// What the configuration makes of an object, with its managers.
fn object(call: &Call, old: &Value, exists: bool, config: &Value, force: bool) -> Result<Value, Status> {
    let writer = managed::writer(&call.target, Operation::Apply);
    let scope = managed::scope(&call.target);
    let (merged, list) = merged(call, old, exists, config, &writer, scope, force)?;
    let decoded = decode::patched(call, &merged)?;
    let mut object = decoded.object;
    call.served.def.strategy.default(&mut object);
    managed::put(&mut object, list);
    Ok(object)
}

/// The object with a configuration laid over it, and its managers then.
pub(crate) fn merged(
    call: &Call,
    old: &Value,
    exists: bool,
    config: &Value,
    writer: &Writer,
    scope: Scope,
    force: bool,
) -> Result<(Value, Option<Value>), Status> {
    let Some(node) = managed::node(&call.served) else {
        return Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
        ]));
    };
    let mut live = old.clone();
    let entries = managed::take(&mut live).as_ref().and_then(apply::decode).unwrap_or_default();
    let versions = managed::Siblings::of(&call.target);
    let request =
        Apply { node, versions: &versions, live: &live, exists, config, entries, writer, scope, force };
    let (merged, entries) = apply::apply(&request).map_err(|e| {
        let (namespace, name) = (meta::namespace(config).unwrap_or(""), meta::name(config).unwrap_or(""));
        e.status(&format!("{namespace}/{name}; {}", type_words(config)))
    })?;
    Ok((merged, apply::encode(entries)))
}

/// `/v1, Kind=ConfigMap`, `apps/v1, Kind=Deployment`
fn type_words(config: &Value) -> String {
    Gvk::of(config).to_string()
}
