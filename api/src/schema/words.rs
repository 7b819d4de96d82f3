//! What Go's decoders say about input that they refuse.

mod json_syntax;

use serde::Deserialize;
use serde_json::Value;

use super::{Kind, Type, for_gvk};
use crate::field::go_quote;
use crate::meta::Gvk;

/// The start of a body for an error: text where it looks like JSON, hex otherwise.
pub(super) fn summarize(body: &[u8]) -> String {
    const MOST: usize = 30;
    let (head, dots) =
        body.get(..MOST).map_or((body, ""), |head| (head, if body.len() > MOST { " ..." } else { "" }));
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{dots}", String::from_utf8_lossy(head)),
        Some(_) => format!("{}{dots}", head.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionKind {
    #[serde(default)]
    api_version: Value,
    #[serde(default)]
    kind: Value,
}

/// What a JSON body says it is; what it lacks is empty.
pub(super) fn version_and_kind(bytes: &[u8]) -> Result<Gvk, String> {
    // Duplicates of these two keys are rare and Value keeps the last, as Go does.
    let value: Value = match serde_json::from_slice::<Slim>(bytes) {
        Ok(Slim(value)) => value,
        Err(e) => return Err(json_error(bytes, &e)),
    };
    version_and_kind_of(&value)
}

// Only apiVersion and kind of an object; other values as null of their type.
struct Slim(Value);

impl<'de> Deserialize<'de> for Slim {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SlimVisitor).map(Slim)
    }
}

struct SlimVisitor;

impl<'de> serde::de::Visitor<'de> for SlimVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(b.into())
    }

    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(n.into())
    }

    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(s.into())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if matches!(key.as_str(), "apiVersion" | "kind") {
                let Slim(value) = map.next_value()?;
                out.insert(key, value);
            } else {
                map.next_value::<serde::de::IgnoredAny>()?;
            }
        }
        Ok(Value::Object(out))
    }
}

/// What a value says it is; what it lacks is empty.
pub(super) fn version_and_kind_of(value: &Value) -> Result<Gvk, String> {
    let object = match value {
        Value::Null => return Ok(Gvk::default()),
        Value::Object(_) => VersionKind::deserialize(value).map_err(|e| e.to_string())?,
        other => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
                json_type(other)
            ));
        }
    };
    let text = |value: &Value, field: &str| match value {
        Value::Null => Ok(String::new()),
        Value::String(s) => Ok(s.clone()),
        other => Err(format!(
            "json: cannot unmarshal {} into Go struct field .{field} of type string",
            json_type(other)
        )),
    };
    let kind = text(&object.kind, "kind")?;
    Ok(Gvk::from_api_version(&text(&object.api_version, "apiVersion")?, kind))
}

/// Go's word for the type of a JSON value.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Why an object of one kind does not do for another.
pub(super) fn not_that_kind(actual: &Gvk, expected: &Gvk) -> String {
    if for_gvk(actual).is_none() {
        return format!(
            "no kind {} is registered for version {} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            go_quote(&actual.kind),
            go_quote(&actual.api_version())
        );
    }
    let package = match expected.group.split('.').next() {
        Some("") | None => "core",
        Some(group) => group,
    };
    format!(
        "converting ({}.{}) to ({package}.{}): unknown conversion",
        actual.version, actual.kind, expected.kind
    )
}

/// The name of the Go type of a kind.
pub(super) fn go_type(kind: &Kind) -> String {
    match kind {
        Kind::String | Kind::Time | Kind::MicroTime => "string".into(),
        Kind::Bytes => "[]uint8".into(),
        Kind::Boolean => "bool".into(),
        Kind::Int32 | Kind::IntOrString => "int32".into(),
        Kind::Int64 => "int64".into(),
        Kind::Number => "float64".into(),
        Kind::Quantity => "resource.Quantity".into(),
        Kind::List(item) => format!("[]{}", go_type(&item.kind)),
        Kind::Map(item) => format!("map[string]{}", go_type(&item.kind)),
        Kind::Object(r) => go_type_of(r.get()),
        Kind::Any => "interface {}".into(),
    }
}

/// The name of the Go type of a type: `v1.PodSpec`.
pub(super) fn go_type_of(ty: &Type) -> String {
    if let Some(leaf) = &ty.leaf {
        return go_type(leaf);
    }
    let mut parts = ty.name.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(name), Some(package)) => format!("{package}.{name}"),
        _ => ty.name.clone(),
    }
}

/// What is wrong with a text that should be JSON, in the words of Go's decoder; `None` where it is well-formed.
pub fn json_syntax_error(bytes: &[u8]) -> Option<String> {
    json_syntax::explain(bytes)
}

/// Go's words for JSON that does not parse.
pub(super) fn json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    json_syntax::explain(bytes).unwrap_or_else(|| error.to_string())
}

/// Go's words for base64 that does not decode: the offset of the first byte that does not fit.
pub(super) fn base64_error(text: &str) -> String {
    let mut seen = 0;
    for (i, b) in text.bytes().enumerate() {
        match b {
            b'\r' | b'\n' => {}
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => seen += 1,
            b'=' if seen % 4 >= 2 => {
                let rest = text.get(i..).unwrap_or_default().trim_end_matches(['\r', '\n']);
                let at = if rest.len() + seen % 4 == 4 { i } else { text.len() };
                return format!("illegal base64 data at input byte {at}");
            }
            _ => return format!("illegal base64 data at input byte {i}"),
        }
    }
    format!("illegal base64 data at input byte {}", seen - seen % 4)
}

/// Go's words for a time that does not parse.
pub(super) fn time_error(text: &str, micro: bool) -> String {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let quoted = go_quote(text);
    let mut rest = text;
    let elements = [
        ("2006", 4),
        ("-", 0),
        ("01", 2),
        ("-", 0),
        ("02", 2),
        ("T", 0),
        ("15", 2),
        (":", 0),
        ("04", 2),
        (":", 0),
        ("05", 2),
    ];
    for (element, digits) in elements {
        let length = if digits == 0 { element.len() } else { digits };
        let fits = rest.get(..length).is_some_and(|head| {
            if digits == 0 { head == element } else { head.bytes().all(|b| b.is_ascii_digit()) }
        });
        if !fits {
            return format!(
                "parsing time {quoted} as \"{layout}\": cannot parse {} as \"{element}\"",
                go_quote(rest)
            );
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            rest = fraction.get(digits..).unwrap_or_default();
        }
    }
    if rest.is_empty() || !rest.starts_with(['Z', '+', '-']) {
        return format!(
            "parsing time {quoted} as \"{layout}\": cannot parse {} as \"Z07:00\"",
            go_quote(rest)
        );
    }
    let number = |at: std::ops::Range<usize>| text.get(at).and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
    for (what, value, range) in [
        ("month", number(5..7), 1..=12),
        ("day", number(8..10), 1..=31),
        ("hour", number(11..13), 0..=23),
        ("minute", number(14..16), 0..=59),
        ("second", number(17..19), 0..=59),
    ] {
        if !range.contains(&value) {
            return format!("parsing time {quoted}: {what} out of range");
        }
    }
    if let Some(extra) = rest.strip_prefix('Z').filter(|e| !e.is_empty()) {
        return format!("parsing time {quoted}: extra text: {}", go_quote(extra));
    }
    format!("parsing time {quoted}: day out of range")
}
