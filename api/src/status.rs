//! `Status`, the error of the Kubernetes API, made by constructors that use Kubernetes' exact words.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::field;
use crate::meta::{GroupResource, Gvk};

/// One cause inside [`Details`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub field: String,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub group: String,
    /// The kind, or the resource: Kubernetes puts either here.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub causes: Vec<Cause>,
    /// Seconds; 0 for none.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// An error answer of the API. Serialises as kind `Status` of `v1`.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// `NotFound`, `Invalid`, ...; empty where Kubernetes gives none.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What it is about; boxed, because errors travel in `Result`s.
    pub details: Option<Box<Details>>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl Status {
    /// A status of any code, reason and message, without details.
    pub fn new(code: u16, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Status { code, reason: reason.into(), message: message.into(), details: None }
    }

    fn about(mut self, gr: &GroupResource, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.into(),
            group: gr.group.clone(),
            kind: gr.resource.clone(),
            ..Details::default()
        }));
        self
    }

    /// The same with these details.
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The same with one more cause.
    pub fn with_cause(
        mut self,
        reason: impl Into<String>,
        message: impl Into<String>,
        field: impl Into<String>,
    ) -> Self {
        let details = self.details.get_or_insert_default();
        details.causes.push(Cause { reason: reason.into(), message: message.into(), field: field.into() });
        self
    }

    /// The same, telling the client to come back after so many seconds.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// The JSON object.
    pub fn to_value(&self) -> Value {
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if let Some(object) = value.as_object_mut() {
            if !self.reason.is_empty() {
                object.insert("reason".into(), self.reason.as_str().into());
            }
            if let Some(details) = &self.details {
                object.insert("details".into(), serde_json::to_value(details).unwrap_or_default());
            }
        }
        value
    }

    /// The JSON as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_value().to_string().into_bytes()
    }

    /// Reads a failure Status back; `None` where the value is something else.
    pub fn from_value(value: &Value) -> Option<Status> {
        if value.get("kind")?.as_str()? != "Status" {
            return None;
        }
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
        let details = value.get("details").and_then(|d| Details::deserialize(d).ok()).map(Box::new);
        let code = value.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok())?;
        Some(Status { code, reason: text("reason"), message: text("message"), details })
    }

    /// 404 for one object.
    pub fn not_found(gr: &GroupResource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{gr} {} not found", q(name))).about(gr, name)
    }

    /// 404 for a path that serves nothing.
    pub fn resource_not_found() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
            .with_details(Details::default())
    }

    /// 409: the object is there.
    pub fn already_exists(gr: &GroupResource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{gr} {} already exists", q(name))).about(gr, name)
    }

    /// 409: every generated name that was tried is taken.
    pub fn generate_name_conflict(gr: &GroupResource, name: &str) -> Self {
        let message = format!(
            "{gr} {} already exists, the server was not able to generate a unique name for the object",
            q(name)
        );
        Self::new(409, "AlreadyExists", message).about(gr, name).with_retry_after(1)
    }

    /// 409: the operation cannot be done on the object as it is. `why` completes the sentence.
    pub fn conflict(gr: &GroupResource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {gr} {}: {why}", q(name));
        Self::new(409, "Conflict", message).about(gr, name)
    }

    /// 409: the resourceVersion that the client saw is not the newest.
    pub fn modified(gr: &GroupResource, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(gr, name, why)
    }

    /// 422 with a cause for each error.
    pub fn invalid(gvk: &Gvk, name: &str, errors: Vec<field::Error>) -> Self {
        let kind = gvk.group_kind();
        let mut message = format!("{kind} {} is invalid", q(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&field::aggregate(&errors));
        }
        let causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().into(), message: e.body(), field: e.path.clone() })
            .collect();
        Self::new(422, "Invalid", message).with_details(Details {
            name: name.into(),
            group: gvk.group.clone(),
            kind: gvk.kind.clone(),
            causes,
            ..Details::default()
        })
    }

    /// 422 without a word on why: what Kubernetes answers for a JSON patch that does not apply.
    pub fn unprocessable() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .with_details(Details::default())
    }

    /// 400
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 on a resource; `name` may be empty.
    pub fn forbidden(gr: &GroupResource, name: &str, why: impl fmt::Display) -> Self {
        let message = match (gr.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{gr} is forbidden: {why}"),
            _ => format!("{gr} {} is forbidden: {why}", q(name)),
        };
        Self::new(403, "Forbidden", message).about(gr, name)
    }

    /// 405: the resource has no such verb. `verb` is Kubernetes' word for it (`delete`, `patch`).
    pub fn method_not_supported(gr: &GroupResource, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {}", q(&gr.to_string()));
        Self::new(405, "MethodNotAllowed", message).about(gr, "")
    }

    /// 405: the path has no such method.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details(Details::default())
    }

    /// 406: `accepted` are the media types that would do.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    /// 415: the body has an unknown type; `accepted` are the media types that would do.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 410: the history that was asked for is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410: the resource is gone for good.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// 413: `limit` is what was allowed, in bytes.
    pub fn request_entity_too_large(message: impl fmt::Display) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    /// 429: come back later.
    pub fn too_many_requests(message: impl Into<String>, retry_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message).with_retry_after(retry_seconds)
    }

    /// 500 with reason `InternalError`: a failure of ours.
    pub fn internal(message: impl fmt::Display) -> Self {
        let text = message.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {text}")).with_cause("", text, "")
    }

    /// 500 without a reason: how Kubernetes answers an error that is not a Status.
    pub fn plain(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 500 `ServerTimeout`: the verb could not be done now, try again.
    pub fn server_timeout(gr: &GroupResource, verb: &str, retry_seconds: u32) -> Self {
        let message = format!(
            "The {verb} operation against {gr} could not be completed at this time, please try again."
        );
        Self::new(500, "ServerTimeout", message).about(gr, verb).with_retry_after(retry_seconds)
    }

    /// 503
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504: the request took too long; what became of it is not known.
    pub fn timeout(message: impl fmt::Display, retry_seconds: u32) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {message}")).with_retry_after(retry_seconds)
    }

    /// Whether this is a 404 of reason `NotFound`.
    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    /// Whether this is a 409 of reason `Conflict`.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Whether this is a 409 of reason `AlreadyExists`.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }
}

fn q(s: &str) -> String {
    field::go_quote(s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_shape() {
        let gr = GroupResource::new("apps", "deployments");
        let s = Status::not_found(&gr, "d");
        assert_eq!(
            s.to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                "message": "deployments.apps \"d\" not found", "reason": "NotFound",
                "details": {"name": "d", "group": "apps", "kind": "deployments"}})
        );
        assert_eq!(Status::from_value(&s.to_value()), Some(s));
    }

    #[test]
    fn invalid_lists_causes() {
        let gvk = Gvk::new("", "v1", "Pod");
        let s = Status::invalid(&gvk, "p", vec![field::Error::required(&field::Path::new("spec"), "")]);
        assert_eq!(s.message, "Pod \"p\" is invalid: spec: Required value");
        let causes = &s.details.as_ref().map(|d| d.causes.clone()).unwrap_or_default();
        assert_eq!(causes.len(), 1);
        assert_eq!(causes[0].reason, "FieldValueRequired");
    }
}
