//! The condition `Available` of an APIService.

use coracle_api::Status;
use coracle_apiserver::Objects;
use serde_json::{Value, json};

use crate::api_service::{GROUP, PLURAL};
use crate::value::{items, list, object, text};

const TYPE: &str = "Available";

/// Whether an API is available, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub available: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Verdict {
    /// Served by this server.
    pub fn local() -> Self {
        let message = "Local APIServices are always available".into();
        Self { available: true, reason: "Local", message }
    }

    /// Another server answers.
    pub fn passed() -> Self {
        Self { available: true, reason: "Passed", message: "all checks passed".into() }
    }

    /// It is not.
    pub fn not(reason: &'static str, message: impl Into<String>) -> Self {
        Self { available: false, reason, message: message.into() }
    }
}

/// Writes the condition unless it is there.
pub async fn write(objects: &Objects, service: &Value, verdict: &Verdict) -> Result<(), Status> {
    if is_known(service, verdict) {
        return Ok(());
    }
    let now = coracle_api::time::now();
    let name = text(service, "/metadata/name");
    objects
        .update(GROUP, PLURAL, None, name, |service| {
            if !is_known(service, verdict) {
                set(service, verdict, &now);
            }
            Ok(())
        })
        .await
        .map(drop)
}

fn status(verdict: &Verdict) -> &'static str {
    if verdict.available { "True" } else { "False" }
}

fn is_known(service: &Value, verdict: &Verdict) -> bool {
    items(service, "/status/conditions").iter().any(|c| {
        text(c, "/type") == TYPE
            && text(c, "/status") == status(verdict)
            && text(c, "/reason") == verdict.reason
            && text(c, "/message") == verdict.message
    })
}

fn set(service: &mut Value, verdict: &Verdict, now: &str) {
    let Some(conditions) = object(service, "status").and_then(|s| list(s, "conditions")) else { return };
    let before = conditions.iter().find(|c| text(c, "/type") == TYPE);
    let since =
        before.filter(|c| text(c, "/status") == status(verdict)).map(|c| text(c, "/lastTransitionTime"));
    let condition = json!({
        "type": TYPE, "status": status(verdict), "reason": verdict.reason, "message": verdict.message,
        "lastTransitionTime": since.unwrap_or(now),
    });
    conditions.retain(|c| text(c, "/type") != TYPE);
    conditions.push(condition);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_change_with_the_status() {
        let mut service = json!({});
        set(&mut service, &Verdict::passed(), "then");
        assert!(is_known(&service, &Verdict::passed()));
        set(&mut service, &Verdict::local(), "later");
        assert_eq!(service["status"]["conditions"][0]["lastTransitionTime"], "then");
        set(&mut service, &Verdict::not("MissingEndpoints", "none"), "now");
        assert_eq!(service["status"]["conditions"][0]["lastTransitionTime"], "now");
        assert!(!is_known(&service, &Verdict::passed()));
    }
}
