//! Bodies as objects: content types, strict decoding against the schema, defaults, and patches.

use coracle_api::schema::{self, Input, Validation, structural};
use coracle_api::{Gvk, Status, patch};
use http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::call::Call;
use crate::request::FieldValidation;
use crate::resource::ResourceDef;

pub(crate) use coracle_api::schema::Decoded;

const ACCEPTED: [&str; 3] = ["application/json", "application/yaml", crate::protobuf::MEDIA_TYPE];

/// The media type of the body without parameters; JSON where the caller says nothing.
fn content_type(call: &Call) -> &str {
    let header = call.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let media = header.split(';').next().unwrap_or("").trim();
    if media.is_empty() { "application/json" } else { media }
}

fn input<'a>(call: &Call, body: &'a [u8]) -> Result<Input<'a>, Status> {
    match content_type(call) {
        "application/json" => Ok(Input::Json(body)),
        "application/yaml" => Ok(Input::Yaml(body)),
        _ => Err(Status::unsupported_media_type(&ACCEPTED)),
    }
}

pub(crate) fn validation(call: &Call) -> Validation {
    match call.cx.field_validation {
        FieldValidation::Strict => Validation::Strict,
        FieldValidation::Warn => Validation::Warn,
        FieldValidation::Ignore => Validation::Ignore,
    }
}

/// The object in a body, decoded as the call's kind, with the defaults of its schema.
pub(crate) fn object(call: &Call, body: &[u8]) -> Result<Decoded, Status> {
    if let Some(schema) = &call.served.def.schema {
        return structural::decode(schema, &call.served.gvk, input(call, body)?, validation(call));
    }
    let mut decoded = schema::decode(&call.served.gvk, input(call, body)?, validation(call))?;
    defaults(&call.served.gvk, &mut decoded.object);
    Ok(decoded)
}

/// The object that a patch made, decoded as the call's kind, with the defaults of its schema.
pub(crate) fn patched(call: &Call, patched: &Value) -> Result<Decoded, Status> {
    if let Some(schema) = &call.served.def.schema {
        return structural::decode_patched(schema, &call.served.gvk, patched, validation(call));
    }
    let mut decoded = schema::decode_patched(&call.served.gvk, patched, validation(call))?;
    defaults(&call.served.gvk, &mut decoded.object);
    Ok(decoded)
}

/// JSON as an object of a resource: known fields of the right types alone, with every default.
pub(crate) fn typed(def: &ResourceDef, value: &Value) -> Result<Value, Status> {
    let gvk = def.gvk();
    let mut object = match &def.schema {
        Some(schema) => structural::decode_patched(schema, &gvk, value, Validation::Ignore)?.object,
        None => {
            let mut object = schema::decode_patched(&gvk, value, Validation::Ignore)?.object;
            defaults(&gvk, &mut object);
            object
        }
    };
    def.strategy.default(&mut object);
    Ok(object)
}

fn defaults(gvk: &Gvk, object: &mut Value) {
    if let Some(ty) = schema::for_gvk(gvk) {
        schema::apply_defaults(ty, object);
    }
}

/// A JSON or YAML object of no particular type.
pub(crate) fn plain(call: &Call, body: &[u8]) -> Result<Value, Status> {
    let value = match input(call, body)? {
        Input::Json(bytes) => serde_json::from_slice(bytes)
            .map_err(|e| Status::bad_request(format!("json parse error: {e}")))?,
        Input::Yaml(bytes) => {
            coracle_api::yaml::one_document(bytes).map_err(|e| Status::bad_request(e.to_string()))?.value
        }
    };
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Status::bad_request("the body must be an object")),
    }
}

/// Whether the body is a configuration to apply.
pub(crate) fn is_apply(call: &Call) -> bool {
    content_type(call) == crate::verbs::apply::MEDIA_TYPE
}

/// A patch of one of the types that are understood.
pub(crate) enum PatchBody {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own.
    Strategic(Value),
}

impl PatchBody {
    /// Reads a body by its content type; 415 for everything unknown.
    pub fn read(call: &Call, body: &[u8]) -> Result<Self, Status> {
        let kind = content_type(call);
        if !matches!(
            kind,
            "application/json-patch+json"
                | "application/merge-patch+json"
                | "application/strategic-merge-patch+json"
        ) {
            return Err(Status::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
                .with_details(Default::default()));
        }
        let value: Value = serde_json::from_slice(body).map_err(|e| {
            let words = if e.is_eof() { "unexpected end of JSON input".to_owned() } else { e.to_string() };
            // Kubernetes says what it was doing for all but its own type.
            match kind {
                "application/strategic-merge-patch+json" => Status::bad_request(words),
                _ => Status::bad_request(format!("error decoding patch: {words}")),
            }
        })?;
        let wrong = |go: &str| {
            Status::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {} into Go value of type {go}",
                type_word(&value)
            ))
        };
        match kind {
            "application/json-patch+json" if !value.is_array() => Err(wrong("[]handlers.jsonPatchOp")),
            "application/json-patch+json" => Ok(Self::Json(value)),
            _ if !value.is_object() => Err(wrong("map[string]interface {}")),
            "application/merge-patch+json" => Ok(Self::Merge(value)),
            _ => Ok(Self::Strategic(value)),
        }
    }

    /// The patched object.
    pub fn apply(&self, old: &Value, gvk: &Gvk) -> Result<Value, Status> {
        match self {
            Self::Json(operations) => patch::json(old, operations),
            Self::Merge(value) => patch::merge(old, value),
            Self::Strategic(value) => match schema::for_gvk(gvk) {
                Some(ty) => patch::strategic(old, value, ty),
                None => Err(Status::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/apply-patch+yaml",
                ])),
            },
        }
    }
}

fn type_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
