//! The kinds of `resource.k8s.io`: what devices there are, and who claims which.

mod claim;
mod device_class;
mod request;
mod resource_claim;
mod resource_claim_template;
mod resource_slice;

use coracle_apiserver::ResourceDef;

/// The group.
const GROUP: &str = "resource.k8s.io";

/// The resources.
pub fn resources() -> Vec<ResourceDef> {
    vec![
        device_class::resource(),
        resource_claim::resource(),
        resource_claim_template::resource(),
        resource_slice::resource(),
    ]
}
