//! The walk over a type and its JSON together.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::super::{Kind, Type, words};
use super::MAX_PROBLEMS;
use super::empty::{or_zero, put, tidy};
use crate::quantity::Quantity;

/// What the walk has found, and where it is.
pub(super) struct Context<'t> {
    pub(super) problems: Vec<String>,
    /// The first value of a wrong type; the walk goes on, as Go's decoder does.
    pub(super) error: Option<String>,
    path: Vec<Step<'t>>,
    /// The innermost struct at each depth, for error words.
    structs: Vec<&'t Type>,
}

enum Step<'t> {
    Field(&'t str),
    Unknown(String),
    Key(String),
    Index(usize),
}

impl Step<'_> {
    fn name(&self) -> &str {
        match self {
            Step::Field(name) => name,
            Step::Unknown(name) | Step::Key(name) => name,
            Step::Index(_) => "",
        }
    }
}

impl<'t> Context<'t> {
    pub(super) fn new() -> Self {
        Context { problems: Vec::new(), error: None, path: Vec::new(), structs: Vec::new() }
    }

    fn here(&self) -> String {
        let mut out = String::new();
        for step in &self.path {
            match step {
                Step::Index(i) => out.push_str(&format!("[{i}]")),
                step => {
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(step.name());
                }
            }
        }
        out
    }

    fn problem(&mut self, what: &str) {
        if self.problems.len() < MAX_PROBLEMS {
            let text = format!("{what} field {}", crate::field::go_quote(&self.here()));
            self.problems.push(text);
        }
    }

    fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    fn mismatch(&mut self, found: &str, wanted: &str) {
        if self.error.is_some() {
            return;
        }
        let fields: Vec<&str> =
            self.path.iter().filter_map(|s| if let Step::Field(f) = s { Some(*f) } else { None }).collect();
        let place = match self.structs.last() {
            Some(ty) if !fields.is_empty() => {
                format!("struct field {}.{}", ty.short_name(), fields.join("."))
            }
            _ => "value".to_string(),
        };
        self.fail(format!("json: cannot unmarshal {found} into Go {place} of type {wanted}"));
    }
}

/// One step of the walk: a value of a kind.
pub(super) struct Walk<'c, 't> {
    context: &'c mut Context<'t>,
    target: Target<'t>,
}

#[derive(Clone, Copy)]
enum Target<'t> {
    Kind(&'t Kind),
    Object(&'t Type),
}

impl<'c, 't> Walk<'c, 't> {
    pub(super) fn object(context: &'c mut Context<'t>, ty: &'t Type) -> Self {
        Walk { context, target: Target::Object(ty) }
    }

    pub(super) fn new(context: &'c mut Context<'t>, kind: &'t Kind) -> Self {
        let target = match kind {
            Kind::Object(r) => {
                let ty = r.get();
                ty.leaf.as_ref().map_or(Target::Object(ty), Target::Kind)
            }
            other => Target::Kind(other),
        };
        Walk { context, target }
    }

    fn wrong(self, found: &str) -> Value {
        let wanted = match self.target {
            Target::Object(ty) => words::go_type_of(ty),
            Target::Kind(kind) => words::go_type(kind),
        };
        self.context.mismatch(found, &wanted);
        Value::Null
    }

    fn integer(self, n: i64) -> Value {
        match self.target {
            Target::Kind(Kind::Int32 | Kind::IntOrString) if i32::try_from(n).is_err() => {
                self.wrong_number(&n.to_string())
            }
            Target::Kind(Kind::Int32 | Kind::Int64 | Kind::IntOrString | Kind::Number | Kind::Any) => {
                n.into()
            }
            Target::Kind(Kind::Quantity) => self.quantity(&n.to_string()),
            _ => self.wrong("number"),
        }
    }

    fn wrong_number(self, literal: &str) -> Value {
        self.wrong(&format!("number {literal}"))
    }

    fn quantity(self, text: &str) -> Value {
        match Quantity::parse(text.trim()) {
            Ok(q) => q.to_string().into(),
            Err(e) => {
                self.context.fail(e.to_string());
                Value::Null
            }
        }
    }

    fn time(self, text: &str, micro: bool) -> Value {
        match crate::time::parse(text) {
            Some(t) if micro => crate::time::micros(t).into(),
            Some(t) => crate::time::seconds(t).into(),
            None => {
                self.context.fail(words::time_error(text, micro));
                Value::Null
            }
        }
    }

    fn bytes(self, text: &str) -> Value {
        let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        match STANDARD.decode(&clean) {
            Ok(_) => clean.into(),
            Err(_) => {
                self.context.fail(words::base64_error(text));
                Value::Null
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(match self.target {
            Target::Kind(Kind::Boolean | Kind::Any) => b.into(),
            _ => self.wrong("bool"),
        })
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(self.integer(n))
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(match (i64::try_from(n), self.target) {
            (Ok(n), _) => self.integer(n),
            (_, Target::Kind(Kind::Number | Kind::Any)) => n.into(),
            (_, Target::Kind(Kind::Quantity)) => self.quantity(&n.to_string()),
            _ => self.wrong_number(&n.to_string()),
        })
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(match self.target {
            Target::Kind(Kind::Number | Kind::Any) => n.into(),
            Target::Kind(Kind::Quantity) => self.quantity(&n.to_string()),
            Target::Kind(Kind::Int32 | Kind::Int64 | Kind::IntOrString) => {
                self.wrong_number(&format!("{n:?}"))
            }
            _ => self.wrong("number"),
        })
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(match self.target {
            Target::Kind(Kind::String | Kind::IntOrString | Kind::Any) => s.into(),
            Target::Kind(Kind::Quantity) => self.quantity(s),
            Target::Kind(Kind::Time) => self.time(s, false),
            Target::Kind(Kind::MicroTime) => self.time(s, true),
            Target::Kind(Kind::Bytes) => self.bytes(s),
            _ => self.wrong("string"),
        })
    }

    fn visit_string<E: serde::de::Error>(self, s: String) -> Result<Value, E> {
        match self.target {
            Target::Kind(Kind::String | Kind::IntOrString | Kind::Any) => Ok(Value::String(s)),
            _ => self.visit_str(&s),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let any = &Kind::Any;
        let item = match self.target {
            Target::Kind(Kind::List(item)) => &item.kind,
            Target::Kind(Kind::Any) => any,
            _ => {
                let value = self.wrong("array");
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(value);
            }
        };
        let context = self.context;
        let mut list = Vec::new();
        loop {
            context.path.push(Step::Index(list.len()));
            let next = seq.next_element_seed(Walk::new(context, item));
            context.path.pop();
            match next? {
                Some(value) => list.push(or_zero(value, item)),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let any = &Kind::Any;
        match self.target {
            Target::Object(ty) => object(self.context, ty, map),
            Target::Kind(Kind::Map(item)) => entries(self.context, &item.kind, map),
            Target::Kind(Kind::Any) => entries(self.context, any, map),
            _ => {
                let value = self.wrong("object");
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(value)
            }
        }
    }
}

// A map with free keys.
fn entries<'de, 't, A: MapAccess<'de>>(
    context: &mut Context<'t>,
    item: &'t Kind,
    mut map: A,
) -> Result<Value, A::Error> {
    let mut out = Map::new();
    while let Some(key) = map.next_key::<String>()? {
        context.path.push(Step::Key(key.clone()));
        if out.contains_key(&key) {
            context.problem("duplicate");
        }
        let value = map.next_value_seed(Walk::new(context, item));
        context.path.pop();
        out.insert(key, or_zero(value?, item));
    }
    Ok(Value::Object(out))
}

// An object with fields.
fn object<'de, 't, A: MapAccess<'de>>(
    context: &mut Context<'t>,
    ty: &'t Type,
    mut map: A,
) -> Result<Value, A::Error> {
    let mut out = Map::new();
    let mut nulls: Vec<String> = Vec::new();
    context.structs.push(ty);
    while let Some(key) = map.next_key::<String>()? {
        let Some(field) = ty.field(&key) else {
            context.path.push(Step::Unknown(key));
            context.problem("unknown");
            map.next_value::<IgnoredAny>()?;
            context.path.pop();
            continue;
        };
        context.path.push(Step::Field(&field.name));
        if out.contains_key(&key) || nulls.contains(&key) {
            context.problem("duplicate");
        }
        let value = map.next_value_seed(Walk::new(context, &field.schema.kind))?;
        context.path.pop();
        if value.is_null() {
            nulls.push(key);
        } else {
            put(&mut out, key, value);
        }
    }
    context.structs.pop();
    tidy(&mut out, ty);
    Ok(Value::Object(out))
}
