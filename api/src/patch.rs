//! The patches of the API: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch.
//!
//! Patches work on JSON; the caller decodes the result by its type ([`crate::schema::decode_patched`]), so that a patch can
//! never make an object that a create could not.

mod json_patch;
mod strategic_merge;

use serde_json::{Map, Value};

use crate::schema::{self, Type};
use crate::status::Status;

/// The most operations of one JSON patch.
pub const MAX_OPERATIONS: usize = 10_000;

/// The most bytes that all `copy` operations of one JSON patch may add.
pub const MAX_COPIED_BYTES: usize = 3 << 20;

/// Which patch a body holds; its content type says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
}

impl PatchType {
    /// From a content type without parameters: `application/merge-patch+json`. Apply is none of these.
    pub fn from_content_type(content_type: &str) -> Option<Self> {
        match content_type {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            _ => None,
        }
    }
}

/// A patch that was read.
#[derive(Clone, Debug)]
pub struct Patch {
    kind: PatchType,
    content: Value,
    duplicates: Vec<String>,
}

impl Patch {
    /// Reads the body of a PATCH. Errors are 400 and 413 in Kubernetes' words.
    pub fn parse(kind: PatchType, body: &[u8]) -> Result<Self, Status> {
        let prefix = if kind == PatchType::Strategic { "" } else { "error decoding patch: " };
        let bad = |error: String| Status::bad_request(format!("{prefix}{error}"));
        let (content, duplicates) = schema::decode_any(body).map_err(bad)?;
        let wanted = match (kind, &content) {
            (PatchType::Json, Value::Array(list)) => {
                bounded(list)?;
                None
            }
            (PatchType::Json, _) => Some("[]handlers.jsonPatchOp"),
            (_, Value::Object(_)) => None,
            _ => Some("map[string]interface {}"),
        };
        match wanted {
            Some(wanted) => Err(bad(format!(
                "json: cannot unmarshal {} into Go value of type {wanted}",
                schema::json_type(&content)
            ))),
            None => Ok(Patch { kind, content, duplicates }),
        }
    }

    /// Which patch it is.
    pub fn kind(&self) -> PatchType {
        self.kind
    }

    /// Keys that the patch itself sets twice: `duplicate field "data.a"`.
    pub fn duplicates(&self) -> &[String] {
        &self.duplicates
    }

    /// The patched object. `ty` is needed by strategic merge only.
    pub fn apply(&self, target: &Value, ty: &Type) -> Result<Value, Status> {
        match self.kind {
            PatchType::Json => json(target, &self.content),
            PatchType::Merge => merge(target, &self.content),
            PatchType::Strategic => strategic(target, &self.content, ty),
        }
    }
}

/// Applies the operations of a JSON patch. An operation that does not apply is a 422 without details, as in Kubernetes.
pub fn json(target: &Value, operations: &Value) -> Result<Value, Status> {
    bounded(operations.as_array().map(Vec::as_slice).unwrap_or_default())?;
    json_patch::apply(target, operations).ok_or_else(Status::unprocessable)
}

fn bounded(operations: &[Value]) -> Result<(), Status> {
    match operations.len() {
        ..=MAX_OPERATIONS => Ok(()),
        many => Err(Status::request_entity_too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {many}"
        ))),
    }
}

/// Applies a merge patch, which must be an object.
pub fn merge(target: &Value, patch: &Value) -> Result<Value, Status> {
    let mut out = target.clone();
    merge_into(&mut out, patch);
    Ok(out)
}

fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge_into(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// Applies a strategic merge patch to an object of a type.
pub fn strategic(target: &Value, patch: &Value, ty: &Type) -> Result<Value, Status> {
    strategic_merge::apply(target, patch, ty)
}

#[cfg(test)]
mod tests;
