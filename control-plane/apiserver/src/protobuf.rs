//! Bodies in Kubernetes' protobuf encoding, read as JSON by the schema table and a table of field numbers.
//!
//! Clients generated from Kubernetes' types send their objects so; answers are always JSON, which those clients accept.
//! `fields.txt` is generated (`examples/generate_protobuf_fields.rs`).

mod wire;

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use coracle_api::schema::{self, Kind, Schema, Type};
use coracle_api::{Gvk, Status};
use serde_json::{Map, Value};

use wire::{Item, Reader};

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// What a number means in a message.
enum Entry {
    /// A field of the type.
    Field(&'static str),
    /// A message whose fields JSON writes in the outer object.
    Inline(&'static str),
}

type Table = HashMap<&'static str, Vec<(u32, Entry)>>;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let lines = include_str!("protobuf/fields.txt").lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split(' ');
            let name = words.next()?;
            let entries = words.filter_map(|word| match word.split_once('>') {
                Some((number, inline)) => Some((number.parse().ok()?, Entry::Inline(inline))),
                None => {
                    let (field, number) = word.split_once('=')?;
                    Some((number.parse().ok()?, Entry::Field(field)))
                }
            });
            Some((name, entries.collect()))
        })
        .collect()
});

/// Why a body is no object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("malformed protobuf: {0}")]
    Malformed(&'static str),
    #[error("{0} has no schema here, send it as JSON")]
    UnknownKind(Gvk),
    #[error("{ty} has no field number {number} here, send it as JSON")]
    UnknownField { ty: String, number: u32 },
    #[error("{ty}.{field} cannot be read from protobuf here, send it as JSON")]
    Unreadable { ty: String, field: String },
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::bad_request(error.to_string())
    }
}

/// The object in a protobuf body, `apiVersion` and `kind` included. Zero values that protobuf always writes are in it; decoding
/// by schema drops them.
pub(crate) fn to_json(body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    let mut reader = Reader::new(envelope);
    while let Some((number, item)) = reader.next()? {
        match number {
            1 => {
                let mut type_meta = Reader::new(item.bytes()?);
                while let Some((number, item)) = type_meta.next()? {
                    match number {
                        1 => api_version = item.text()?.to_owned(),
                        2 => kind = item.text()?.to_owned(),
                        _ => {}
                    }
                }
            }
            2 => raw = item.bytes()?,
            _ => {}
        }
    }
    let gvk = Gvk::from_api_version(&api_version, kind);
    let ty = schema::for_gvk(&gvk).ok_or_else(|| Error::UnknownKind(gvk.clone()))?;
    let mut object = Map::new();
    message(raw, ty, &ty.name, MAX_DEPTH, &mut object)?;
    object.insert("apiVersion".into(), gvk.api_version().into());
    object.insert("kind".into(), gvk.kind.into());
    Ok(Value::Object(object))
}

/// Reads a message into an object of a type, by the numbers of `row` (the type's own, or those of an inline part).
fn message(
    bytes: &[u8],
    ty: &Type,
    row: &str,
    depth: usize,
    out: &mut Map<String, Value>,
) -> Result<(), Error> {
    let depth = depth.checked_sub(1).ok_or(Error::Malformed("nested too deeply"))?;
    let numbers =
        TABLE.get(row).ok_or_else(|| Error::Unreadable { ty: ty.name.clone(), field: row.to_owned() })?;
    let mut reader = Reader::new(bytes);
    while let Some((number, item)) = reader.next()? {
        match numbers.iter().find(|(n, _)| *n == number).map(|(_, entry)| entry) {
            None => return Err(Error::UnknownField { ty: ty.name.clone(), number }),
            Some(Entry::Inline(inline)) => message(item.bytes()?, ty, inline, depth, out)?,
            Some(Entry::Field(name)) => {
                let unreadable = || Error::Unreadable { ty: ty.name.clone(), field: (*name).to_owned() };
                let field = ty.field(name).ok_or_else(unreadable)?;
                field_value(&field.schema, item, depth, name, out).map_err(|e| match e {
                    Error::Malformed("unreadable") => unreadable(),
                    other => other,
                })?;
            }
        }
    }
    Ok(())
}

fn field_value(
    schema: &Schema,
    item: Item<'_>,
    depth: usize,
    name: &str,
    out: &mut Map<String, Value>,
) -> Result<(), Error> {
    match &schema.kind {
        Kind::List(of) => {
            let list = out.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Some(list) = list.as_array_mut() else { return Ok(()) };
            match (&of.kind, &item) {
                // Numbers may come packed.
                (Kind::Int32 | Kind::Int64 | Kind::Boolean, Item::Bytes(packed)) => {
                    let mut packed = Reader::new(packed);
                    while let Some(number) = packed.varint()? {
                        list.push(scalar(&of.kind, Item::Varint(number), depth)?);
                    }
                }
                _ => list.push(scalar(&of.kind, item, depth)?),
            }
        }
        Kind::Map(of) => {
            let (mut key, mut value) = (String::new(), None);
            let mut entry = Reader::new(item.bytes()?);
            while let Some((number, item)) = entry.next()? {
                match number {
                    1 => key = item.text()?.to_owned(),
                    2 => value = Some(scalar(&of.kind, item, depth)?),
                    _ => {}
                }
            }
            let map = out.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Some(map) = map.as_object_mut() {
                map.insert(key, value.unwrap_or_else(|| zero(&of.kind)));
            }
        }
        kind => {
            let value = scalar(kind, item, depth)?;
            if !value.is_null() {
                out.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// What a map entry without a value means.
fn zero(kind: &Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes | Kind::Quantity => "".into(),
        Kind::Boolean => false.into(),
        Kind::Int32 | Kind::Int64 | Kind::Number => 0.into(),
        Kind::List(_) => Value::Array(Vec::new()),
        _ => Value::Object(Map::new()),
    }
}

/// One value; null for a time that is not set.
fn scalar(kind: &Kind, item: Item<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match kind {
        Kind::String => item.text()?.into(),
        Kind::Bytes => base64::engine::general_purpose::STANDARD.encode(item.bytes()?).into(),
        Kind::Boolean => (item.varint()? != 0).into(),
        // Negative numbers are written as 64 bits of two's complement.
        Kind::Int32 | Kind::Int64 => (item.varint()? as i64).into(),
        Kind::Number => match item {
            Item::Fixed64(bits) => f64::from_bits(bits).into(),
            other => (other.varint()? as i64).into(),
        },
        Kind::Quantity => first_text(item)?.into(),
        Kind::IntOrString => int_or_string(item)?,
        Kind::Time => time(item, false)?,
        Kind::MicroTime => time(item, true)?,
        Kind::Any => any(item)?,
        Kind::Object(ty) => match &ty.get().leaf {
            Some(leaf) => scalar(leaf, item, depth)?,
            None => {
                let mut object = Map::new();
                message(item.bytes()?, ty.get(), &ty.get().name, depth, &mut object)?;
                Value::Object(object)
            }
        },
        // A named list: a message whose field 1 repeats.
        Kind::List(of) => {
            let mut list = Vec::new();
            let mut items = Reader::new(item.bytes()?);
            while let Some((_, item)) = items.next()? {
                list.push(scalar(
                    &of.kind,
                    item,
                    depth.checked_sub(1).ok_or(Error::Malformed("nested too deeply"))?,
                )?);
            }
            list.into()
        }
        Kind::Map(_) => return Err(Error::Malformed("unreadable")),
    })
}

fn first_text(item: Item<'_>) -> Result<String, Error> {
    let mut reader = Reader::new(item.bytes()?);
    let mut text = String::new();
    while let Some((number, item)) = reader.next()? {
        if number == 1 {
            text = item.text()?.to_owned();
        }
    }
    Ok(text)
}

fn int_or_string(item: Item<'_>) -> Result<Value, Error> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    let mut reader = Reader::new(item.bytes()?);
    while let Some((field, item)) = reader.next()? {
        match field {
            1 => is_text = item.varint()? == 1,
            2 => number = item.varint()? as i64,
            3 => text = item.text()?.to_owned(),
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn time(item: Item<'_>, micro: bool) -> Result<Value, Error> {
    let bytes = item.bytes()?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((number, item)) = reader.next()? {
        match number {
            1 => seconds = item.varint()? as i64,
            2 => nanos = i32::try_from(item.varint()? as i64).unwrap_or(0),
            _ => {}
        }
    }
    let at = jiff::Timestamp::new(seconds, nanos).map_err(|_| Error::Malformed("time out of range"))?;
    let text = if micro { coracle_api::time::micros(at) } else { coracle_api::time::seconds(at) };
    Ok(text.into())
}

fn any(item: Item<'_>) -> Result<Value, Error> {
    let mut reader = Reader::new(item.bytes()?);
    let mut value = Value::Null;
    while let Some((number, item)) = reader.next()? {
        if number == 1 {
            value = serde_json::from_slice(item.bytes()?)
                .map_err(|_| Error::Malformed("embedded object is not JSON"))?;
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
