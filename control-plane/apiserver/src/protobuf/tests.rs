use serde_json::json;

use super::*;

fn bytes(number: u32, content: &[u8]) -> Vec<u8> {
    let tag = number << 3 | 2;
    let mut out = if tag < 128 { vec![tag as u8] } else { vec![tag as u8 | 0x80, (tag >> 7) as u8] };
    out.push(content.len() as u8);
    out.extend_from_slice(content);
    out
}

fn varint(number: u32, value: u8) -> Vec<u8> {
    vec![(number << 3) as u8, value]
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let type_meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &type_meta), bytes(2, raw), bytes(3, b""), bytes(4, b"")].concat()
}

#[test]
fn maps_bytes_and_metadata() {
    let metadata =
        [bytes(1, b"a"), bytes(3, b""), bytes(8, b""), bytes(11, &[bytes(1, b"k"), bytes(2, b"v")].concat())]
            .concat();
    let raw = [
        bytes(1, &metadata),
        bytes(2, &[bytes(1, b"x"), bytes(2, b"y")].concat()),
        bytes(3, &[bytes(1, b"b"), bytes(2, b"hi")].concat()),
        varint(4, 1),
    ]
    .concat();
    let object = to_json(&envelope("v1", "ConfigMap", &raw)).expect("object");
    assert_eq!(
        object,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "", "labels": {"k": "v"}},
            "data": {"x": "y"}, "binaryData": {"b": "aGk="}, "immutable": true})
    );
}

#[test]
fn inline_parts_lists_and_numbers() {
    // A volume: its source is inline in JSON and a message in protobuf.
    let volume = [bytes(1, b"v"), bytes(2, &bytes(19, &bytes(1, &bytes(1, b"cm"))))].concat();
    let port = [bytes(1, b"http"), varint(3, 80)].concat();
    let container = [bytes(1, b"c"), bytes(2, b"i"), bytes(6, &port)].concat();
    let spec = [bytes(1, &volume), bytes(2, &container), varint(4, 30)].concat();
    let object = to_json(&envelope("v1", "Pod", &bytes(2, &spec))).expect("object");
    assert_eq!(
        object["spec"],
        json!({"volumes": [{"name": "v", "configMap": {"name": "cm"}}], "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80}]}]})
    );
}

#[test]
fn damaged_bodies_are_errors() {
    let good = envelope("v1", "ConfigMap", &bytes(2, &[bytes(1, b"x"), bytes(2, b"y")].concat()));
    for end in 0..good.len() {
        let _ = to_json(&good[..end]);
    }
    assert!(matches!(to_json(b"{}"), Err(Error::Magic)));
    assert!(matches!(to_json(&envelope("v1", "Nothing", b"")), Err(Error::UnknownKind(_))));
    assert!(matches!(
        to_json(&envelope("v1", "ConfigMap", &varint(15, 1))),
        Err(Error::UnknownField { number: 15, .. })
    ));
    assert!(to_json(&envelope("v1", "ConfigMap", &[0xff; 12])).is_err());
}

#[test]
fn every_object_type_has_its_numbers() {
    // Alpha kinds are taken as JSON and YAML alone.
    let without: Vec<&str> = schema::types()
        .iter()
        .filter(|t| !t.name.contains("alpha"))
        .filter(|t| t.leaf.is_none() && !t.gvks.is_empty() && !TABLE.contains_key(t.name.as_str()))
        .map(|t| t.name.as_str())
        .collect();
    assert!(without.len() < 8, "{without:?}");
}
