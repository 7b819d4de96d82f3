//! Events as lines, in the form that a caller asked for.

use bytes::Bytes;
use coracle_api::Status;
use coracle_store::{Event, KeyValue};
use serde_json::{Value, json};

use crate::call::Target;
use crate::tables::Include;
use crate::{codec, tables};

/// How events are written.
pub(super) enum Shape {
    /// Stored bytes.
    Bytes,
    /// The whole object, decoded first because its stored form differs.
    Decoded,
    Table(String, Include),
    Partial(String),
}

/// Writes lines; it knows what it has told before.
pub(super) struct Encoder {
    pub target: Target,
    form: Shape,
    columns_sent: bool,
}

impl Encoder {
    pub fn new(target: Target, form: Shape) -> Self {
        Self { target, form, columns_sent: false }
    }

    /// One line of the stream.
    pub fn line(&mut self, kind: &str, kv: &KeyValue, revision: u64) -> Result<Bytes, Status> {
        if matches!(self.form, Shape::Bytes) {
            return Ok(raw_line(kind, kv, revision));
        }
        let served = &self.target.served;
        if let Shape::Partial(version) = &self.form
            && !served.def.strategy.converts()
            && let Some(metadata) = kv.value.metadata()
        {
            return Ok(partial_line(kind, version, &metadata, revision));
        }
        let obj = codec::decode_at(&served.def, kv, revision).map_err(crate::errors::corrupt)?;
        let object = match &self.form {
            Shape::Table(version, include) => {
                let now = jiff::Timestamp::now();
                if std::mem::replace(&mut self.columns_sent, true) {
                    tables::rows_only(served, version, &obj, *include, now)
                } else {
                    tables::table(served, version, &[&obj], tables::list_meta(&obj), *include, now)
                }
            }
            Shape::Partial(version) => tables::partial(&obj, version),
            Shape::Bytes | Shape::Decoded => obj,
        };
        Ok(value_line(kind, &object))
    }

    /// The line of an event in its natural kind: shared by all watchers where it is stored bytes.
    pub fn event(&mut self, kind: &str, event: &Event) -> Result<Bytes, Status> {
        if matches!(self.form, Shape::Bytes) {
            return Ok(event.encoded.get_or_init(|| raw_line(kind, &event.kv, event.revision)).clone());
        }
        self.line(kind, &event.kv, event.revision)
    }

    pub fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let served = &self.target.served;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end && let Some(map) = metadata.as_object_mut() {
            map.insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let object = match &self.form {
            Shape::Partial(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
            }
            Shape::Table(version, _) => {
                let partial = json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata});
                json!({
                    "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "columnDefinitions": null,
                    "metadata": {"resourceVersion": revision.to_string()}, "rows": [{"cells": [], "object": partial}],
                })
            }
            Shape::Bytes | Shape::Decoded => {
                json!({"kind": served.def.kind, "apiVersion": served.api_version, "metadata": metadata})
            }
        };
        value_line("BOOKMARK", &object)
    }
}

fn raw_line(kind: &str, kv: &KeyValue, revision: u64) -> Bytes {
    let mut out = Vec::with_capacity(kv.value.json.len() + 80);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    kv.value.write_with_revision(revision, &mut out);
    out.extend_from_slice(b"}\n");
    out.into()
}

/// Metadata alone, straight from the stored bytes.
fn partial_line(kind: &str, version: &str, metadata: &coracle_store::Value, revision: u64) -> Bytes {
    let mut out = Vec::with_capacity(metadata.json.len() + 160);
    for part in [
        "{\"type\":\"",
        kind,
        "\",\"object\":{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/",
        version,
        "\",\"metadata\":",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
    metadata.write_with_revision(revision, &mut out);
    out.extend_from_slice(b"}}\n");
    out.into()
}

fn value_line(kind: &str, object: &Value) -> Bytes {
    let mut out = codec::to_bytes(&json!({"type": kind, "object": object})).to_vec();
    out.push(b'\n');
    out.into()
}

pub(super) fn error_line(status: &Status) -> Bytes {
    value_line("ERROR", &status.to_value())
}
