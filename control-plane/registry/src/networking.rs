//! The kinds of `networking.k8s.io`.

mod ingress;
mod ingress_class;
pub mod ip_address;
mod legacy;
mod network_policy;
pub mod service_cidr;

use coracle_apiserver::ResourceDef;

pub use ingress::CLASS_ANNOTATION;

/// The group.
pub const GROUP: &str = "networking.k8s.io";

/// Annotation of the class that an Ingress gets which names none.
pub const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// The resources; with those of old where `legacy` is set.
pub fn resources(legacy: bool) -> Vec<ResourceDef> {
    let mut all = vec![
        ingress::resource(),
        ingress_class::resource(),
        ip_address::resource(),
        network_policy::resource(),
        service_cidr::resource(),
    ];
    if legacy {
        all.extend(legacy::resources());
    }
    all
}
