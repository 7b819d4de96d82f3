//! ResourceSlice: devices of a driver, usually on a node.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::request;
use crate::value::{at, entries, flag, items, number, present, text};
use crate::{check, table};

/// Most devices of a slice.
const DEVICES_MAX: usize = 128;
/// Most attributes and capacities of a device, together.
const ATTRIBUTES_MAX: usize = 32;
/// What makes a slice that of some nodes: exactly one of these.
const PLACES: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
const TAINTS: [&str; 3] = ["NoExecute", "NoSchedule", "None"];

static COLUMNS: [Column; 5] = [
    table::NAME,
    table::string("Node", "The node to which the resources described by this slice belong."),
    table::string("Driver", "The name of the driver that provides the resources."),
    table::string("Pool", "The pool to which the slice belongs."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "ResourceSlice", "resourceslices", Arc::new(ResourceSlice))
        .cluster_scoped()
}

struct ResourceSlice;

impl Strategy for ResourceSlice {
    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        request::driver_name(&mut errors, text(obj, "/spec/driver"), &spec.child("driver"));
        pool(&mut errors, at(obj, "/spec/pool"), &spec.child("pool"));
        let set = |field: &&str| {
            let pointer = format!("/spec/{field}");
            present(obj, &pointer) && at(obj, &pointer) != false
        };
        let words =
            "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
        match PLACES.iter().filter(|field| set(field)).count() {
            0 => errors.push(Error::required(&spec, words)),
            1 => {}
            _ => {
                let words = format!("{words}, but multiple fields are set");
                errors.push(Error::invalid(&spec, at(obj, "/spec").clone(), words));
            }
        }
        let all = items(obj, "/spec/devices");
        let path = spec.child("devices");
        if all.len() > DEVICES_MAX {
            errors.push(Error::too_many(&path, all.len(), DEVICES_MAX));
        }
        let mut names = Vec::new();
        for (i, one) in all.iter().enumerate() {
            let path = path.index(i);
            let name = text(one, "/name");
            check::words(&mut errors, &path.child("name"), name, rules::dns1123_label(name));
            if names.contains(&name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            names.push(name);
            device(&mut errors, one, &path);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let spec = Path::new("spec");
        for field in ["driver", "nodeName", "nodeSelector", "allNodes"] {
            let pointer = format!("/spec/{field}");
            check::immutable(&mut errors, &spec.child(field), at(new, &pointer), at(old, &pointer));
        }
        let pointer = "/spec/pool/name";
        check::immutable(&mut errors, &spec.child("pool").child("name"), at(new, pointer), at(old, pointer));
        errors
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        let pointer = match path {
            "spec.nodeName" => "/spec/nodeName",
            "spec.driver" => "/spec/driver",
            _ => return None,
        };
        Some(text(obj, pointer).into())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let node = match (text(obj, "/spec/nodeName"), flag(obj, "/spec/allNodes")) {
            ("", true) => "<all>".into(),
            ("", false) => "<some>".into(),
            (name, _) => name.into(),
        };
        let of = |pointer: &str| text(obj, pointer).into();
        vec![table::name(obj), node, of("/spec/driver"), of("/spec/pool/name"), table::age(obj, now)]
    }
}

fn pool(errors: &mut Vec<Error>, pool: &Value, path: &Path) {
    if text(pool, "/name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let count = number(pool, "/resourceSliceCount");
    if count <= 0 {
        errors.push(Error::invalid(&path.child("resourceSliceCount"), count, "must be greater than zero"));
    }
    let generation = number(pool, "/generation");
    if generation < 0 {
        let words = "must be greater than or equal to zero";
        errors.push(Error::invalid(&path.child("generation"), generation, words));
    }
}

fn device(errors: &mut Vec<Error>, device: &Value, path: &Path) {
    let (attributes, capacity) = (at(device, "/attributes"), at(device, "/capacity"));
    let count = entries(attributes, "").count() + entries(capacity, "").count();
    if count > ATTRIBUTES_MAX {
        let words = format!("the total number of attributes and capacities must not exceed {ATTRIBUTES_MAX}");
        errors.push(Error::invalid(path, count, words));
    }
    request::qualified(errors, attributes, &path.child("attributes"));
    request::qualified(errors, capacity, &path.child("capacity"));
    for (name, attribute) in entries(attributes, "") {
        let path = path.child("attributes").key(name);
        match entries(attribute, "").filter(|(_, value)| !value.is_null()).count() {
            0 => errors.push(Error::required(&path, "exactly one value must be specified")),
            1 => {}
            _ => errors.push(Error::invalid(&path, attribute.clone(), "exactly one value must be specified")),
        }
    }
    for (i, taint) in items(device, "/taints").iter().enumerate() {
        let path = path.child("taints").index(i);
        let key = text(taint, "/key");
        check::words(errors, &path.child("key"), key, rules::label_key(key));
        check::one_of(errors, &path.child("effect"), text(taint, "/effect"), &TAINTS, true);
    }
}
