//! The parameters that a binding gives its policy.

use coracle_api::meta::Gvk;
use coracle_api::status::Status;
use serde_json::Value;

use crate::admission::subject::Subject;
use crate::check;
use crate::value::{at, present, text};

/// Most parameters of one binding.
const PARAMETERS_MAX: usize = 1024;

const NONE: &str = "no params found for policy binding with `Deny` parameterNotFoundAction";

/// With which parameters a policy is evaluated: null where it takes none, an error in words where they are missing and that is to
/// deny, nothing at all where that is to allow.
pub(super) async fn of(
    subject: &Subject<'_>,
    policy: &Value,
    binding: &Value,
) -> Result<Vec<Result<Value, String>>, Status> {
    let (kind, reference) = (at(policy, "/spec/paramKind"), at(binding, "/spec/paramRef"));
    if !kind.is_object() || !reference.is_object() {
        return Ok(vec![Ok(Value::Null)]);
    }
    let wrong = |words: String| Ok(vec![Err(format!("failed to configure binding: {words}"))]);
    let objects = subject.attributes.objects;
    let wanted = Gvk::of(kind);
    let resources = objects.resources();
    let def = resources
        .iter()
        .find(|r| r.group == wanted.group && r.version == wanted.version && r.kind == wanted.kind);
    let Some(def) = def else {
        return wrong(format!("failed to find resource referenced by paramKind: '{wanted}'"));
    };
    let given = Some(text(reference, "/namespace")).filter(|n| !n.is_empty());
    let namespace = match (def.namespaced, given) {
        (false, Some(_)) => {
            return wrong("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        (false, None) => None,
        (true, Some(namespace)) => Some(namespace),
        (true, None) if subject.namespace.is_empty() => {
            return wrong(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, None) => Some(subject.namespace),
    };
    let name = text(reference, "/name");
    let mut found = if present(reference, "/selector") {
        let selector = at(reference, "/selector");
        let mut all = objects.list(&def.group, &def.plural, namespace).await?;
        all.retain(|o| check::selector_matches(selector, at(o, "/metadata/labels")));
        all
    } else {
        objects.get(&def.group, &def.plural, namespace, name).await?.into_iter().collect()
    };
    if found.is_empty() {
        return match text(reference, "/parameterNotFoundAction") {
            "Allow" => Ok(Vec::new()),
            _ => wrong(NONE.to_owned()),
        };
    }
    found.truncate(PARAMETERS_MAX);
    Ok(found.into_iter().map(Ok).collect())
}
