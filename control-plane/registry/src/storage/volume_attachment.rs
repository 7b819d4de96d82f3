//! VolumeAttachment: that a volume is to be attached to a node.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, flag, object, present, reset, set_default, text};
use crate::{check, table};

static COLUMNS: [Column; 6] = [
    table::NAME,
    Column::new("Attacher", "string", "name", "The name of the volume driver.", 0),
    table::string("PV", "The name of the volume."),
    table::string("Node", "The node that the volume is to be attached to."),
    Column::new("Attached", "boolean", "", "Whether the volume is attached.", 0),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "VolumeAttachment", "volumeattachments", Arc::new(VolumeAttachment))
        .cluster_scoped()
        .subresource(Subresource::status("VolumeAttachment"))
}

struct VolumeAttachment;

#[async_trait::async_trait]
impl Strategy for VolumeAttachment {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "attached", false);
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({"attached": false}));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        super::csi_driver::driver_name(&mut errors, text(obj, "/spec/attacher"), &spec.child("attacher"));
        let source = at(obj, "/spec/source");
        let path = spec.child("source");
        let (named, inline) =
            (present(source, "/persistentVolumeName"), present(source, "/inlineVolumeSpec"));
        if named && inline {
            let words = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(Error::forbidden(&path, words));
        } else if !named && !inline {
            let words = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.push(Error::required(&path, words));
        }
        if text(obj, "/spec/nodeName").is_empty() {
            errors.push(Error::required(&spec.child("nodeName"), ""));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        check::immutable(&mut errors, &Path::new("spec"), at(new, "/spec"), at(old, "/spec"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            table::name(obj),
            text(obj, "/spec/attacher").into(),
            text(obj, "/spec/source/persistentVolumeName").into(),
            text(obj, "/spec/nodeName").into(),
            flag(obj, "/status/attached").into(),
            table::age(obj, now),
        ]
    }
}
