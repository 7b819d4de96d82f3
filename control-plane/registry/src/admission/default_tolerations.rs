//! Every pod stays for a while on a node that is not ready or not reachable, unless it says otherwise.

use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::{Value, json};

use crate::value::{list, object, text};

/// The plugin.
pub struct DefaultTolerationSeconds {
    /// Seconds on a node that is not ready.
    pub not_ready: i64,
    /// Seconds on a node that cannot be reached.
    pub unreachable: i64,
}

#[async_trait::async_trait]
impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        let Some(pod) = obj.filter(|_| writes && super::writes_pods(attributes)) else { return Ok(()) };
        let Some(tolerations) = object(pod, "spec").and_then(|s| list(s, "tolerations")) else {
            return Ok(());
        };
        for (key, seconds) in [
            ("node.kubernetes.io/not-ready", self.not_ready),
            ("node.kubernetes.io/unreachable", self.unreachable),
        ] {
            let covers = |t: &Value| {
                let (k, effect) = (text(t, "/key"), text(t, "/effect"));
                (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            };
            if !tolerations.iter().any(covers) {
                tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}));
            }
        }
        Ok(())
    }
}
