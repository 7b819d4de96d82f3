//! JSON as the values of expressions, and how much of it there is.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_api::schema::structural::{JsonType, Structural};
use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::{Key, Map};
use serde_json::Value;

use super::compile::Expression;

/// The most steps that one expression may take, and the most bytes that its texts may grow to.
const MAX_STEPS: f64 = 5e6;
const MAX_TEXT: f64 = 64e6;

const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// What bounds the work of an expression over a value.
pub(crate) struct Extent {
    /// The longest list or map.
    longest: usize,
    /// Bytes of all texts.
    text: usize,
}

impl Extent {
    pub fn of(value: &Value, old: Option<&Value>) -> Self {
        let mut extent = Self { longest: 1, text: 1 };
        extent.add(value);
        old.into_iter().for_each(|old| extent.add(old));
        extent
    }

    /// Counts one more value in.
    pub fn widen(&mut self, value: &Value) {
        self.add(value);
    }

    fn add(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text += text.len(),
            Value::Array(list) => {
                self.longest = self.longest.max(list.len());
                list.iter().for_each(|v| self.add(v));
            }
            Value::Object(map) => {
                self.longest = self.longest.max(map.len());
                for (key, value) in map {
                    self.text += key.len();
                    self.add(value);
                }
            }
            _ => {}
        }
    }

    /// Whether the expression ends soon enough on such a value.
    pub fn affords(&self, expression: &Expression) -> bool {
        let turns = (self.longest as f64).powi(i32::try_from(expression.loops).unwrap_or(i32::MAX));
        let text = (self.text as f64).powi(1 + i32::try_from(expression.growths).unwrap_or(i32::MAX - 1));
        turns * expression.size as f64 <= MAX_STEPS && (expression.growths == 0 || text <= MAX_TEXT)
    }
}

/// A value of a schema. Of a whole `object`, `apiVersion`, `kind` and its names are seen too.
pub(crate) fn to_cel(schema: &Structural, value: &Value, object: bool) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(n) if schema.kind == Some(JsonType::Number) => Cel::Float(n.as_f64().unwrap_or(0.0)),
        Value::Number(n) => match n.as_i64() {
            Some(i) => Cel::Int(i),
            None => Cel::Float(n.as_f64().unwrap_or(0.0)),
        },
        Value::String(text) => string(schema, text),
        Value::Array(list) => {
            let any = Structural::default();
            let items = schema.items.as_deref().unwrap_or(&any);
            Cel::List(Arc::new(list.iter().map(|v| to_cel(items, v, items.embedded)).collect()))
        }
        Value::Object(map) => {
            let any = Structural::default();
            let mut out = HashMap::with_capacity(map.len());
            let mut put = |key: String, value: Cel| drop(out.insert(Key::String(Arc::new(key)), value));
            for (key, member) in map {
                if object && matches!(key.as_str(), "apiVersion" | "kind") {
                    put(key.clone(), to_cel(&any, member, false));
                } else if object && key == "metadata" {
                    put(key.clone(), names(member));
                } else if let Some(property) = schema.properties.get(key) {
                    put(escaped(key), to_cel(property, member, property.embedded));
                } else if let Some(inner) = schema.member(key) {
                    put(key.clone(), to_cel(inner, member, inner.embedded));
                } else if schema.preserve_unknown || schema.kind.is_none() {
                    put(key.clone(), to_cel(&any, member, false));
                }
            }
            Cel::Map(Map { map: Arc::new(out) })
        }
    }
}

fn names(metadata: &Value) -> Cel {
    let any = Structural::default();
    let mut out = HashMap::new();
    for name in ["name", "generateName"] {
        if let Some(value) = metadata.get(name) {
            out.insert(Key::String(Arc::new(name.to_owned())), to_cel(&any, value, false));
        }
    }
    Cel::Map(Map { map: Arc::new(out) })
}

fn string(schema: &Structural, text: &str) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    // The interpreter reads them itself, so that its own types need not be named here.
    match schema.format.as_str() {
        "date-time" => call("timestamp(x)", text).unwrap_or_else(plain),
        "duration" => call("duration(x)", text).unwrap_or_else(plain),
        _ => plain(),
    }
}

fn call(expression: &str, text: &str) -> Option<Cel> {
    let program = kube_cel::cel::Program::compile(expression).ok()?;
    let mut context = kube_cel::cel::Context::default();
    context.add_variable_from_value("x", text.to_owned());
    program.execute(&context).ok()
}

/// The name by which an expression reaches a property.
pub(super) fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/', '_']) {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}

/// The property that an escaped name reaches.
pub(crate) fn unescaped(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return word.to_owned();
    }
    name.replace("__dot__", ".")
        .replace("__dash__", "-")
        .replace("__slash__", "/")
        .replace("__underscores__", "__")
}
