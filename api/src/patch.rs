//! The patches of the API: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch.

use serde_json::Value;

use crate::schema::Type;
use crate::status::Status;

/// The most operations of one JSON patch.
pub const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch; `target` as it was on error.
pub fn json(target: &Value, operations: &Value) -> Result<Value, Status> {
    let _ = (target, operations);
    Err(Status::internal("JSON patch is not written yet"))
}

/// Applies a merge patch.
pub fn merge(target: &Value, patch: &Value) -> Result<Value, Status> {
    let _ = (target, patch);
    Err(Status::internal("merge patch is not written yet"))
}

/// Applies a strategic merge patch to an object of a type.
pub fn strategic(target: &Value, patch: &Value, ty: &Type) -> Result<Value, Status> {
    let _ = (target, patch, ty);
    Err(Status::internal("strategic merge patch is not written yet"))
}
