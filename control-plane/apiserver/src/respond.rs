//! Answers: objects in the representation that was asked for, Status errors, warnings.

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use coracle_api::Status;
use coracle_api::status::Details;
use coracle_store::KeyValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::call::Call;
use crate::negotiate::{Accepted, Encoding, Form};
use crate::{codec, tables};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const YAML: HeaderValue = HeaderValue::from_static("application/yaml");
const WARNING: HeaderName = HeaderName::from_static("warning");
/// Most warnings of one answer, and most bytes of one warning.
const MAX_WARNINGS: usize = 32;
const MAX_WARNING_BYTES: usize = 1024;

/// Bytes of JSON.
pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    with_type(code, JSON, bytes.into())
}

/// Plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(code, HeaderValue::from_static("text/plain; charset=utf-8"), text.into())
}

/// Bytes of any type.
pub(crate) fn with_type(code: StatusCode, content_type: HeaderValue, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// A failure.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_bytes(code, status.to_bytes());
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0)
        && let Ok(value) = HeaderValue::from_str(&seconds.to_string())
    {
        response.headers_mut().insert(http::header::RETRY_AFTER, value);
    }
    response
}

/// A success Status with details.
pub(crate) fn success(accepted: &Accepted, details: Details) -> Response<Body> {
    let details = serde_json::to_value(details).unwrap_or_default();
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    encoded(StatusCode::OK, accepted.encoding, &body)
}

/// JSON or YAML of a value.
pub(crate) fn encoded(code: StatusCode, encoding: Encoding, value: &Value) -> Response<Body> {
    match encoding {
        Encoding::Json => json_bytes(code, codec::served(value)),
        Encoding::Yaml => match coracle_api::yaml::to_string(value) {
            Ok(text) => with_type(code, YAML, text.into()),
            Err(e) => status(&Status::internal(e)),
        },
    }
}

/// The answer without its body, as HEAD asks for it; over HTTP/2 a body would be an error.
pub(crate) fn headers_only(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = HttpBody::size_hint(&body).exact().filter(|length| *length > 0) {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    Response::from_parts(parts, Body::empty())
}

/// One stored object, from its bytes where the form allows.
pub(crate) fn stored(call: &Call, code: StatusCode, kv: &KeyValue) -> Result<Response<Body>, Status> {
    let def = &call.served.def;
    let plain = call.accepted.form == Form::Object && call.accepted.encoding == Encoding::Json;
    if plain && !def.strategy.converts() {
        return Ok(json_bytes(code, kv.to_json()));
    }
    object(call, code, &codec::decode(def, kv).map_err(crate::errors::corrupt)?)
}

/// One object in the form that was asked for.
pub(crate) fn object(call: &Call, code: StatusCode, obj: &Value) -> Result<Response<Body>, Status> {
    let value = match &call.accepted.form {
        Form::Object => return Ok(encoded(code, call.accepted.encoding, obj)),
        Form::Table(version) => {
            let include = tables::Include::of(&call.query)?;
            tables::of_one(&call.served, version, obj, include, call.cx.now)
        }
        Form::Partial(version) => tables::partial(obj, version),
        Form::PartialList(_) => {
            return Err(Status::new(
                406,
                "NotAcceptable",
                format!(
                    "you requested PartialObjectMetadataList, but the requested object is not a list (*core.{})",
                    call.served.def.kind
                ),
            ));
        }
        Form::Discovery(_) => return Err(crate::errors::not_acceptable_form()),
    };
    Ok(encoded(code, call.accepted.encoding, &value))
}

/// Adds `Warning` headers.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(MAX_WARNINGS) {
        let mut text = String::with_capacity(warning.len() + 12);
        text.push_str("299 - \"");
        for c in warning.chars().take(MAX_WARNING_BYTES) {
            match c {
                '"' | '\\' => {
                    text.push('\\');
                    text.push(c);
                }
                c if c.is_control() => text.push(' '),
                c => text.push(c),
            }
        }
        text.push('"');
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            response.headers_mut().append(WARNING, value);
        }
    }
}
