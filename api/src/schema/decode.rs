//! Decoding of objects by type: prunes unknown fields, reports unknown and duplicate ones with their paths, refuses values
//! of the wrong type, and writes values as Kubernetes would write them back (canonical quantities and times, no empty
//! optional fields). Error words are those of Kubernetes' decoder.

mod empty;
mod visitor;

use serde::de::DeserializeSeed;
use serde_json::Value;

use super::{Kind, Type, for_gvk, words};
use crate::field;
use crate::meta::Gvk;
use crate::status::Status;
use crate::yaml;
use visitor::{Context, Walk};

/// The most unknown and duplicate fields that are reported.
const MAX_PROBLEMS: usize = 100;

/// What to do about unknown and duplicate fields: `fieldValidation` of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Refuse the object.
    Strict,
    /// Accept it and warn. The default of the API.
    #[default]
    Warn,
    /// Accept it in silence.
    Ignore,
}

impl Validation {
    /// Reads the value of `fieldValidation`; empty is the default, `None` is no such value.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Validation::Warn),
            "Strict" => Some(Validation::Strict),
            "Ignore" => Some(Validation::Ignore),
            _ => None,
        }
    }
}

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    Json(&'a [u8]),
    Yaml(&'a [u8]),
}

/// An object that was decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object, with `apiVersion` and `kind` set.
    pub object: Value,
    /// For `Warning` headers: `unknown field "spec.x"`.
    pub warnings: Vec<String>,
}

/// Decodes the body of a request that should hold an `expected`. `apiVersion` and `kind` may be missing.
///
/// Errors are 400s in Kubernetes' words; 500 when the table has no such kind.
pub fn decode(expected: &Gvk, input: Input<'_>, validation: Validation) -> Result<Decoded, Status> {
    let ty = type_of(expected)?;
    let unrecognized = |error: String| {
        let body = match input {
            Input::Json(b) | Input::Yaml(b) => b,
        };
        let summary = words::summarize(body);
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {error} ({summary})",
            expected.kind
        ))
    };
    let mut problems = Vec::new();
    let converted;
    let source = match input {
        Input::Json(bytes) => Source::Bytes(bytes),
        Input::Yaml(bytes) => {
            let document = yaml::one_document(bytes)
                .map_err(|e| unrecognized(format!("error converting YAML to JSON: {e}")))?;
            problems.extend(document.duplicates);
            converted = document.value;
            Source::Value(&converted)
        }
    };
    let actual = match source {
        Source::Bytes(bytes) => words::version_and_kind(bytes).map_err(unrecognized)?,
        Source::Value(value) => words::version_and_kind_of(value).map_err(unrecognized)?,
    };
    let actual = complete(actual, expected);
    let refuse = |error: String| {
        Status::bad_request(format!(
            "{} in version {} cannot be handled as a {}: {error}",
            actual.kind,
            field::go_quote(&actual.version),
            expected.kind
        ))
    };
    if actual != *expected {
        return Err(refuse(words::not_that_kind(&actual, expected)));
    }
    let (object, found) = run(ty, source).map_err(refuse)?;
    problems.extend(found);
    if validation == Validation::Strict && !problems.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", problems.join(", "))));
    }
    Ok(finish(object, expected, problems, validation))
}

/// Decodes the result of a patch. Errors are 422s that show the whole patched object, as Kubernetes' are.
pub fn decode_patched(expected: &Gvk, patched: &Value, validation: Validation) -> Result<Decoded, Status> {
    let ty = type_of(expected)?;
    let refuse = |error: String| {
        let path = field::Path::new("patch");
        Status::invalid(&Gvk::default(), "", vec![field::Error::invalid(&path, patched.to_string(), error)])
    };
    let (object, problems) = run(ty, Source::Value(patched)).map_err(refuse)?;
    if validation == Validation::Strict && !problems.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", problems.join(", "))));
    }
    Ok(finish(object, expected, problems, validation))
}

/// Decodes a value by type alone: the object, and its unknown and duplicate fields. The error is a wrong type, in words.
pub fn decode_value(ty: &Type, value: &Value) -> Result<(Value, Vec<String>), String> {
    run(ty, Source::Value(value))
}

/// Reads any JSON: the value, and the fields that it sets twice. The error is in Go's words.
pub(crate) fn decode_any(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let mut context = Context::new();
    let value = read(Walk::new(&mut context, &Kind::Any), bytes)?;
    Ok((value, context.problems))
}

fn read(walk: Walk<'_, '_>, bytes: &[u8]) -> Result<Value, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = walk.deserialize(&mut deserializer).and_then(|v| deserializer.end().map(|()| v));
    value.map_err(|e| words::json_error(bytes, &e))
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Bytes(&'a [u8]),
    Value(&'a Value),
}

// What the body does not say is taken from the request.
fn complete(actual: Gvk, expected: &Gvk) -> Gvk {
    let kind = if actual.kind.is_empty() { expected.kind.clone() } else { actual.kind };
    match actual.version.is_empty() {
        true => Gvk { kind, ..expected.clone() },
        false => Gvk { kind, group: actual.group, version: actual.version },
    }
}

fn type_of(expected: &Gvk) -> Result<&'static Type, Status> {
    for_gvk(expected).ok_or_else(|| Status::internal(format!("the schema table has no type for {expected}")))
}

fn finish(mut object: Value, expected: &Gvk, problems: Vec<String>, validation: Validation) -> Decoded {
    crate::meta::set_gvk(&mut object, expected);
    let warnings = if validation == Validation::Warn { problems } else { Vec::new() };
    Decoded { object, warnings }
}

fn run(ty: &Type, source: Source<'_>) -> Result<(Value, Vec<String>), String> {
    let mut context = Context::new();
    let walk = Walk::object(&mut context, ty);
    let object = match source {
        Source::Bytes(bytes) => read(walk, bytes)?,
        Source::Value(value) => walk.deserialize(value).map_err(|e| e.to_string())?,
    };
    match context.error {
        Some(error) => Err(error),
        None => Ok((object, context.problems)),
    }
}

#[cfg(test)]
mod tests;
