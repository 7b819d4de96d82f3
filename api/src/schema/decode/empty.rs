//! What becomes of empty and missing fields: Go drops some when it writes an object back, and always writes others.

use serde_json::{Map, Value};

use super::super::{Field, Kind, Type};

/// Go decodes a repeated key into what is there: objects merge, everything else is replaced.
pub(super) fn put(out: &mut Map<String, Value>, name: String, value: Value) {
    match (out.get_mut(&name), value) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            for (key, value) in new {
                old.insert(key, value);
            }
        }
        (_, value) => {
            out.insert(name, value);
        }
    }
}

/// Drops what Go would not write back and adds what it always writes.
pub(super) fn tidy(out: &mut Map<String, Value>, ty: &Type) {
    out.retain(|name, value| ty.field(name).is_none_or(|f| f.always || !vanishes(f, value)));
    for field in ty.fields.iter().filter(|f| f.always) {
        if out.contains_key(&field.name) {
            continue;
        }
        let value = if field.pointer { Value::Null } else { zero_of(&field.schema.kind) };
        out.insert(field.name.clone(), value);
    }
}

fn vanishes(field: &Field, value: &Value) -> bool {
    match (&field.schema.kind, value) {
        (Kind::List(_), Value::Array(l)) => l.is_empty(),
        (Kind::Map(_), Value::Object(m)) => m.is_empty(),
        (Kind::String | Kind::Bytes, Value::String(s)) => !field.pointer && s.is_empty(),
        (Kind::Boolean, Value::Bool(b)) => !field.pointer && !b,
        (Kind::Int32 | Kind::Int64, Value::Number(n)) => !field.pointer && n.as_i64() == Some(0),
        _ => false,
    }
}

/// Null in a list or a map is the zero of its kind.
pub(super) fn or_zero(value: Value, kind: &Kind) -> Value {
    if value.is_null() { zero_of(kind) } else { value }
}

fn zero_of(kind: &Kind) -> Value {
    match kind {
        Kind::String => "".into(),
        Kind::Boolean => false.into(),
        Kind::Int32 | Kind::Int64 | Kind::Number | Kind::IntOrString => 0.into(),
        Kind::Quantity => "0".into(),
        Kind::Object(r) => {
            let ty = r.get();
            if let Some(leaf) = &ty.leaf {
                return zero_of(leaf);
            }
            let mut out = Map::new();
            tidy(&mut out, ty);
            Value::Object(out)
        }
        Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::List(_) | Kind::Map(_) | Kind::Any => Value::Null,
    }
}
