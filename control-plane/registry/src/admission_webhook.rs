//! ValidatingWebhookConfiguration and MutatingWebhookConfiguration: which servers are asked about which writes. The plugins that ask
//! are in `admission/webhooks`.

pub mod client_config;
mod configuration;
pub mod services;

use coracle_apiserver::ResourceDef;

/// The group.
pub const GROUP: &str = "admissionregistration.k8s.io";
/// The plural of configurations whose webhooks judge.
pub const VALIDATING: &str = "validatingwebhookconfigurations";
/// The plural of configurations whose webhooks change.
pub const MUTATING: &str = "mutatingwebhookconfigurations";

/// The resources.
pub fn resources() -> Vec<ResourceDef> {
    vec![
        configuration::resource("MutatingWebhookConfiguration", MUTATING, true),
        configuration::resource("ValidatingWebhookConfiguration", VALIDATING, false),
    ]
}
