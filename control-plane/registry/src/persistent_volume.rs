//! PersistentVolume.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::quantity::Quantity;
use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::persistent_volume_claim::{ACCESS_MODES, VOLUME_MODES, access_modes, class, mode};
use crate::pod::validation::volume_source;
use crate::value::{at, entries, items, object, present, reset, same, set, set_default, text};
use crate::{check, table};

const RECLAIM: [&str; 3] = ["Delete", "Recycle", "Retain"];
/// Fields of the spec that are no source of a volume.
const PLAIN: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

static COLUMNS: [Column; 11] = [
    table::NAME,
    table::string("Capacity", "The resources and capacity of the volume."),
    table::string("Access Modes", "All ways the volume can be mounted."),
    table::string("Reclaim Policy", "What happens to a volume when released from its claim."),
    table::string("Status", "Whether the volume is available, bound to a claim, or released by a claim."),
    table::string("Claim", "The claim that the volume is bound to."),
    table::string("StorageClass", "Name of the StorageClass to which this volume belongs."),
    table::string("VolumeAttributesClass", "Name of the attributes class to which this volume belongs."),
    table::string("Reason", "A brief word that describes any failure."),
    table::AGE,
    table::wide("VolumeMode", "What the volume is to a pod: a file system or a block device."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "PersistentVolume", "persistentvolumes", Arc::new(PersistentVolume))
        .cluster_scoped()
        .short_names(&["pv"])
        .subresource(Subresource::status("PersistentVolume"))
}

struct PersistentVolume;

#[async_trait::async_trait]
impl Strategy for PersistentVolume {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            set_default(status, "phase", "Pending");
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
        set_default(spec, "volumeMode", "Filesystem");
        if let Some(path) = spec.get_mut("hostPath").filter(|p| p.is_object()) {
            set_default(path, "type", "");
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let now = time::seconds(cx.request.now);
        reset(obj, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
        Ok(())
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        coracle_apiserver::strategy::only_status(new, old);
        if text(new, "/status/phase") != text(old, "/status/phase")
            && let Some(status) = object(new, "status")
        {
            set(status, "lastPhaseTransitionTime", time::now());
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(obj, "/spec"), &Path::new("spec"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let path = Path::new("spec");
        let source = |obj: &Value| {
            let parts = entries(obj, "/spec").filter(|(k, _)| !PLAIN.contains(&k.as_str()));
            Value::Object(parts.map(|(k, v)| (k.clone(), v.clone())).collect())
        };
        let (is, was) = (source(new), source(old));
        if !same(&is, &was) {
            let words = "spec.persistentvolumesource is immutable after creation";
            errors.push(Error::forbidden(&path.child("persistentvolumesource"), words));
        }
        let pointer = "/spec/volumeMode";
        check::immutable(&mut errors, &path.child("volumeMode"), at(new, pointer), at(old, pointer));
        if present(old, "/spec/nodeAffinity") {
            let pointer = "/spec/nodeAffinity";
            check::immutable(&mut errors, &path.child("nodeAffinity"), at(new, pointer), at(old, pointer));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let phase = match present(obj, "/metadata/deletionTimestamp") {
            true => "Terminating",
            false => text(obj, "/status/phase"),
        };
        let claim = match text(obj, "/spec/claimRef/name") {
            "" => String::new(),
            name => format!("{}/{name}", text(obj, "/spec/claimRef/namespace")),
        };
        let attributes = text(obj, "/spec/volumeAttributesClassName");
        vec![
            table::name(obj),
            text(obj, "/spec/capacity/storage").into(),
            access_modes(items(obj, "/spec/accessModes")).into(),
            text(obj, "/spec/persistentVolumeReclaimPolicy").into(),
            phase.into(),
            claim.into(),
            class(obj).unwrap_or_default().into(),
            if attributes.is_empty() { "<unset>".into() } else { attributes.into() },
            text(obj, "/status/reason").into(),
            table::age(obj, now),
            mode(obj),
        ]
    }
}

fn spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let modes = items(spec, "/accessModes");
    let at_modes = path.child("accessModes");
    if modes.is_empty() {
        errors.push(Error::required(&at_modes, ""));
    }
    for mode in modes.iter().filter(|m| !ACCESS_MODES.iter().any(|known| m == known)) {
        errors.push(Error::not_supported(&at_modes, mode.clone(), &ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let words = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(&at_modes, words));
    }
    capacity(errors, at(spec, "/capacity"), &path.child("capacity"));
    let policy = text(spec, "/persistentVolumeReclaimPolicy");
    check::one_of(errors, &path.child("persistentVolumeReclaimPolicy"), policy, &RECLAIM, false);
    let required = at(spec, "/nodeAffinity/required");
    if present(spec, "/nodeAffinity") && items(required, "/nodeSelectorTerms").is_empty() {
        let path = path.child("nodeAffinity").child("required");
        errors.push(Error::required(&path, "must specify required node constraints"));
    }
    source(errors, spec, path);
    if text(spec, "/hostPath/path") == "/" && policy == "Recycle" {
        let words = "may not be 'recycle' for a hostPath mount of '/'";
        errors.push(Error::forbidden(&path.child("persistentVolumeReclaimPolicy"), words));
    }
    let class = text(spec, "/storageClassName");
    if !class.is_empty() {
        check::words(errors, &path.child("storageClassName"), class, rules::dns1123_subdomain(class));
    }
    let mode = text(spec, "/volumeMode");
    check::one_of(errors, &path.child("volumeMode"), mode, &VOLUME_MODES, false);
}

fn capacity(errors: &mut Vec<Error>, capacity: &Value, path: &Path) {
    let count = capacity.as_object().map_or(0, |c| c.len());
    if count == 0 {
        errors.push(Error::required(path, ""));
    }
    let Some(size) = capacity.get("storage").and_then(Value::as_str).filter(|_| count == 1) else {
        errors.push(Error::not_supported(path, capacity.clone(), &["storage"]));
        return;
    };
    if Quantity::parse(size).is_ok_and(|q| q.sign() <= 0) {
        errors.push(Error::invalid(&path.key("storage"), size, "must be greater than zero"));
    }
}

fn source(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let mut given = 0;
    // Kubernetes looks at hostPath first.
    let mut sources: Vec<_> =
        entries(spec, "").filter(|(k, v)| !PLAIN.contains(&k.as_str()) && !v.is_null()).collect();
    sources.sort_by_key(|(kind, _)| *kind != "hostPath");
    for (kind, source) in sources {
        given += 1;
        let at_source = path.child(kind.clone());
        if given > 1 {
            errors.push(Error::forbidden(&at_source, "may not specify more than 1 volume type"));
            continue;
        }
        match kind.as_str() {
            "local" => {
                let place = text(source, "/path");
                if place.is_empty() {
                    errors.push(Error::required(&at_source.child("path"), ""));
                } else if place.split('/').any(|part| part == "..") {
                    errors.push(Error::invalid(&at_source.child("path"), place, "must not contain '..'"));
                }
                if !present(spec, "/nodeAffinity") {
                    let words = "Local volume requires node affinity";
                    errors.push(Error::required(&path.child("nodeAffinity"), words));
                }
            }
            "csi" => {
                for field in ["driver", "volumeHandle"] {
                    if text(source, &format!("/{field}")).is_empty() {
                        errors.push(Error::required(&at_source.child(field), ""));
                    }
                }
            }
            other => volume_source(errors, other, source, &at_source),
        }
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a volume type"));
    }
}
