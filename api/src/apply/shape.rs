//! One view of the two sources of types: the table of built-in types, and structural schemas.

use serde_json::{Map, Value};

use crate::schema::structural::{Additional, JsonType, Structural};
use crate::schema::{self, Field, Kind, ListType, Schema, Type};

/// The type of a value.
#[derive(Clone, Copy)]
pub enum Node<'a> {
    /// A struct of the table.
    Type(&'static Type),
    /// A field, item or map value of the table.
    Schema(&'static Schema),
    /// Part of a custom object.
    Structural(&'a Structural),
    /// A whole custom object: it has metadata too.
    Object(&'a Structural),
    /// A scalar.
    Scalar,
    /// Whatever it is, it is allowed: maps merge, lists are atomic.
    Unknown,
}

/// How a value is owned and merged.
#[derive(Clone, Copy)]
pub(super) enum Shape<'a> {
    /// As a whole.
    Leaf,
    /// By its members.
    Map,
    /// A list by the values in it.
    Set,
    /// A list by some members of its items.
    Keyed(&'a [String]),
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl<'a> Node<'a> {
    pub(super) fn shape(self, value: &Value) -> Shape<'a> {
        match self {
            Node::Scalar => Shape::Leaf,
            Node::Unknown if value.is_object() => Shape::Map,
            Node::Unknown => Shape::Leaf,
            Node::Type(ty) => match &ty.leaf {
                Some(_) => Shape::Leaf,
                None if ty.atomic => Shape::Leaf,
                None => Shape::Map,
            },
            Node::Schema(schema) => of_schema(schema),
            Node::Object(s) | Node::Structural(s) => match s.kind {
                Some(JsonType::Object) if s.map_atomic => Shape::Leaf,
                Some(JsonType::Object) => Shape::Map,
                Some(JsonType::Array) => of_list(s.list_type, &s.list_map_keys),
                None if s.preserve_unknown => Node::Unknown.shape(value),
                _ => Shape::Leaf,
            },
        }
    }

    /// The type of a member, and whether the schema names it. `None`: there may be no such member.
    pub(super) fn member(self, name: &str) -> Option<(Node<'a>, bool)> {
        match self {
            Node::Scalar => None,
            Node::Unknown => Some((Node::Unknown, false)),
            Node::Type(ty) => ty.field(name).map(|f| (field(f), true)),
            Node::Schema(schema) => match &schema.kind {
                Kind::Object(r) => Node::Type(r.get()).member(name),
                Kind::Map(item) => Some((Node::Schema(item), false)),
                _ => None,
            },
            Node::Object(s) => match name {
                "apiVersion" | "kind" => Some((Node::Scalar, true)),
                "metadata" => Some((schema::by_name(OBJECT_META).map_or(Node::Unknown, Node::Type), true)),
                _ => Node::Structural(s).member(name),
            },
            Node::Structural(s) => {
                let node = |s: &'a Structural| if s.embedded { Node::Object(s) } else { Node::Structural(s) };
                match (s.properties.get(name), &s.additional) {
                    (Some(property), _) => Some((node(property), true)),
                    (None, Additional::Schema(inner)) => Some((node(inner), false)),
                    (None, Additional::Any) => Some((Node::Unknown, false)),
                    (None, Additional::None) => s.preserve_unknown.then_some((Node::Unknown, false)),
                }
            }
        }
    }

    /// The type of the items of a list.
    pub(super) fn item(self) -> Node<'a> {
        match self {
            Node::Schema(Schema { kind: Kind::List(item), .. }) => Node::Schema(item),
            Node::Object(s) | Node::Structural(s) => match s.items.as_deref() {
                Some(item) if item.embedded => Node::Object(item),
                Some(item) => Node::Structural(item),
                None => Node::Unknown,
            },
            _ => Node::Unknown,
        }
    }

    fn default_of(self, name: &str) -> Option<&'a Value> {
        match self {
            Node::Type(ty) => ty.field(name)?.schema.default.as_ref(),
            Node::Schema(Schema { kind: Kind::Object(r), .. }) => {
                r.get().field(name)?.schema.default.as_ref()
            }
            Node::Object(s) | Node::Structural(s) => s.properties.get(name)?.default.as_ref(),
            _ => None,
        }
    }

    /// What tells an item of a list apart; `None` for an item that has none of the keys.
    pub(super) fn key(self, shape: Shape<'a>, item: &Value) -> Option<String> {
        let Shape::Keyed(keys) = shape else { return Some(format!("v:{item}")) };
        let of = self.item();
        let object = item.as_object()?;
        let part = |name: &String| {
            let given = object.get(name).filter(|v| !v.is_null());
            given.or_else(|| of.default_of(name)).map(|v| (name.clone(), v.clone()))
        };
        let found: Map<String, Value> = keys.iter().filter_map(part).collect();
        (!found.is_empty()).then(|| format!("k:{}", Value::Object(found)))
    }

    /// Go's word for what a scalar should be.
    pub(super) fn wanted(self) -> Wanted {
        match self {
            Node::Type(ty) => ty.leaf.as_ref().map_or(Wanted::Map, of_kind),
            Node::Schema(schema) => of_kind(&schema.kind),
            Node::Object(_) => Wanted::Map,
            Node::Structural(s) => match s.kind {
                Some(JsonType::Object) => Wanted::Map,
                Some(JsonType::Array) => Wanted::List,
                Some(JsonType::String) => Wanted::String,
                Some(JsonType::Integer | JsonType::Number) => Wanted::Number,
                Some(JsonType::Boolean) => Wanted::Boolean,
                None => Wanted::Any,
            },
            Node::Scalar => Wanted::String,
            Node::Unknown => Wanted::Any,
        }
    }
}

/// What kind of JSON a value should be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Map,
    List,
    String,
    Number,
    Boolean,
    Any,
}

fn field<'a>(field: &'static Field) -> Node<'a> {
    Node::Schema(&field.schema)
}

fn of_schema<'a>(schema: &'static Schema) -> Shape<'a> {
    match &schema.kind {
        Kind::List(_) => of_list(schema.list_type, &schema.list_map_keys),
        Kind::Map(_) if schema.map_atomic => Shape::Leaf,
        Kind::Map(_) => Shape::Map,
        Kind::Object(r) => {
            let ty = r.get();
            let atomic = schema.map_atomic || (ty.atomic && !schema.map_granular);
            if ty.leaf.is_some() || atomic { Shape::Leaf } else { Shape::Map }
        }
        _ => Shape::Leaf,
    }
}

fn of_list(list_type: Option<ListType>, keys: &[String]) -> Shape<'_> {
    match list_type {
        Some(ListType::Set) => Shape::Set,
        Some(ListType::Map) => Shape::Keyed(keys),
        _ => Shape::Leaf,
    }
}

fn of_kind(kind: &Kind) -> Wanted {
    match kind {
        Kind::String | Kind::Bytes | Kind::Time | Kind::MicroTime => Wanted::String,
        Kind::Boolean => Wanted::Boolean,
        Kind::Int32 | Kind::Int64 | Kind::Number => Wanted::Number,
        Kind::Quantity | Kind::IntOrString | Kind::Any => Wanted::Any,
        Kind::List(_) => Wanted::List,
        Kind::Map(_) => Wanted::Map,
        Kind::Object(r) => r.get().leaf.as_ref().map_or(Wanted::Map, of_kind),
    }
}
