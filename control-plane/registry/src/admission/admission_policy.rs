//! What admission policies say of a call, where a binding makes them hold.

mod mutating;
mod parameters;
mod validating;

use std::collections::HashMap;
use std::sync::Arc;

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::Attributes;
use parking_lot::Mutex;
use serde_json::Value;

use super::subject::{Form, Subject};
use crate::admission_policy::{Compiled, Family, GROUP};
use crate::value::{at, items, text};

pub use mutating::MutatingAdmissionPolicy;
pub use validating::ValidatingAdmissionPolicy;

/// Most policies whose expressions are kept ready.
const READY_MAX: usize = 256;

/// Policies whose expressions were read, by uid and generation.
#[derive(Default)]
struct Ready(Mutex<HashMap<(String, i64), Arc<Compiled>>>);

impl Ready {
    fn get(&self, policy: &Value) -> Arc<Compiled> {
        let key = (meta::uid(policy).unwrap_or_default().to_owned(), meta::generation(policy));
        if let Some(found) = self.0.lock().get(&key) {
            return found.clone();
        }
        let made = Arc::new(Compiled::of(at(policy, "/spec")));
        let mut ready = self.0.lock();
        if ready.len() >= READY_MAX {
            ready.clear();
        }
        ready.insert(key, made.clone());
        made
    }
}

/// A policy that a binding makes hold for a call, with one of its parameters.
struct Held {
    policy: Arc<Value>,
    binding: Arc<Value>,
    compiled: Arc<Compiled>,
    form: Form,
    /// The parameters, or why there are none.
    params: Result<Value, String>,
}

impl Held {
    fn policy(&self) -> &str {
        text(&self.policy, "/metadata/name")
    }

    fn binding(&self) -> &str {
        text(&self.binding, "/metadata/name")
    }

    /// Which one it is, among all.
    fn id(&self) -> String {
        let params = self.params.as_ref().map(|p| meta::uid(p).unwrap_or_default()).unwrap_or_default();
        format!("{}/{}/{params}", self.policy(), self.binding())
    }
}

/// The policies of a family that hold for a call, in the order of their names.
async fn held(
    family: Family,
    ready: &Ready,
    subject: &Subject<'_>,
    object: &Value,
) -> Result<Vec<Held>, Status> {
    let objects = subject.attributes.objects;
    let bindings = objects.list(GROUP, family.bindings(), None).await?;
    let mut by_policy: Vec<(Arc<Value>, Vec<Value>)> = Vec::new();
    for binding in bindings {
        let name = text(&binding, "/spec/policyName");
        match by_policy.iter_mut().find(|(policy, _)| text(policy, "/metadata/name") == name) {
            Some((_, all)) => all.push(binding),
            None => {
                if let Some(policy) = objects.get(GROUP, family.policies(), None, name).await? {
                    by_policy.push((Arc::new(policy), vec![binding]));
                }
            }
        }
    }
    by_policy.sort_by(|(a, _), (b, _)| meta::name(a).cmp(&meta::name(b)));
    let mut all = Vec::new();
    for (policy, bindings) in by_policy {
        let Some(form) = covered(subject, at(&policy, "/spec/matchConstraints"), object).await? else {
            continue;
        };
        let compiled = ready.get(&policy);
        for binding in bindings {
            if covered(subject, at(&binding, "/spec/matchResources"), object).await?.is_none() {
                continue;
            }
            let binding = Arc::new(binding);
            for params in parameters::of(subject, &policy, &binding).await? {
                all.push(Held {
                    policy: policy.clone(),
                    binding: binding.clone(),
                    compiled: compiled.clone(),
                    form: form.clone(),
                    params,
                });
            }
        }
    }
    Ok(all)
}

/// In which form `matchConstraints` or `matchResources` cover a call. Without rules they cover every resource.
async fn covered(subject: &Subject<'_>, matched: &Value, object: &Value) -> Result<Option<Form>, Status> {
    let exact = text(matched, "/matchPolicy") == "Exact";
    let (rules, but) = (items(matched, "/resourceRules"), items(matched, "/excludeResourceRules"));
    if subject.matched(but, exact).await.is_some() {
        return Ok(None);
    }
    let form = if rules.is_empty() { Some(None) } else { subject.matched(rules, exact).await };
    let Some(form) = form else { return Ok(None) };
    let old = subject.attributes.old.unwrap_or(&Value::Null);
    Ok(subject.chosen(matched, object, old).await?.then_some(form))
}

/// Whether there is nothing to do, which is so for nearly every call of nearly every cluster.
fn unbound(attributes: &Attributes<'_>, family: Family) -> Result<bool, Status> {
    let prefix = format!("/registry/{GROUP}/{}/", family.bindings());
    let mut range = coracle_store::Range::prefix(prefix);
    range.limit = 1;
    Ok(attributes.objects.store().range(&range).map_err(Status::internal)?.kvs.is_empty())
}
