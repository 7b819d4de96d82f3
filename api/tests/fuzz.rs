//! What comes from outside breaks nothing: patches, applies, objects, selectors and quantities made of any bytes. A short run here;
//! `PROPTEST_CASES=1000000 cargo test -p coracle-api --test fuzz` is a long one. What was found is kept in
//! `fuzz.proptest-regressions` and tried first.

use coracle_api::apply::{self, Apply, Node, OneVersion, Operation, Scope, Writer};
use coracle_api::labels::Selector;
use coracle_api::patch::{Patch, PatchType};
use coracle_api::quantity::Quantity;
use coracle_api::schema::{self, Input, Type, Validation};
use coracle_api::{Gvk, fields, yaml};
use proptest::prelude::any;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

const RUNS: u32 = 4000;
const LENGTH_MAX: usize = 512;

fn deployment() -> &'static Type {
    schema::for_gvk(&Gvk::new("apps", "v1", "Deployment")).expect("type")
}

/// JSON out of bytes: small trees with the names that a Deployment has, so that they meet the types' special cases.
struct Tree<'a>(std::slice::Iter<'a, u8>);

const NAMES: [&str; 20] = [
    "spec",
    "template",
    "metadata",
    "containers",
    "name",
    "image",
    "ports",
    "containerPort",
    "protocol",
    "env",
    "finalizers",
    "labels",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "strategy",
    "type",
    "volumes",
    "value",
];
const TEXTS: [&str; 10] = ["a", "b", "replace", "delete", "merge", "TCP", "Recreate", "", "spec", "0"];

impl Tree<'_> {
    fn next(&mut self) -> usize {
        self.0.next().copied().unwrap_or_default().into()
    }

    fn value(&mut self, depth: usize) -> Value {
        let kind = self.next() % if depth > 5 { 5 } else { 9 };
        match kind {
            0 => Value::Null,
            1 => self.next().is_multiple_of(2).into(),
            2 => self.next().into(),
            3 | 4 => TEXTS[self.next() % TEXTS.len()].into(),
            5 | 6 => (0..self.next() % 4).map(|_| self.value(depth + 1)).collect(),
            _ => (0..self.next() % 5)
                .map(|_| (NAMES[self.next() % NAMES.len()].to_owned(), self.value(depth + 1)))
                .collect(),
        }
    }

    fn object(&mut self) -> Value {
        let mut object = self.value(0);
        if !object.is_object() {
            object = json!({"spec": {"template": {"spec": {"containers": [object]}}}});
        }
        object
    }

    fn deployment(&mut self) -> Value {
        let mut object = self.object();
        object["apiVersion"] = "apps/v1".into();
        object["kind"] = "Deployment".into();
        object["metadata"] = json!({"name": "d"});
        object
    }
}

macro_rules! target {
    ($name:ident, |$bytes:ident| $body:expr) => {
        #[test]
        fn $name() {
            let runs = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(RUNS);
            let config = Config { cases: runs, source_file: Some(file!()), ..Config::default() };
            let bytes = proptest::collection::vec(any::<u8>(), 0..LENGTH_MAX);
            let run = |$bytes: Vec<u8>| {
                let $bytes = $bytes.as_slice();
                $body;
                Ok(())
            };
            if let Err(found) = TestRunner::new(config).run(&bytes, run) {
                panic!("{found}");
            }
        }
    };
}

fn patched(kind: PatchType, body: &[u8], target: &Value) {
    if let Ok(patch) = Patch::parse(kind, body)
        && let Ok(result) = patch.apply(target, deployment())
    {
        // What a patch makes is decoded like anything else.
        let _ = schema::decode_value(deployment(), &result);
    }
}

target!(patches_of_any_bytes, |bytes| {
    let target =
        json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}});
    for kind in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
        patched(kind, bytes, &target);
    }
});

target!(patches_of_any_shape, |bytes| {
    let mut tree = Tree(bytes.iter());
    let (target, patch) = (tree.object(), tree.object());
    patched(PatchType::Merge, patch.to_string().as_bytes(), &target);
    patched(PatchType::Strategic, patch.to_string().as_bytes(), &target);
    let path = |tree: &mut Tree<'_>| -> String {
        (0..tree.next() % 5).map(|_| format!("/{}", NAMES[tree.next() % 20])).collect()
    };
    let operations: Vec<Value> = (0..tree.next() % 6)
        .map(|_| {
            let op = ["add", "remove", "replace", "move", "copy", "test"][tree.next() % 6];
            json!({"op": op, "path": path(&mut tree), "from": path(&mut tree), "value": tree.value(0)})
        })
        .collect();
    patched(PatchType::Json, json!(operations).to_string().as_bytes(), &target);
});

/// Applies a configuration; the object with what is owned.
fn applied(
    live: &Value,
    entries: Vec<apply::Entry>,
    exists: bool,
    config: &Value,
) -> Option<(Value, Vec<apply::Entry>)> {
    let writer = Writer {
        manager: "m".into(),
        operation: Operation::Apply,
        api_version: "apps/v1".into(),
        subresource: String::new(),
        time: "2026-01-01T00:00:00Z".into(),
    };
    let request = Apply {
        node: Node::Type(deployment()),
        versions: &OneVersion,
        live,
        exists,
        config,
        entries,
        writer: &writer,
        scope: Scope::AllButStatus,
        force: true,
    };
    apply::apply(&request).ok()
}

target!(applying_twice_is_applying_once, |bytes| {
    let mut tree = Tree(bytes.iter());
    let (config, other) = (tree.deployment(), tree.deployment());
    let blank = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {}});
    let Some((first, entries)) = applied(&blank, Vec::new(), false, &config) else { return Ok(()) };
    if let Some((second, again)) = applied(&first, entries.clone(), true, &config) {
        assert_eq!(second, first, "{config}");
        assert_eq!(apply::encode(again), apply::encode(entries.clone()), "{config}");
    }
    // And over something else, and back.
    if let Some((changed, entries)) = applied(&first, entries, true, &other)
        && let Some((again, _)) = applied(&changed, entries, true, &other)
    {
        assert_eq!(again, changed, "{config} then {other}");
    }
});

target!(objects_of_any_bytes, |bytes| {
    let gvk = Gvk::new("apps", "v1", "Deployment");
    for validation in [Validation::Strict, Validation::Warn, Validation::Ignore] {
        for input in [Input::Json(bytes), Input::Yaml(bytes)] {
            let _ = schema::decode(&gvk, input, validation);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = yaml::to_json_documents(text);
    }
});

target!(objects_of_any_shape, |bytes| {
    let object = Tree(bytes.iter()).deployment();
    if let Ok((decoded, _)) = schema::decode_value(deployment(), &object) {
        let again = schema::decode_value(deployment(), &decoded);
        assert_eq!(again.ok().map(|(value, _)| value), Some(decoded), "{object}");
    }
});

target!(selectors_of_any_text, |bytes| {
    let text = String::from_utf8_lossy(bytes);
    let _ = Selector::parse(&text).map(|s| s.matches(|key| (key == "a").then_some("b")));
    let _ = fields::Selector::parse(&text).map(|s| s.matches(|_| Some(String::new())));
});

target!(quantities_of_any_text, |bytes| {
    if let Ok(quantity) = Quantity::parse(&String::from_utf8_lossy(bytes)) {
        let text = quantity.to_string();
        let again = Quantity::parse(&text);
        assert_eq!(again.as_ref().ok(), Some(&quantity), "{text}");
        assert_eq!(again.map(|q| q.to_string()).ok(), Some(text));
    }
});
