//! From the JSON of `openAPIV3Schema` to a structural schema, with everything that is wrong with it.

mod limits;

use serde_json::{Map, Value};

use super::{Additional, JsonType, ListType, Structural};
use crate::field::{Error, Path};

/// The most nodes of one schema.
pub const MAX_NODES: usize = 20_000;

/// The deepest nesting of a schema.
const MAX_DEPTH: usize = 64;

const FORBIDDEN: [(&str, &str); 8] = [
    ("$ref", "$ref is not supported"),
    ("$schema", "$schema is not supported"),
    ("id", "id is not supported"),
    ("additionalItems", "additionalItems is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("externalDocs", ""),
];

/// Where in a schema a node stands; it decides what the node must and may say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Item,
    /// In `allOf` and its like, where values are only restricted.
    Junctor,
}

struct Parser {
    errors: Vec<Error>,
    nodes: usize,
}

/// Reads a schema. The errors are Kubernetes', below `path`.
pub fn parse(schema: &Value, path: &Path) -> Result<Structural, Vec<Error>> {
    let mut parser = Parser { errors: Vec::new(), nodes: 0 };
    let root = parser.node(schema, path, Place::Root, 0);
    if parser.errors.is_empty() { Ok(root) } else { Err(parser.errors) }
}

impl Parser {
    fn node(&mut self, schema: &Value, path: &Path, place: Place, depth: usize) -> Structural {
        self.nodes += 1;
        let Some(map) = schema.as_object() else {
            self.errors.push(Error::invalid(path, schema.clone(), "must be a schema object"));
            return Structural::default();
        };
        if self.nodes > MAX_NODES || depth > MAX_DEPTH {
            if self.nodes <= MAX_NODES + 1 {
                let words =
                    format!("a schema has at most {MAX_NODES} nodes and is at most {MAX_DEPTH} levels deep");
                self.errors.push(Error::forbidden(path, words));
            }
            self.nodes = self.nodes.max(MAX_NODES + 2);
            return Structural::default();
        }
        self.forbidden(map, path);
        let mut out = Structural {
            format: text(map, "format"),
            nullable: flag(map, "nullable"),
            default: map.get("default").cloned(),
            preserve_unknown: flag(map, "x-kubernetes-preserve-unknown-fields"),
            embedded: flag(map, "x-kubernetes-embedded-resource"),
            int_or_string: flag(map, "x-kubernetes-int-or-string"),
            limits: self.limits(map, path, depth),
            ..Structural::default()
        };
        if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
            let at = path.child("x-kubernetes-preserve-unknown-fields");
            self.errors.push(Error::invalid(&at, false, "must be true or undefined"));
        }
        self.kind(map, &mut out, path, place);
        self.extensions(map, &mut out, path);
        out.rules = self.rules(map, path, place);
        self.children(map, &mut out, path, place, depth);
        self.default_fits(&out, path);
        out
    }

    /// A default must be what the schema allows: the server would write what it then refuses.
    fn default_fits(&mut self, node: &Structural, path: &Path) {
        let Some(default) = &node.default else { return };
        let at = path.child("default");
        let (mut pruned, mut unknown) = (default.clone(), Vec::new());
        super::prune(node, &mut pruned, false, &mut unknown);
        if let Some(field) = unknown.first() {
            let words = format!("must not have unknown fields: {field}");
            self.errors.push(Error::invalid(&at, default.clone(), words));
        }
        super::apply_defaults(node, &mut pruned);
        for error in super::validate(node, &pruned) {
            self.errors.push(Error::invalid(&at, default.clone(), error.to_string()));
        }
    }

    fn forbidden(&mut self, map: &Map<String, Value>, path: &Path) {
        for (name, words) in FORBIDDEN {
            if !words.is_empty() && map.contains_key(name) {
                self.errors.push(Error::forbidden(&path.child(name), words));
            }
        }
        if flag(map, "uniqueItems") {
            let words = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.push(Error::forbidden(&path.child("uniqueItems"), words));
        }
    }

    fn kind(&mut self, map: &Map<String, Value>, out: &mut Structural, path: &Path, place: Place) {
        let at = path.child("type");
        let given = text(map, "type");
        if !given.is_empty() {
            out.kind = JsonType::parse(&given);
            if out.kind.is_none() {
                let all = ["array", "boolean", "integer", "number", "object", "string"];
                self.errors.push(Error::not_supported(&at, given.as_str(), &all));
                return;
            }
        }
        match place {
            Place::Junctor => {
                for name in ["type", "default", "nullable", "additionalProperties"] {
                    let allowed = name == "type" && text_is_int_or_string(map);
                    if map.get(name).is_some_and(|v| *v != Value::Bool(false)) && !allowed {
                        let words = "must be empty to be structural";
                        self.errors.push(Error::forbidden(&path.child(name), words));
                    }
                }
            }
            Place::Root => match out.kind {
                None => self.errors.push(Error::required(&at, "must not be empty at the root")),
                Some(JsonType::Object) => {}
                Some(other) => {
                    self.errors.push(Error::invalid(&at, other.as_str(), "must be object at the root"));
                }
            },
            Place::Field | Place::Item
                if out.kind.is_none() && !out.int_or_string && !out.preserve_unknown =>
            {
                let place = if place == Place::Item { "array items" } else { "object fields" };
                let words = format!("must not be empty for specified {place}");
                self.errors.push(Error::required(&at, words));
            }
            _ => {}
        }
        if out.int_or_string && out.kind.is_some() {
            let words = "must be empty if x-kubernetes-int-or-string is true";
            self.errors.push(Error::forbidden(&at, words));
        }
        if out.embedded && out.kind != Some(JsonType::Object) {
            let words = "must be object if x-kubernetes-embedded-resource is true";
            self.errors.push(Error::invalid(&at, given.as_str(), words));
        }
    }

    fn extensions(&mut self, map: &Map<String, Value>, out: &mut Structural, path: &Path) {
        let at = path.child("x-kubernetes-list-type");
        match text(map, "x-kubernetes-list-type").as_str() {
            "" => {}
            "atomic" => out.list_type = Some(ListType::Atomic),
            "set" => out.list_type = Some(ListType::Set),
            "map" => out.list_type = Some(ListType::Map),
            other => self.errors.push(Error::not_supported(&at, other, &["atomic", "map", "set"])),
        }
        if out.list_type.is_some() && out.kind != Some(JsonType::Array) {
            let words = "must be array if x-kubernetes-list-type is specified";
            self.errors.push(Error::invalid(&path.child("type"), text(map, "type"), words));
        }
        let keys = map.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        out.list_map_keys = keys.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        let keys_at = path.child("x-kubernetes-list-map-keys");
        if out.list_type == Some(ListType::Map) && out.list_map_keys.is_empty() {
            let words = "must not be empty if x-kubernetes-list-type is map";
            self.errors.push(Error::required(&keys_at, words));
        }
        if out.list_type != Some(ListType::Map) && !out.list_map_keys.is_empty() {
            let words = "must be map if x-kubernetes-list-map-keys is non-empty";
            self.errors.push(Error::invalid(&at, text(map, "x-kubernetes-list-type"), words));
        }
        match text(map, "x-kubernetes-map-type").as_str() {
            "" | "granular" => {}
            "atomic" => out.map_atomic = true,
            other => {
                let at = path.child("x-kubernetes-map-type");
                self.errors.push(Error::not_supported(&at, other, &["atomic", "granular"]));
            }
        }
    }

    fn children(
        &mut self,
        map: &Map<String, Value>,
        out: &mut Structural,
        path: &Path,
        place: Place,
        depth: usize,
    ) {
        let inner = |outer: Place| if place == Place::Junctor { Place::Junctor } else { outer };
        if let Some(properties) = map.get("properties").and_then(Value::as_object) {
            let at = path.child("properties");
            for (name, schema) in properties {
                let at = at.key(name.as_str());
                if place == Place::Root && name == "metadata" {
                    self.root_metadata(schema, &at);
                    continue;
                }
                if place == Place::Root && matches!(name.as_str(), "apiVersion" | "kind") {
                    continue;
                }
                let child = self.node(schema, &at, inner(Place::Field), depth + 1);
                out.properties.insert(name.clone(), child);
            }
        }
        match map.get("additionalProperties") {
            None | Some(Value::Bool(false)) => {}
            Some(_) if map.contains_key("properties") => {
                let words = "additionalProperties and properties are mutual exclusive";
                self.errors.push(Error::forbidden(&path.child("additionalProperties"), words));
            }
            Some(Value::Bool(true)) => out.additional = Additional::Any,
            Some(schema) => {
                let at = path.child("additionalProperties");
                let schema = self.node(schema, &at, inner(Place::Field), depth + 1);
                out.additional = Additional::Schema(Box::new(schema));
            }
        }
        match map.get("items") {
            None => {
                if out.kind == Some(JsonType::Array) && place != Place::Junctor {
                    self.errors.push(Error::required(&path.child("items"), "must be specified"));
                }
            }
            Some(Value::Array(_)) => {
                let words = "items must be a schema object and not an array";
                self.errors.push(Error::forbidden(&path.child("items"), words));
            }
            Some(items) => {
                let at = path.child("items");
                let item = self.node(items, &at, inner(Place::Item), depth + 1);
                self.list_keys(out, &item, &at);
                out.items = Some(Box::new(item));
            }
        }
    }

    /// The items of a list of type `map` must have its keys, as scalars that are required or have a default.
    fn list_keys(&mut self, list: &Structural, item: &Structural, at: &Path) {
        if list.list_type == Some(ListType::Set)
            && matches!(item.kind, Some(JsonType::Object | JsonType::Array))
            && !item.map_atomic
            && item.list_type.is_some_and(|t| t != ListType::Atomic)
        {
            let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
            self.errors.push(Error::invalid(&at.child("x-kubernetes-map-type"), Value::Null, words));
        }
        if list.list_type != Some(ListType::Map) {
            return;
        }
        if item.kind != Some(JsonType::Object) {
            let words = "must be object if parent array's x-kubernetes-list-type is map";
            let kind = item.kind.map_or("", JsonType::as_str);
            self.errors.push(Error::invalid(&at.child("type"), kind, words));
            return;
        }
        for key in &list.list_map_keys {
            let at_key = at.child("properties").key(key.as_str());
            match item.properties.get(key) {
                None => {
                    let words = format!("entries of x-kubernetes-list-map-keys must be properties: {key}");
                    self.errors.push(Error::required(&at_key, words));
                }
                Some(p) if matches!(p.kind, Some(JsonType::Object | JsonType::Array)) => {
                    let words = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                    let kind = p.kind.map_or("", JsonType::as_str);
                    self.errors.push(Error::invalid(&at_key.child("type"), kind, words));
                }
                Some(p) if p.default.is_none() && !item.limits.required.contains(key) => {
                    let words = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    self.errors.push(Error::required(&at_key.child("default"), words));
                }
                Some(_) => {}
            }
        }
    }

    fn root_metadata(&mut self, schema: &Value, path: &Path) {
        let fine = schema.as_object().is_none_or(|map| {
            map.iter().all(|(key, value)| match key.as_str() {
                "type" | "description" | "title" => true,
                "properties" => value
                    .as_object()
                    .is_none_or(|p| p.keys().all(|k| matches!(k.as_str(), "name" | "generateName"))),
                _ => false,
            })
        });
        if !fine {
            let words = "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.errors.push(Error::forbidden(path, words));
        }
    }
}

/// `anyOf: [{type: integer}, {type: string}]` beside `x-kubernetes-int-or-string` is allowed.
fn text_is_int_or_string(map: &Map<String, Value>) -> bool {
    matches!(text(map, "type").as_str(), "integer" | "string")
}

fn text(map: &Map<String, Value>, name: &str) -> String {
    map.get(name).and_then(Value::as_str).unwrap_or("").to_owned()
}

fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}
