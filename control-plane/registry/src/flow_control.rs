//! `flowcontrol.apiserver.k8s.io`: FlowSchema and PriorityLevelConfiguration, the ones that every cluster has, and what they
//! mean to the server.

mod defaults;
mod flow_schema;
mod priority_level;
mod source;

use coracle_apiserver::ResourceDef;

pub use defaults::objects as defaults;
pub use source::Source;

/// The group.
pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";

/// The resources.
pub fn resources() -> [ResourceDef; 2] {
    [flow_schema::resource(), priority_level::resource()]
}
