//! patch: JSON patch, merge patch and strategic merge patch.

use axum::body::Body;
use coracle_api::Status;
use http::{Response, StatusCode};

use crate::call::Call;
use crate::decode::{self, PatchBody};
use crate::query::WriteOptions;
use crate::write::{Rules, update as write};
use crate::{respond, validate};

/// Patches the object (or its status).
pub(crate) async fn patch(call: Call, rules: Rules) -> Result<Response<Body>, Status> {
    if decode::is_apply(&call) {
        return super::apply::apply(call, rules).await;
    }
    let body = call.body.clone();
    let options = WriteOptions::of(&call.query);
    let patch = PatchBody::read(&call, &body)?;
    validate::write_options(&options, "PatchOptions", false)?;
    let mut warnings = Vec::new();
    let served = call.served.clone();
    let written = write(&call.target, &rules, |old| {
        let patched = patch.apply(old, served.def.merges_as.as_ref().unwrap_or(&served.gvk))?;
        let decoded = decode::patched(&call, &patched)?;
        let mut object = decoded.object;
        served.def.strategy.default(&mut object);
        warnings = decoded.warnings;
        Ok(object)
    })
    .await?;
    warnings.extend(served.def.strategy.warnings(&written.obj));
    let mut response = written.respond(&call, StatusCode::OK)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}
