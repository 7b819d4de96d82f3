//! Loads the generated table.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use super::{Field, Kind, ListType, Schema, Type, TypeRef};
use crate::meta::Gvk;

const TABLE: &str = include_str!("table.json");

static LOADED: LazyLock<Table> =
    LazyLock::new(|| match serde_json::from_str::<BTreeMap<String, RawType>>(TABLE) {
        Ok(raw) => Table::new(raw),
        // The text is part of this program and a test loads it.
        Err(e) => unreachable!("the generated schema table is not readable: {e}"),
    });

struct Table {
    types: Vec<Type>,
    gvks: HashMap<Gvk, usize>,
}

#[derive(Deserialize)]
struct RawType {
    #[serde(default)]
    gvk: Vec<(String, String, String)>,
    #[serde(default)]
    fields: BTreeMap<String, RawField>,
    is: Option<RawKind>,
    #[serde(default)]
    atomic: bool,
}

#[derive(Deserialize)]
struct RawField {
    #[serde(flatten)]
    schema: RawSchema,
    #[serde(default)]
    required: bool,
    #[serde(default)]
    always: bool,
    #[serde(default)]
    pointer: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSchema {
    is: RawKind,
    list_type: Option<String>,
    #[serde(default)]
    list_map_keys: Vec<String>,
    map_type: Option<String>,
    #[serde(default)]
    patch_strategy: String,
    patch_merge_key: Option<String>,
    default: Option<Value>,
    #[serde(default, rename = "enum")]
    enum_values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawKind {
    Name(String),
    Container(RawContainer),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawContainer {
    List(Box<RawSchema>),
    Map(Box<RawSchema>),
}

impl Table {
    fn new(raw: BTreeMap<String, RawType>) -> Self {
        let names: HashMap<String, usize> = raw.keys().enumerate().map(|(i, n)| (n.clone(), i)).collect();
        let mut gvks = HashMap::new();
        let mut types = Vec::with_capacity(raw.len());
        for (name, raw) in raw {
            let list: Vec<Gvk> = raw.gvk.into_iter().map(|(g, v, k)| Gvk::new(g, v, k)).collect();
            for gvk in &list {
                gvks.insert(gvk.clone(), types.len());
            }
            let fields = raw.fields.into_iter().map(|(name, f)| Field {
                name,
                schema: schema(f.schema, &names),
                required: f.required,
                always: f.always,
                pointer: f.pointer,
            });
            let leaf = raw.is.map(|k| kind(k, &names));
            types.push(Type { name, gvks: list, leaf, fields: fields.collect(), atomic: raw.atomic });
        }
        Table { types, gvks }
    }
}

fn schema(raw: RawSchema, names: &HashMap<String, usize>) -> Schema {
    Schema {
        kind: kind(raw.is, names),
        list_type: raw.list_type.as_deref().map(|t| match t {
            "set" => ListType::Set,
            "map" => ListType::Map,
            _ => ListType::Atomic,
        }),
        list_map_keys: raw.list_map_keys,
        map_atomic: raw.map_type.as_deref() == Some("atomic"),
        map_granular: raw.map_type.as_deref() == Some("granular"),
        patch_merge: raw.patch_strategy.split(',').any(|s| s == "merge"),
        patch_retain_keys: raw.patch_strategy.split(',').any(|s| s == "retainKeys"),
        patch_merge_key: raw.patch_merge_key,
        default: raw.default,
        enum_values: raw.enum_values,
    }
}

fn kind(raw: RawKind, names: &HashMap<String, usize>) -> Kind {
    let name = match raw {
        RawKind::Container(RawContainer::List(item)) => return Kind::List(Box::new(schema(*item, names))),
        RawKind::Container(RawContainer::Map(item)) => return Kind::Map(Box::new(schema(*item, names))),
        RawKind::Name(name) => name,
    };
    match name.as_str() {
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "boolean" => Kind::Boolean,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "number" => Kind::Number,
        "quantity" => Kind::Quantity,
        "int-or-string" => Kind::IntOrString,
        "time" => Kind::Time,
        "micro-time" => Kind::MicroTime,
        other => names.get(other).map_or(Kind::Any, |i| Kind::Object(TypeRef(*i))),
    }
}

pub(super) fn at(index: usize) -> &'static Type {
    &LOADED.types[index]
}

pub(super) fn all() -> &'static [Type] {
    &LOADED.types
}

pub(super) fn by_name(name: &str) -> Option<&'static Type> {
    let types = &LOADED.types;
    types.get(types.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?)
}

pub(super) fn for_gvk(gvk: &Gvk) -> Option<&'static Type> {
    LOADED.gvks.get(gvk).and_then(|i| LOADED.types.get(*i))
}
