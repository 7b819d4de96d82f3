//! The kinds of `storage.k8s.io`.

mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
mod storage_class;
mod volume_attachment;
mod volume_attributes_class;

use coracle_apiserver::ResourceDef;

/// The group.
const GROUP: &str = "storage.k8s.io";

/// Annotation of the class that claims get which name none.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// The resources.
pub fn resources() -> Vec<ResourceDef> {
    vec![
        csi_driver::resource(),
        csi_node::resource(),
        csi_storage_capacity::resource(),
        storage_class::resource(),
        volume_attachment::resource(),
        volume_attributes_class::resource(),
    ]
}
