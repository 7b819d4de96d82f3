//! ValidatingAdmissionPolicy: refuses, warns and records.

use std::collections::BTreeMap;

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes};
use serde_json::{Value, json};

use super::{Held, Ready, held, unbound};
use crate::admission::subject::Subject;
use crate::admission_cel::Inputs;
use crate::admission_policy::{Broken, Family};
use crate::value::items;

/// The plugin.
#[derive(Default)]
pub struct ValidatingAdmissionPolicy {
    ready: Ready,
}

/// What the policies of a call came to.
#[derive(Default)]
struct Verdict {
    denied: Option<Status>,
    failures: Vec<Value>,
    annotations: BTreeMap<String, Vec<String>>,
}

#[async_trait::async_trait]
impl Admission for ValidatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionPolicy"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        if unbound(attributes, Family::Validating)? {
            return Ok(());
        }
        let Some(subject) = Subject::of(attributes) else { return Ok(()) };
        let object = obj.unwrap_or(&Value::Null);
        let mut verdict = Verdict::default();
        for held in held(Family::Validating, &self.ready, &subject, object).await? {
            verdict.add(&subject, &held, object).await?;
        }
        verdict.record(attributes);
        match verdict.denied {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }
}

impl Verdict {
    async fn add(&mut self, subject: &Subject<'_>, held: &Held, object: &Value) -> Result<(), Status> {
        let attributes = subject.attributes;
        let fails = |message: String| Broken { message, reason: "Invalid".to_owned(), index: 0 };
        let params = match &held.params {
            Ok(params) => params,
            Err(_) if held.compiled.ignores => return Ok(()),
            Err(why) => {
                self.deny(attributes, held, &fails(why.clone()));
                return Ok(());
            }
        };
        let old = attributes.old.unwrap_or(&Value::Null);
        let (object, old) = (subject.shown(&held.form, object).await?, subject.shown(&held.form, old).await?);
        let scope = held.compiled.scope(&Inputs {
            object: &object,
            old: &old,
            request: &subject.request(&held.form, ""),
            namespace: subject.namespace_object(&object, &old).await?,
            params,
            authorizer: attributes.authorizer,
            cx: attributes.request,
        });
        let scope = match scope {
            Ok(Some(scope)) => scope,
            Ok(None) => return Ok(()),
            Err(_) if held.compiled.ignores => return Ok(()),
            Err(why) => {
                self.deny(attributes, held, &fails(why));
                return Ok(());
            }
        };
        for broken in held.compiled.broken(&scope) {
            self.follow(attributes, held, &broken);
        }
        match held.compiled.annotations(&scope) {
            Ok(all) => {
                for (key, value) in all {
                    let values = self.annotations.entry(format!("{}/{key}", held.policy())).or_default();
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
            }
            Err(why) => self.deny(attributes, held, &fails(why)),
        }
        Ok(())
    }

    /// Does what the binding says follows.
    fn follow(&mut self, attributes: &Attributes<'_>, held: &Held, broken: &Broken) {
        let actions = items(&held.binding, "/spec/validationActions");
        let does = |action: &str| actions.iter().any(|a| a == action);
        let (policy, binding, said) = (held.policy(), held.binding(), &broken.message);
        if does("Deny") {
            self.deny(attributes, held, broken);
        }
        if does("Warn") {
            attributes.request.warnings.add(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {said}"
            ));
        }
        if does("Audit") {
            self.failures.push(json!({
                "message": said, "policy": policy, "binding": binding, "expressionIndex": broken.index,
                "validationActions": actions,
            }));
        }
    }

    /// The first that denies speaks.
    fn deny(&mut self, attributes: &Attributes<'_>, held: &Held, broken: &Broken) {
        if self.denied.is_some() {
            return;
        }
        let cx = attributes.request;
        let why = format!(
            "ValidatingAdmissionPolicy '{}' with binding '{}' denied request: {}",
            held.policy(),
            held.binding(),
            broken.message
        );
        let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
        let mut status = Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), &why);
        status.code = match broken.reason.as_str() {
            "Unauthorized" => 401,
            "Forbidden" => 403,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        status.reason.clone_from(&broken.reason);
        self.denied = Some(status.with_cause("", why, ""));
    }

    fn record(&self, attributes: &Attributes<'_>) {
        let annotations = &attributes.request.annotations;
        if !self.failures.is_empty() {
            let said = Value::from(self.failures.clone()).to_string();
            annotations.add("validation.policy.admission.k8s.io/validation_failure", said);
        }
        for (key, values) in &self.annotations {
            annotations.add(key.as_str(), values.join(", "));
        }
    }
}
