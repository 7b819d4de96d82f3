//! `Value`: whatever the object, the revision ends up in its metadata and nothing else changes.

use coracle_store::{Error, Value};
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

fn leaf() -> impl Strategy<Value = Json> {
    prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<String>().prop_map(Json::from),
        Just(json!("\"metadata\":{")),
        Just(json!("\\")),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), Just("metadata".into()), Just("a\"metadata\":{".into()), "[a-z]{1,6}"]
}

fn tree() -> impl Strategy<Value = Json> {
    leaf().prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(name(), inner, 0..4)
                .prop_map(|m| Json::Object(m.into_iter().collect())),
        ]
    })
}

fn object() -> impl Strategy<Value = Map<String, Json>> {
    prop::collection::btree_map(name(), tree(), 0..5).prop_map(|m| m.into_iter().collect())
}

proptest! {
    #[test]
    fn revision_is_inserted_and_nothing_else(
        mut top in object(), mut metadata in object(), revision: u64, pretty: bool,
    ) {
        metadata.remove("resourceVersion");
        top.insert("metadata".into(), Json::Object(metadata));
        let text = if pretty { serde_json::to_string_pretty(&top) } else { serde_json::to_string(&top) }.unwrap();
        let value = Value::new(text.clone()).unwrap();
        prop_assert!(value.splice > 0);
        let served: Json = serde_json::from_slice(&value.with_revision(revision)).unwrap();
        let mut expected = Json::Object(top);
        expected["metadata"]["resourceVersion"] = json!(revision.to_string());
        let metadata: Json =
            serde_json::from_slice(&value.metadata().unwrap().with_revision(revision)).unwrap();
        prop_assert_eq!(&metadata, &expected["metadata"]);
        prop_assert_eq!(served, expected);
        prop_assert_eq!(&value.json[..], text.as_bytes());
    }

    #[test]
    fn other_json_is_served_as_it_is(json in tree(), revision: u64) {
        let text = json.to_string();
        if json.get("metadata").is_none_or(|metadata| !metadata.is_object()) {
            let value = Value::new(text.clone()).unwrap();
            prop_assert_eq!(value.splice, 0);
            prop_assert!(value.metadata().is_none());
            prop_assert_eq!(value.with_revision(revision), text);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, splice: u32, revision: u64) {
        let valid = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
        match Value::new(bytes.clone()) {
            Ok(_) => prop_assert!(valid),
            Err(Error::Json(_)) => prop_assert!(!valid),
            Err(_) => {}
        }
        let value = Value::spliced(bytes, splice);
        value.with_revision(revision);
        value.metadata();
    }
}

#[test]
fn by_hand() {
    let cases = [
        (r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"7"}}"#),
        (r#"{"metadata":{ }}"#, r#"{"metadata":{"resourceVersion":"7" }}"#),
        (r#"{"metadata":{"name":"x"}}"#, r#"{"metadata":{"resourceVersion":"7","name":"x"}}"#),
        (r#"{"meta\u0064ata" : {"a":1}}"#, r#"{"meta\u0064ata" : {"resourceVersion":"7","a":1}}"#),
        (
            r#"{"spec":{"metadata":{"a":1}},"metadata":{"a":2}}"#,
            r#"{"spec":{"metadata":{"a":1}},"metadata":{"resourceVersion":"7","a":2}}"#,
        ),
        (r#" {"x":"\"metadata\":{"}"#, r#" {"x":"\"metadata\":{"}"#),
        ("[1]", "[1]"),
    ];
    for (stored, served) in cases {
        let value = Value::new(stored.to_owned()).unwrap();
        assert_eq!(value.with_revision(7), served);
        let mut out = b"x".to_vec();
        value.write_with_revision(7, &mut out);
        assert_eq!(&out[1..], served.as_bytes());
    }
    for bad in [
        r#"{"metadata":{},"metadata":{}}"#,
        r#"{"metadata":{"resourceVersion":"1"}}"#,
        r#"{"metadata":{}"#,
        "",
        "{",
        r#"{"metadata":{}} x"#,
    ] {
        assert!(Value::new(bad.to_owned()).is_err(), "{bad}");
    }
}
