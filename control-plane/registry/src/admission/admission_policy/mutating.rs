//! MutatingAdmissionPolicy: changes objects by JSON patches and by configurations that are merged in.

use coracle_api::meta::GroupResource;
use coracle_api::patch;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes};
use serde_json::Value;

use super::{Held, Ready, held, unbound};
use crate::admission::subject::Subject;
use crate::admission_cel::{Inputs, Scope, to_json};
use crate::admission_policy::{Family, Mutation};
use crate::value::text;

/// The plugin.
#[derive(Default)]
pub struct MutatingAdmissionPolicy {
    ready: Ready,
}

#[async_trait::async_trait]
impl Admission for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(object) = obj else { return Ok(()) };
        if unbound(attributes, Family::Mutating)? {
            return Ok(());
        }
        let Some(subject) = Subject::of(attributes) else { return Ok(()) };
        let turn = attributes.rounds.turn(self.name(), object);
        for held in held(Family::Mutating, &self.ready, &subject, object).await? {
            let id = held.id();
            if !turn.is_due(&id) {
                continue;
            }
            let before = object.clone();
            match change(&subject, &held, object).await? {
                Ok(()) => {}
                Err(_) if held.compiled.ignores => *object = before.clone(),
                Err(why) => return Err(denied(attributes, &held, &why)),
            }
            let willing = text(&held.policy, "/spec/reinvocationPolicy") == "IfNeeded";
            turn.called(&id, *object != before, willing);
        }
        turn.end(object);
        Ok(())
    }
}

/// Lets one policy change the object; the inner error is in words, and `failurePolicy` decides about it.
async fn change(
    subject: &Subject<'_>,
    held: &Held,
    object: &mut Value,
) -> Result<Result<(), String>, Status> {
    let attributes = subject.attributes;
    let params = match &held.params {
        Ok(params) => params,
        Err(why) => return Ok(Err(why.clone())),
    };
    let old = subject.shown(&held.form, attributes.old.unwrap_or(&Value::Null)).await?;
    let request = subject.request(&held.form, "");
    let mut shown = subject.shown(&held.form, object).await?;
    let namespace = subject.namespace_object(&shown, &old).await?.clone();
    for (index, mutation) in held.compiled.mutations.iter().enumerate() {
        let inputs = Inputs {
            object: &shown,
            old: &old,
            request: &request,
            namespace: &namespace,
            params,
            authorizer: attributes.authorizer,
            cx: attributes.request,
        };
        let scope = match held.compiled.scope(&inputs) {
            Ok(Some(scope)) => scope,
            Ok(None) if index == 0 => return Ok(Ok(())),
            Ok(None) => break,
            Err(why) => return Ok(Err(why)),
        };
        match apply(attributes, held, mutation, &scope, &shown) {
            Ok(next) => shown = next,
            Err(why) => return Ok(Err(why)),
        }
    }
    let own = match &held.form {
        Some(def) if !attributes.is_other_kind() => attributes.convert_back(&shown, def)?,
        _ => shown,
    };
    match attributes.decode(&own) {
        Ok(decoded) => *object = decoded,
        Err(status) => return Ok(Err(status.message)),
    }
    Ok(Ok(()))
}

fn apply(
    attributes: &Attributes<'_>,
    held: &Held,
    mutation: &Mutation,
    scope: &Scope,
    object: &Value,
) -> Result<Value, String> {
    let value = to_json(&scope.evaluate(&mutation.expression)?)?;
    if mutation.is_patch {
        if !value.is_array() {
            return Err("JSONPatch expression must evaluate to a list of JSONPatch".to_owned());
        }
        return patch::json(object, &value).map_err(|e| format!("JSON Patch: {}", e.message));
    }
    if !value.is_object() {
        return Err("ApplyConfiguration expression must evaluate to an Object".to_owned());
    }
    for part in ["apiVersion", "kind", "metadata/name", "metadata/generateName"] {
        if value.pointer(&format!("/{part}")).is_some() {
            return Err(format!("invalid ApplyConfiguration: may not set {}", part.replace('/', ".")));
        }
    }
    attributes.merge(object, &value, held.form.as_deref())
}

fn denied(attributes: &Attributes<'_>, held: &Held, why: &str) -> Status {
    let cx = attributes.request;
    let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
    let words = format!("policy '{}' with binding '{}' denied request: {why}", held.policy(), held.binding());
    let mut status = Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), &words);
    (status.code, status.reason) = (422, "Invalid".to_owned());
    status.with_cause("", words, "")
}
