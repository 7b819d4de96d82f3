//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: servers that are asked about writes.

mod hooks;
mod review;

use std::sync::Arc;
use std::time::Duration;

use coracle_api::meta::GroupResource;
use coracle_api::patch;
use coracle_api::status::Status;
use coracle_apiserver::webhook::WebhookClient;
use coracle_apiserver::{Admission, Attributes, Operation};
use futures::future::join_all;
use serde_json::{Value, json};

use super::subject::{Form, Subject};
use crate::admission_cel::{Inputs, Scope};
use crate::admission_webhook::services::Services;
use crate::admission_webhook::{MUTATING, VALIDATING};

use hooks::{Hook, Hooks};
use review::Answer;

/// What both plugins share.
pub struct Webhooks {
    client: WebhookClient,
    services: Arc<Services>,
}

impl Webhooks {
    /// Webhooks that are found through these Services.
    pub fn new(services: Arc<Services>) -> Arc<Self> {
        Arc::new(Self { client: WebhookClient::new(services.clone()), services })
    }
}

/// The plugin that lets webhooks change objects.
pub struct Mutating {
    shared: Arc<Webhooks>,
    hooks: Hooks,
}

/// The plugin that lets webhooks refuse calls.
pub struct Validating {
    shared: Arc<Webhooks>,
    hooks: Hooks,
}

/// How a webhook ended the call.
enum Failure {
    /// It could not be asked, or its answer was none.
    Calling(String),
    /// Everything else: a refusal, a patch that does not fit.
    Ends(Box<Status>),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Ends(Box::new(status))
    }
}

impl Mutating {
    pub fn new(shared: Arc<Webhooks>) -> Self {
        Self { shared, hooks: Hooks::default() }
    }
}

impl Validating {
    pub fn new(shared: Arc<Webhooks>) -> Self {
        Self { shared, hooks: Hooks::default() }
    }
}

#[async_trait::async_trait]
impl Admission for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let hooks = self.hooks.all(attributes.objects, MUTATING)?;
        if hooks.is_empty() {
            return Ok(());
        }
        let Some(subject) = Subject::of(attributes) else { return Ok(()) };
        self.shared.services.know(attributes.objects);
        let absent = obj.is_none();
        let mut none = Value::Null;
        let object = obj.unwrap_or(&mut none);
        let turn = attributes.rounds.turn(self.name(), object);
        let round = u8::from(turn.is_second());
        for (index, hook) in hooks.iter().enumerate() {
            if !turn.is_due(&hook.id) {
                continue;
            }
            let Some(form) = relevant(&subject, hook, object).await? else { continue };
            let before = object.clone();
            let place = format!("round_{round}_index_{index}");
            let result = change(&self.shared, &subject, hook, &form, object, absent).await;
            let patched = match &result {
                Ok(patch) => patch.clone(),
                Err(_) => None,
            };
            let changed = *object != before;
            annotate(attributes, hook, &place, changed, patched);
            turn.called(&hook.id, changed, hook.reinvokes);
            settle(attributes, hook, result.map(drop), "mutating", &place)?;
        }
        turn.end(object);
        Ok(())
    }
}

#[async_trait::async_trait]
impl Admission for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let hooks = self.hooks.all(attributes.objects, VALIDATING)?;
        if hooks.is_empty() {
            return Ok(());
        }
        let Some(subject) = Subject::of(attributes) else { return Ok(()) };
        self.shared.services.know(attributes.objects);
        let object = obj.unwrap_or(&Value::Null);
        let mut asked = Vec::new();
        for (index, hook) in hooks.iter().enumerate() {
            if let Some(form) = relevant(&subject, hook, object).await? {
                asked.push((index, hook, form));
            }
        }
        let (shared, subject) = (&self.shared, &subject);
        let answers = join_all(asked.iter().map(|(index, hook, form)| async move {
            (*index, *hook, judge(shared, subject, hook, form, object).await)
        }));
        for (index, hook, result) in answers.await {
            settle(attributes, hook, result, "validating", &format!("round_0_index_{index}"))?;
        }
        Ok(())
    }
}

/// In which form a webhook is to see the call; none if the call is not its business.
async fn relevant(subject: &Subject<'_>, hook: &Hook, object: &Value) -> Result<Option<Form>, Status> {
    let attributes = subject.attributes;
    let old = attributes.old.unwrap_or(&Value::Null);
    let Some(form) = subject.matched(hook.rules(), hook.exact).await else { return Ok(None) };
    if !subject.chosen(&hook.spec, object, old).await? {
        return Ok(None);
    }
    if hook.conditions.is_empty() {
        return Ok(Some(form));
    }
    let (shown, was) = (subject.shown(&form, object).await?, subject.shown(&form, old).await?);
    let scope = Scope::new(&Inputs {
        object: &shown,
        old: &was,
        request: &subject.request(&form, ""),
        namespace: &Value::Null,
        params: &Value::Null,
        authorizer: attributes.authorizer,
        cx: attributes.request,
    });
    match hook.conditions.hold(&scope) {
        Ok(true) => Ok(Some(form)),
        Ok(false) => Ok(None),
        Err(_) if hook.ignores => Ok(None),
        Err(why) => {
            let cx = attributes.request;
            let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
            Err(Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), why))
        }
    }
}

/// Asks one webhook.
async fn ask(
    shared: &Webhooks,
    subject: &Subject<'_>,
    hook: &Hook,
    form: &Form,
    object: &Value,
    mutating: bool,
) -> Result<Answer, Failure> {
    let attributes = subject.attributes;
    if attributes.request.dry_run && !hook.dry_run {
        let words = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Status::bad_request(words).into());
    }
    let place = match &hook.place {
        Ok(place) => place,
        Err(why) => return Err(Failure::Calling(format!("could not get REST client: {why}"))),
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let mut request = subject.request(form, &uid);
    request["object"] = object.clone();
    request["oldObject"] = subject.shown(form, attributes.old.unwrap_or(&Value::Null)).await?;
    let review = json!({"kind": "AdmissionReview", "apiVersion": hook.review, "request": request});
    let limit = Duration::from_secs(hook.timeout);
    let said = shared.client.post(place, review.to_string().into(), limit).await;
    let said = said.map_err(|e| Failure::Calling(format!("failed to call webhook: {}", e.words)))?;
    let answer = review::verify(&said, &uid, &hook.review, mutating)
        .map_err(|why| Failure::Calling(format!("received invalid webhook response: {why}")))?;
    for (key, value) in &answer.annotations {
        attributes.request.annotations.add(format!("{}/{key}", hook.name), value.as_str());
    }
    answer.warnings.iter().for_each(|w| attributes.request.warnings.add(w.clone()));
    match answer.refusal(&hook.name) {
        Some(refused) => Err(refused.into()),
        None => Ok(answer),
    }
}

async fn judge(
    shared: &Webhooks,
    subject: &Subject<'_>,
    hook: &Hook,
    form: &Form,
    object: &Value,
) -> Result<(), Failure> {
    let shown = subject.shown(form, object).await?;
    ask(shared, subject, hook, form, &shown, false).await.map(drop)
}

/// Lets one webhook change the object; its patch, if there is one.
async fn change(
    shared: &Webhooks,
    subject: &Subject<'_>,
    hook: &Hook,
    form: &Form,
    object: &mut Value,
    absent: bool,
) -> Result<Option<Value>, Failure> {
    let attributes = subject.attributes;
    let shown = subject.shown(form, object).await?;
    let answer = ask(shared, subject, hook, form, &shown, true).await?;
    let Some(operations) = answer.patch else { return Ok(None) };
    if absent || attributes.operation == Operation::Delete {
        let words = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(Status::internal(words).into());
    }
    let patched = patch::json(&shown, &operations).map_err(|e| Status::internal(e.message))?;
    let own = match form {
        Some(def) if !attributes.is_other_kind() => attributes.convert_back(&patched, def)?,
        _ => patched,
    };
    *object = attributes.decode(&own).map_err(|e| Status::internal(e.message))?;
    Ok(Some(operations))
}

/// What a result means for the call.
fn settle(
    attributes: &Attributes<'_>,
    hook: &Hook,
    result: Result<(), Failure>,
    what: &str,
    place: &str,
) -> Result<(), Status> {
    match result {
        Ok(()) => Ok(()),
        Err(Failure::Ends(status)) => Err(*status),
        Err(Failure::Calling(why)) => {
            let words = format!("failed calling webhook {:?}: {why}", hook.name);
            if !hook.ignores {
                return Err(Status::internal(words));
            }
            tracing::warn!(
                webhook = hook.name,
                "{words}; the call goes on, as the webhook's failurePolicy says"
            );
            let key = format!("failed-open.{what}.webhook.admission.k8s.io/{place}");
            attributes.request.annotations.add(key, hook.name.as_str());
            Ok(())
        }
    }
}

fn annotate(attributes: &Attributes<'_>, hook: &Hook, place: &str, changed: bool, patch: Option<Value>) {
    let annotations = &attributes.request.annotations;
    if !annotations.are_kept() {
        return;
    }
    let (configuration, webhook) = (&hook.configuration, &hook.name);
    let said = json!({"configuration": configuration, "webhook": webhook, "mutated": changed});
    annotations.add(format!("mutation.webhook.admission.k8s.io/{place}"), said.to_string());
    if let Some(patch) = patch {
        let said = json!({"configuration": configuration, "webhook": webhook, "patch": patch, "patchType": "JSONPatch"});
        annotations.add(format!("patch.webhook.admission.k8s.io/{place}"), said.to_string());
    }
}
