//! What ValidatingAdmissionPolicies say of a call, where a binding makes them hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_api::meta::{self, GroupResource};
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::{Value, json};

use crate::admission_policy::{BINDINGS, Call, Compiled, GROUP, POLICIES, covers};
use crate::value::{at, items, text};

/// Most policies whose expressions are kept ready.
const READY_MAX: usize = 256;

/// The plugin.
#[derive(Default)]
pub struct ValidatingAdmissionPolicy {
    /// By uid and generation.
    ready: Mutex<HashMap<(String, i64), Arc<Compiled>>>,
}

#[async_trait::async_trait]
impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        // Or a policy could lock everybody out of its own repair.
        if cx.group == GROUP {
            return Ok(());
        }
        let bindings = attributes.objects.list(GROUP, BINDINGS, None).await?;
        if bindings.is_empty() {
            return Ok(());
        }
        let object = obj.unwrap_or(&Value::Null);
        let old = attributes.old.unwrap_or(&Value::Null);
        let namespace = match (cx.group.as_str(), cx.resource.as_str(), cx.namespace.as_deref()) {
            (_, _, Some(name)) => attributes.objects.get("", "namespaces", None, name).await?,
            ("", "namespaces", None) => Some(if object.is_null() { old } else { object }.clone()),
            _ => None,
        };
        let namespace = namespace.unwrap_or_default();
        let call = Call {
            operation: word(attributes.operation),
            group: &cx.group,
            version: &cx.version,
            resource: &cx.resource,
            subresource: cx.subresource.as_deref(),
            name: cx.name.as_deref().unwrap_or_default(),
            namespaced: cx.namespace.is_some(),
            namespace_labels: at(&namespace, "/metadata/labels"),
            labels: [at(old, "/metadata/labels"), at(object, "/metadata/labels")],
        };
        let request = request(attributes);
        let known =
            [("object", object), ("oldObject", old), ("request", &request), ("namespaceObject", &namespace)];
        for binding in &bindings {
            let name = text(binding, "/spec/policyName");
            let Some(policy) = attributes.objects.get(GROUP, POLICIES, None, name).await? else { continue };
            let held = covers(at(&policy, "/spec/matchConstraints"), &call)
                && covers(at(binding, "/spec/matchResources"), &call);
            if held {
                self.judge(attributes, &policy, binding, &known)?;
            }
        }
        Ok(())
    }
}

impl ValidatingAdmissionPolicy {
    fn judge(
        &self,
        attributes: &Attributes<'_>,
        policy: &Value,
        binding: &Value,
        known: &[(&str, &Value)],
    ) -> Result<(), Status> {
        let cx = attributes.request;
        let Some(compiled) = self.compiled(policy) else { return Ok(()) };
        let (name, bound) = (text(policy, "/metadata/name"), text(binding, "/metadata/name"));
        let ignored = text(policy, "/spec/failurePolicy") == "Ignore";
        let does = |action: &str| items(binding, "/spec/validationActions").iter().any(|a| a == action);
        for broken in compiled.broken(known).into_iter().filter(|b| !(b.failed && ignored)) {
            let said = &broken.message;
            if does("Deny") {
                let why = format!(
                    "ValidatingAdmissionPolicy '{name}' with binding '{bound}' denied request: {said}"
                );
                let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
                let mut status = Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), why);
                status.code = match broken.reason.as_str() {
                    "Unauthorized" => 401,
                    "Forbidden" => 403,
                    "RequestEntityTooLarge" => 413,
                    _ => 422,
                };
                status.reason = broken.reason;
                return Err(status.with_cause("", broken.message, ""));
            }
            let why = format!(
                "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{bound}': {said}"
            );
            if does("Warn") {
                cx.warnings.add(why.clone());
            }
            if does("Audit") {
                tracing::info!(target: "audit", user = cx.user.name, path = cx.path, "{why}");
            }
        }
        Ok(())
    }

    fn compiled(&self, policy: &Value) -> Option<Arc<Compiled>> {
        let key = (meta::uid(policy).unwrap_or_default().to_owned(), meta::generation(policy));
        let lock = || self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(&key) {
            return Some(found.clone());
        }
        let made = Arc::new(Compiled::of(at(policy, "/spec"))?);
        let mut ready = lock();
        if ready.len() >= READY_MAX {
            ready.clear();
        }
        ready.insert(key, made.clone());
        Some(made)
    }
}

fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// The variable `request`.
fn request(attributes: &Attributes<'_>) -> Value {
    let cx = attributes.request;
    json!({
        "kind": {"group": cx.group, "version": cx.version, "kind": cx.kind},
        "resource": {"group": cx.group, "version": cx.version, "resource": cx.resource},
        "subResource": cx.subresource.as_deref().unwrap_or_default(),
        "name": cx.name.as_deref().unwrap_or_default(),
        "namespace": cx.namespace.as_deref().unwrap_or_default(),
        "operation": word(attributes.operation),
        "userInfo": {"username": cx.user.name, "uid": cx.user.uid, "groups": cx.user.groups, "extra": cx.user.extra},
        "dryRun": cx.dry_run,
    })
}
