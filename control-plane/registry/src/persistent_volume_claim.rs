//! PersistentVolumeClaim.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::quantity::Quantity;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, entries, items, object, present, remove, reset, same, set, set_default, text};
use crate::{check, table};

/// Ways to mount a volume.
pub const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// What a volume is to a pod.
pub const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
/// The class in the words of old.
const CLASS_ANNOTATION: &str = "/metadata/annotations/volume.beta.kubernetes.io~1storage-class";
const CHANGED: &str = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

static COLUMNS: [Column; 9] = [
    table::NAME,
    table::string("Status", "The current phase of the claim."),
    table::string("Volume", "The volume that backs the claim."),
    table::string("Capacity", "The actual resources of the underlying volume."),
    table::string("Access Modes", "The actual access modes the volume backing the claim has."),
    table::string("StorageClass", "The name of the StorageClass required by the claim."),
    table::string("VolumeAttributesClass", "The attributes class that is used by the claim."),
    table::AGE,
    table::wide("VolumeMode", "What type of volume is required by the claim."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(PersistentVolumeClaim);
    ResourceDef::new("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", strategy)
        .short_names(&["pvc"])
        .subresource(Subresource::status("PersistentVolumeClaim"))
}

/// Fills in a claim, or the template of one.
pub fn defaults(claim: &mut Value) {
    if let Some(spec) = object(claim, "spec") {
        set_default(spec, "volumeMode", "Filesystem");
    }
    if let Some(status) = object(claim, "status") {
        set_default(status, "phase", "Pending");
    }
}

/// The class of a claim or a volume: `None` where it says nothing.
pub fn class(obj: &Value) -> Option<&str> {
    at(obj, CLASS_ANNOTATION).as_str().or_else(|| at(obj, "/spec/storageClassName").as_str())
}

/// `ReadWriteOnce,ReadOnlyMany` in kubectl's letters.
pub fn access_modes(modes: &[Value]) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    let mut seen: Vec<&str> = Vec::new();
    for mode in ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"] {
        if modes.iter().any(|m| m == mode) {
            seen.push(short(mode));
        }
    }
    seen.join(",")
}

struct PersistentVolumeClaim;

#[async_trait::async_trait]
impl Strategy for PersistentVolumeClaim {
    fn default(&self, obj: &mut Value) {
        defaults(obj);
        let Some(spec) = object(obj, "spec") else { return };
        // The two names of one source are kept alike.
        for (from, to) in [("dataSource", "dataSourceRef"), ("dataSourceRef", "dataSource")] {
            if present(spec, &format!("/{from}")) && !present(spec, &format!("/{to}")) {
                let source = at(spec, &format!("/{from}")).clone();
                if text(&source, "/namespace").is_empty() {
                    set(spec, to, source);
                }
            }
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({"phase": "Pending"}));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        claim_spec(at(obj, "/spec"), &Path::new("spec"))
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let path = Path::new("spec");
        let mut munged = at(new, "/spec").clone();
        let was = at(old, "/spec");
        if text(was, "/volumeName").is_empty() {
            // The binder names the volume.
            put_back(&mut munged, was, "volumeName");
        }
        if class(old).is_none_or(str::is_empty) {
            put_back(&mut munged, was, "storageClassName");
        }
        put_back(&mut munged, was, "volumeAttributesClassName");
        if text(old, "/status/phase") == "Bound"
            && let Some(resources) = object(&mut munged, "resources")
        {
            put_back(resources, at(was, "/resources"), "requests");
        }
        if !same(&munged, was) {
            errors.push(Error::forbidden(&path, CHANGED));
        }
        let size = |obj: &Value| Quantity::parse(text(obj, "/spec/resources/requests/storage")).ok();
        let grown = size(old).or_else(|| Quantity::parse(text(old, "/status/capacity/storage")).ok());
        if let (Some(new), Some(old)) = (size(new), grown)
            && new < old
        {
            let path = path.child("resources").child("requests").child("storage");
            let words = "field can not be less than status.capacity";
            errors.push(Error::forbidden(&path, words));
        }
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        for (name, amount) in entries(new, "/status/capacity") {
            let path = Path::new("status").child("capacity").key(name.as_str());
            if amount.as_str().and_then(|q| Quantity::parse(q).ok()).is_some_and(|q| q.sign() < 0) {
                errors.push(Error::invalid(&path, amount.clone(), check::NEGATIVE));
            }
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
        let bound = !text(obj, "/spec/volumeName").is_empty();
        let modes = if bound { items(obj, "/status/accessModes") } else { &[] };
        let capacity = if bound { text(obj, "/status/capacity/storage") } else { "" };
        let attributes = text(obj, "/spec/volumeAttributesClassName");
        vec![
            table::name(obj),
            phase.into(),
            text(obj, "/spec/volumeName").into(),
            capacity.into(),
            access_modes(modes).into(),
            class(obj).unwrap_or_default().into(),
            if attributes.is_empty() { "<unset>".into() } else { attributes.into() },
            table::age(obj, now),
            mode(obj),
        ]
    }
}

/// The cell of `spec.volumeMode`.
pub fn mode(obj: &Value) -> Value {
    match text(obj, "/spec/volumeMode") {
        "" => "<unset>".into(),
        mode => mode.into(),
    }
}

fn put_back(value: &mut Value, was: &Value, field: &str) {
    match was.get(field) {
        Some(before) => set(value, field, before.clone()),
        None => {
            remove(value, field);
        }
    }
}

/// Everything wrong with the spec of a claim at `path`.
pub fn claim_spec(spec: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let modes = items(spec, "/accessModes");
    let at_modes = path.child("accessModes");
    if modes.is_empty() {
        errors.push(Error::required(&at_modes, "at least 1 access mode is required"));
    }
    check::label_selector(&mut errors, &path.child("selector"), at(spec, "/selector"));
    for mode in modes.iter().filter(|m| !ACCESS_MODES.iter().any(|known| m == known)) {
        errors.push(Error::not_supported(&at_modes, mode.clone(), &ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let words = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(&at_modes, words));
    }
    let size = path.child("resources").key("storage");
    match at(spec, "/resources/requests/storage").as_str() {
        None => errors.push(Error::required(&size, "")),
        Some(amount) if Quantity::parse(amount).is_ok_and(|q| q.sign() <= 0) => {
            errors.push(Error::invalid(&size, amount, "must be greater than zero"));
        }
        Some(_) => {}
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let class = text(spec, &format!("/{field}"));
        if !class.is_empty() {
            check::words(&mut errors, &path.child(field), class, rules::dns1123_subdomain(class));
        }
    }
    let mode = text(spec, "/volumeMode");
    check::one_of(&mut errors, &path.child("volumeMode"), mode, &VOLUME_MODES, false);
    errors
}
