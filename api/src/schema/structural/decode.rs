//! Decoding of custom objects: metadata by its type, the rest by pruning; then the defaults.

use serde_json::Value;

use super::super::{Decoded, Input, Validation, by_name, decode_any, decode_value};
use super::{Structural, apply_defaults, prune};
use crate::field;
use crate::meta::{self, Gvk};
use crate::status::Status;
use crate::yaml;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Decodes the body of a request that should hold an `expected`. Errors are 400s in Kubernetes' words.
pub fn decode(
    schema: &Structural,
    expected: &Gvk,
    input: Input<'_>,
    validation: Validation,
) -> Result<Decoded, Status> {
    let unrecognized = |error: String| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {error}",
            expected.kind
        ))
    };
    let (mut object, mut problems) = match input {
        Input::Json(bytes) => decode_any(bytes).map_err(unrecognized)?,
        Input::Yaml(bytes) => {
            let document = yaml::one_document(bytes)
                .map_err(|e| unrecognized(format!("error converting YAML to JSON: {e}")))?;
            (document.value, document.duplicates)
        }
    };
    if !object.is_object() {
        return Err(unrecognized(
            "json: cannot unmarshal into Go value of type map[string]interface {}".into(),
        ));
    }
    let actual = Gvk::of(&object);
    let refuse = |error: String| {
        Status::bad_request(format!(
            "{} in version {} cannot be handled as a {}: {error}",
            if actual.kind.is_empty() { &expected.kind } else { &actual.kind },
            field::go_quote(if actual.version.is_empty() { &expected.version } else { &actual.version }),
            expected.kind
        ))
    };
    if actual.kind.is_empty() {
        return Err(Status::bad_request(format!("Object 'Kind' is missing in '{}'", short(&object))));
    }
    if actual.version.is_empty() {
        return Err(Status::bad_request(format!("Object 'apiVersion' is missing in '{}'", short(&object))));
    }
    if actual != *expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            actual.api_version(),
            expected.api_version()
        )));
    }
    problems.extend(normalize(schema, expected, &mut object).map_err(refuse)?);
    if validation == Validation::Strict && !problems.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", problems.join(", "))));
    }
    let warnings = if validation == Validation::Warn { problems } else { Vec::new() };
    Ok(Decoded { object, warnings })
}

/// Decodes the result of a patch. Errors are 422s that show the whole patched object.
pub fn decode_patched(
    schema: &Structural,
    expected: &Gvk,
    patched: &Value,
    validation: Validation,
) -> Result<Decoded, Status> {
    let refuse = |error: String| {
        let path = field::Path::new("patch");
        Status::invalid(&Gvk::default(), "", vec![field::Error::invalid(&path, patched.to_string(), error)])
    };
    let mut object = patched.clone();
    let problems = normalize(schema, expected, &mut object).map_err(refuse)?;
    if validation == Validation::Strict && !problems.is_empty() {
        return Err(refuse(format!("strict decoding error: {}", problems.join(", "))));
    }
    let warnings = if validation == Validation::Warn { problems } else { Vec::new() };
    Ok(Decoded { object, warnings })
}

/// Brings an object into the form that a schema gives it: typed metadata, nothing unknown, defaults set. Returns what was
/// unknown, in words; the error is metadata of a wrong type.
pub fn normalize(schema: &Structural, gvk: &Gvk, object: &mut Value) -> Result<Vec<String>, String> {
    let mut problems = typed_metadata(object, "metadata")?;
    embedded_metadata(schema, object)?;
    meta::set_gvk(object, gvk);
    let mut unknown = Vec::new();
    prune(schema, object, true, &mut unknown);
    problems.extend(unknown.iter().map(|path| format!("unknown field {}", field::go_quote(path))));
    apply_defaults(schema, object);
    Ok(problems)
}

/// Makes `metadata` what its type makes of it.
fn typed_metadata(object: &mut Value, path: &str) -> Result<Vec<String>, String> {
    let Some(ty) = by_name(OBJECT_META) else { return Ok(Vec::new()) };
    let Some(map) = object.as_object_mut() else { return Ok(Vec::new()) };
    let given = map.get("metadata").cloned().unwrap_or(Value::Null);
    if given.is_null() {
        map.insert("metadata".into(), Value::Object(Default::default()));
        return Ok(Vec::new());
    }
    let (metadata, problems) = decode_value(ty, &given)?;
    map.insert("metadata".into(), metadata);
    // The walk knows paths below metadata only.
    let placed = |p: String| match p.split_once(" field \"") {
        Some((what, rest)) => format!("{what} field \"{path}.{rest}"),
        None => p,
    };
    Ok(problems.into_iter().map(placed).collect())
}

/// The metadata of objects inside objects.
fn embedded_metadata(schema: &Structural, value: &mut Value) -> Result<(), String> {
    match value {
        Value::Object(map) => {
            for (key, member) in map.iter_mut() {
                let Some(inner) = schema.member(key) else { continue };
                if inner.embedded && member.get("metadata").is_some() {
                    typed_metadata(member, "metadata")?;
                }
                embedded_metadata(inner, member)?;
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return Ok(()) };
            for item in list {
                if items.embedded && item.get("metadata").is_some() {
                    typed_metadata(item, "metadata")?;
                }
                embedded_metadata(items, item)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn short(object: &Value) -> String {
    object.to_string().chars().take(200).collect()
}
