//! update: a whole object replaces another.

use axum::body::Body;
use coracle_api::{Status, meta};
use http::{Response, StatusCode};

use crate::call::Call;
use crate::query::WriteOptions;
use crate::write::{Rules, update as write};
use crate::{decode, respond, validate};

/// Replaces the object (or its status) by the one in the body.
pub(crate) async fn update(call: Call, rules: Rules) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(&call.query);
    validate::write_options(&options, "UpdateOptions", false)?;
    let body = call.body.clone();
    let decode::Decoded { mut object, mut warnings } = decode::object(&call, &body)?;
    if meta::name(&object).is_some_and(|name| name != call.name()) {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta::name(&object).unwrap_or(""),
            call.name()
        )));
    }
    call.served.def.strategy.default(&mut object);
    let written = match write(&call.target, &rules, |_| Ok(object.clone())).await {
        Err(e) if e.is_not_found() && creates(&call, &rules) => {
            if meta::name(&object).is_none() {
                let name = call.name().to_owned();
                meta::set_name(&mut object, &name);
            }
            let mut target = call.target.clone();
            target.cx.verb = "create";
            let written = super::create::insert(&mut target, object).await?;
            return written.respond(&call, StatusCode::CREATED);
        }
        other => other?,
    };
    warnings.extend(call.served.def.strategy.warnings(&written.obj));
    let mut response = written.respond(&call, StatusCode::OK)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}

fn creates(call: &Call, rules: &Rules) -> bool {
    matches!(rules, Rules::Main) && call.served.def.strategy.allow_create_on_update()
}
