//! What a webhook answers.

use base64::Engine;
use coracle_api::Gvk;
use coracle_api::status::{Details, Status};
use serde::Deserialize;
use serde_json::Value;

use crate::value::{at, flag, items, number, present, text};

/// Most audit annotations and most warnings of one answer.
const EXTRAS_MAX: usize = 64;

/// An answer that is well formed.
#[derive(Debug)]
pub(super) struct Answer {
    allowed: bool,
    result: Value,
    /// A JSON patch that changes something.
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
    pub annotations: Vec<(String, String)>,
}

/// Reads an answer; the error is in words.
pub(super) fn verify(review: &Value, uid: &str, version: &str, mutating: bool) -> Result<Answer, String> {
    let response = at(review, "/response");
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    let strict = version.ends_with("/v1");
    let given = text(response, "/uid");
    if given != uid && (strict || !given.is_empty()) {
        return Err(format!("expected response.uid={uid:?}, got {given:?}"));
    }
    let (is, wanted) = (Gvk::of(review), format!("{version}, Kind=AdmissionReview"));
    if strict && is.to_string() != wanted {
        return Err(format!("expected webhook response of {wanted}, got {is}"));
    }
    let patch = text(response, "/patch");
    let typed = present(response, "/patchType");
    match (mutating, patch.is_empty(), typed) {
        (false, false, _) if strict => return Err("validating webhook may not return response.patch".into()),
        (false, _, true) if strict => {
            return Err("validating webhook may not return response.patchType".into());
        }
        (true, false, false) if strict => {
            return Err("webhook returned response.patch but not response.patchType".into());
        }
        (true, true, true) if strict => {
            return Err("webhook returned response.patchType but not response.patch".into());
        }
        _ => {}
    }
    let kind = text(response, "/patchType");
    if mutating && typed && kind != "JSONPatch" {
        return Err(format!("webhook returned invalid response.patchType of {kind:?}"));
    }
    let patch = if mutating { operations(patch)? } else { None };
    let said = items(response, "/warnings").iter().filter_map(Value::as_str);
    let notes = at(response, "/auditAnnotations").as_object().into_iter().flatten();
    Ok(Answer {
        allowed: flag(response, "/allowed"),
        result: at(response, "/status").clone(),
        patch,
        warnings: said.take(EXTRAS_MAX).map(str::to_owned).collect(),
        annotations: notes
            .take(EXTRAS_MAX)
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
    })
}

fn operations(patch: &str) -> Result<Option<Value>, String> {
    if patch.is_empty() {
        return Ok(None);
    }
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .map_err(|e| format!("illegal base64 data in response.patch: {e}"))?;
    let operations: Value = serde_json::from_slice(&bytes).map_err(|e| format!("response.patch: {e}"))?;
    match operations.as_array() {
        Some(list) if list.is_empty() => Ok(None),
        Some(_) => Ok(Some(operations)),
        None => Err("response.patch is no JSON patch".into()),
    }
}

impl Answer {
    /// The error of a call that the webhook does not allow.
    pub fn refusal(&self, webhook: &str) -> Option<Status> {
        if self.allowed {
            return None;
        }
        let by = format!("admission webhook {webhook:?} denied the request");
        let (message, reason) = (text(&self.result, "/message"), text(&self.result, "/reason"));
        let words = match (message, reason) {
            ("", "") => format!("{by} without explanation"),
            ("", reason) => format!("{by}: {reason}"),
            (message, _) => format!("{by}: {message}"),
        };
        let code = u16::try_from(number(&self.result, "/code")).unwrap_or(400).clamp(400, 599);
        let mut status = Status::new(code, reason, words);
        let details = at(&self.result, "/details");
        status.details = Details::deserialize(details).ok().map(Box::new);
        Some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const V1: &str = "admission.k8s.io/v1";

    fn review(response: Value) -> Value {
        json!({"kind": "AdmissionReview", "apiVersion": V1, "response": response})
    }

    #[test]
    fn answers_that_are_none() {
        let said = |value: Value, mutating| verify(&value, "u", V1, mutating).unwrap_err();
        assert_eq!(said(json!({}), false), "webhook response was absent");
        assert_eq!(said(review(json!({"uid": "x"})), false), "expected response.uid=\"u\", got \"x\"");
        assert_eq!(
            said(json!({"response": {"uid": "u"}}), false),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind="
        );
        assert_eq!(
            said(review(json!({"uid": "u", "patch": "W10="})), true),
            "webhook returned response.patch but not response.patchType"
        );
        assert_eq!(
            said(review(json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"})), false),
            "validating webhook may not return response.patch"
        );
        assert!(
            verify(&review(json!({"uid": "u", "patch": "!", "patchType": "JSONPatch"})), "u", V1, true)
                .is_err()
        );
    }

    #[test]
    fn refusals() {
        let said = |status: Value| {
            let answer = verify(&review(json!({"uid": "u", "status": status})), "u", V1, false).unwrap();
            let status = answer.refusal("a.b.c").unwrap();
            (status.code, status.reason, status.message)
        };
        let words = |s: &str| format!("admission webhook \"a.b.c\" denied the request{s}");
        assert_eq!(said(Value::Null), (400, String::new(), words(" without explanation")));
        assert_eq!(said(json!({"code": 403, "message": "no"})), (403, String::new(), words(": no")));
        assert_eq!(said(json!({"code": 200, "reason": "Why"})), (400, "Why".into(), words(": Why")));
        let fine = verify(&review(json!({"uid": "u", "allowed": true})), "u", V1, false).unwrap();
        assert!(fine.refusal("x").is_none() && fine.patch.is_none());
    }
}
