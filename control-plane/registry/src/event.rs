//! Event of the core group and of `events.k8s.io`: one set of stored objects (in the core form), two shapes. Events live an hour
//! after their last write.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::table;
use crate::value::{number, object, present, remove, set, set_default, text};

/// How long an event is kept.
pub const TTL: Duration = Duration::from_secs(3600);
const GROUP: &str = "events.k8s.io";

static COLUMNS: [Column; 10] = [
    table::string("Last Seen", "Time when this event was last observed"),
    table::string("Type", "Type of this event (Normal, Warning), new types could be added in the future"),
    table::string(
        "Reason",
        "This should be a short, machine understandable string that gives the reason for the transition into the object's current status.",
    ),
    table::string("Object", "The object that this event is about."),
    table::wide(
        "Subobject",
        "If referring to a piece of an object instead of an entire object, this string should contain a valid JSON/Go field access statement, such as desiredState.manifest.containers[2]. For example, if the object reference is to a container within a pod, this would take on a value like: \"spec.containers{name}\" (where \"name\" refers to the name of the container that triggered the event) or if no container name is specified \"spec.containers[2]\" (container with index 2 in this pod). This syntax is chosen only to have some well-defined way of referencing a part of an object.",
    ),
    table::wide(
        "Source",
        "The component reporting this event. Should be a short machine understandable string.",
    ),
    table::string("Message", "A human-readable description of the status of this operation."),
    table::wide(
        "First Seen",
        "The time at which the event was first recorded. (Time of server receipt is in TypeMeta.)",
    ),
    table::wide("Count", "The number of times this event has occurred."),
    Column::new("Name", "string", "name", table::NAME_DESCRIPTION, 1),
];

/// The resource of the core group.
pub fn core() -> ResourceDef {
    ResourceDef::new("", "v1", "Event", "events", Arc::new(Core)).short_names(&["ev"]).ttl(TTL)
}

/// The resource of `events.k8s.io`.
pub fn grouped() -> ResourceDef {
    ResourceDef::new(GROUP, "v1", "Event", "events", Arc::new(Grouped))
        .short_names(&["ev"])
        .ttl(TTL)
        .stored_in("")
}

const FIELDS: [&str; 11] = [
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

fn pointer(path: &str) -> String {
    format!("/{}", path.replace('.', "/"))
}

struct Core;

impl Strategy for Core {
    fn default(&self, obj: &mut Value) {
        core_defaults(obj);
    }

    fn has_status(&self) -> bool {
        false
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        place(&mut errors, obj, "/involvedObject", "involvedObject");
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        row(obj, now)
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        Some(match path {
            "source" => match text(obj, "/source/component") {
                "" => text(obj, "/reportingComponent").to_string(),
                component => component.to_string(),
            },
            p if FIELDS.contains(&p) => text(obj, &pointer(p)).to_string(),
            _ => return None,
        })
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &FIELDS
    }
}

fn core_defaults(obj: &mut Value) {
    for field in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        set_default(obj, field, Value::Null);
    }
    for field in ["reportingComponent", "reportingInstance"] {
        set_default(obj, field, "");
    }
    object(obj, "source");
    object(obj, "involvedObject");
}

/// The namespace of an event is that of its object; `default` for objects without one.
fn place(errors: &mut Vec<Error>, obj: &Value, reference: &str, field: &'static str) {
    let about = text(obj, &format!("{reference}/namespace"));
    let own = text(obj, "/metadata/namespace");
    let fits = if about.is_empty() {
        matches!(own, "default" | "kube-system") || !present(obj, reference)
    } else {
        about == own
    };
    if !fits {
        errors.push(Error::invalid(
            &Path::new(field).child("namespace"),
            about,
            "does not match event.namespace",
        ));
    }
}

fn row(obj: &Value, now: Timestamp) -> Vec<Value> {
    let or = |a: &str, b: &str| {
        let first = text(obj, a);
        if first.is_empty() { text(obj, b).to_string() } else { first.to_string() }
    };
    let first_seen = table::since(&or("/firstTimestamp", "/eventTime"), now);
    let last_seen = match (text(obj, "/series/lastObservedTime"), text(obj, "/lastTimestamp")) {
        ("", "") => first_seen.clone(),
        ("", last) => table::since(last, now),
        (series, _) => table::since(series, now),
    };
    let kind = text(obj, "/involvedObject/kind").to_lowercase();
    let name = text(obj, "/involvedObject/name");
    let object = if name.is_empty() { kind } else { format!("{kind}/{name}") };
    let (component, host) =
        (or("/source/component", "/reportingComponent"), or("/source/host", "/reportingInstance"));
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    let count = match (number(obj, "/series/count"), number(obj, "/count")) {
        (0, 0) => 1,
        (0, n) | (n, _) => n,
    };
    vec![
        last_seen.into(),
        text(obj, "/type").into(),
        text(obj, "/reason").into(),
        object.into(),
        text(obj, "/involvedObject/fieldPath").into(),
        source.into(),
        text(obj, "/message").trim().into(),
        first_seen.into(),
        count.into(),
        table::name(obj),
    ]
}

/// What the core form calls it, and what the grouped form does.
const NAMES: [(&str, &str); 6] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

struct Grouped;

impl Strategy for Grouped {
    fn default(&self, obj: &mut Value) {
        set_default(obj, "eventTime", Value::Null);
        for field in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
            set_default(obj, field, Value::Null);
        }
        object(obj, "deprecatedSource");
        object(obj, "regarding");
    }

    fn has_status(&self) -> bool {
        false
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        place(&mut errors, obj, "/regarding", "involvedObject");
        if !present(obj, "/eventTime") {
            errors.push(Error::required(&Path::new("eventTime"), ""));
        }
        for (pointer, field, most) in [
            ("/reportingController", "reportingController", 128),
            ("/reportingInstance", "reportingInstance", 128),
            ("/action", "action", 128),
            ("/reason", "reason", 128),
        ] {
            match text(obj, pointer) {
                "" => errors.push(Error::required(&Path::new(field), "")),
                value if value.len() > most => {
                    errors.push(Error::invalid(
                        &Path::new(field),
                        "",
                        format!("can have at most {most} characters"),
                    ));
                }
                _ => {}
            }
        }
        if text(obj, "/note").len() > 1024 {
            errors.push(Error::invalid(&Path::new("message"), "", "can have at most 1024 characters"));
        }
        if !matches!(text(obj, "/type"), "Normal" | "Warning") {
            errors.push(Error::invalid(
                &Path::new("type"),
                "",
                "has invalid value: ".to_string() + text(obj, "/type"),
            ));
        }
        errors
    }

    fn validate_update(&self, _new: &Value, _old: &Value) -> Vec<Error> {
        Vec::new()
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut core = obj.clone();
        self.to_storage(&mut core);
        row(&core, now)
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        let path = match path {
            "reportingController" => "reportingController".to_string(),
            p if [
                "regarding.kind",
                "regarding.namespace",
                "regarding.name",
                "regarding.uid",
                "reason",
                "type",
            ]
            .contains(&p) =>
            {
                p.to_string()
            }
            _ => return None,
        };
        Some(text(obj, &pointer(&path)).to_string())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "type",
            "reportingController",
        ]
    }

    fn converts(&self) -> bool {
        true
    }

    fn from_storage(&self, obj: &mut Value) {
        for (core, grouped) in NAMES {
            rename(obj, core, grouped);
        }
        rename(obj, "reportingComponent", "reportingController");
        set(obj, "apiVersion", format!("{GROUP}/v1"));
    }

    fn to_storage(&self, obj: &mut Value) {
        for (core, grouped) in NAMES {
            rename(obj, grouped, core);
        }
        rename(obj, "reportingController", "reportingComponent");
        set(obj, "apiVersion", "v1");
        core_defaults(obj);
    }
}

fn rename(obj: &mut Value, from: &str, to: &str) {
    if let Some(value) = remove(obj, from) {
        set(obj, to, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn two_shapes_of_one_event() {
        let grouped = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"},
            "regarding": {"kind": "Pod", "name": "p", "namespace": "n"}, "note": "text", "reason": "R", "type": "Normal",
            "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i", "action": "A"});
        let mut e = grouped.clone();
        Grouped.to_storage(&mut e);
        assert_eq!(text(&e, "/apiVersion"), "v1");
        assert_eq!(text(&e, "/message"), "text");
        assert_eq!(text(&e, "/reportingComponent"), "c");
        assert_eq!(Core.field(&e, "involvedObject.name").as_deref(), Some("p"));
        assert!(Core.validate_create(&e).is_empty());
        Grouped.from_storage(&mut e);
        assert_eq!(text(&e, "/note"), "text");
        assert_eq!(text(&e, "/apiVersion"), "events.k8s.io/v1");
        assert!(Grouped.validate_create(&e).is_empty());
    }

    #[test]
    fn rows() {
        let e = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Warning", "reason": "BackOff",
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z", "count": 4, "message": "m\n",
            "source": {"component": "kubelet", "host": "n1"}});
        let row = row(&e, "2026-01-01T00:01:30Z".parse().unwrap());
        assert_eq!(
            row,
            [
                json!("30s"),
                json!("Warning"),
                json!("BackOff"),
                json!("pod/p"),
                json!(""),
                json!("kubelet, n1"),
                json!("m"),
                json!("90s"),
                json!(4),
                json!("e")
            ]
        );
    }
}
