//! What a namespace may have at most. A write is charged in the transaction that carries it out, from what was read of the
//! quota, so that two writers at once cannot share the last of it and nothing is charged for a write that fails.

use std::collections::BTreeSet;

use coracle_api::meta::{self, GroupResource};
use coracle_api::quantity::Quantity;
use coracle_api::quota::{self, Usage};
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Objects, Operation};
use serde_json::{Map, Value};

use crate::value::{at, entries, object, set, text};

/// The plugin.
pub struct ResourceQuota;

#[async_trait::async_trait]
impl Admission for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let (Some(obj), Some(namespace)) = (obj, cx.namespace.as_deref()) else { return Ok(()) };
        let resizes = cx.subresource.as_deref() == Some("resize");
        if cx.subresource.is_some() && !resizes {
            return Ok(());
        }
        let asked = Asked::of(attributes, obj);
        if asked.more.is_empty() {
            return Ok(());
        }
        let quotas = attributes.objects.list("", "resourcequotas", Some(namespace)).await?;
        for quota in quotas.iter().filter(|q| asked.concerns(q)) {
            let counted = counted(attributes.objects, namespace, quota).await?;
            let mut charged = quota.clone();
            asked.charge(&mut charged, &counted)?;
            if !cx.dry_run {
                attributes.together.add(attributes.objects, "", "resourcequotas", &charged)?;
            }
        }
        Ok(())
    }
}

/// What the objects of a namespace use already, for a quota whose status does not say it yet.
async fn counted(objects: &Objects, namespace: &str, quota: &Value) -> Result<Usage, Status> {
    let mut usage = Usage::new();
    let used = at(quota, "/status/used");
    let unknown: Vec<&String> =
        entries(quota, "/spec/hard").map(|(name, _)| name).filter(|name| used.get(*name).is_none()).collect();
    let kinds: BTreeSet<(String, String)> = unknown.iter().map(|name| kind_of(name)).collect();
    for (group, plural) in kinds {
        if objects.resource(&group, &plural).is_none() {
            continue;
        }
        for obj in objects.list(&group, &plural, Some(namespace)).await? {
            if quota::covers(at(quota, "/spec"), &group, &plural, &obj) {
                quota::sum(&mut usage, &quota::usage(&group, &plural, &obj));
            }
        }
    }
    usage.retain(|name, _| unknown.contains(&name));
    Ok(usage)
}

/// The kind of objects that use what a quota bounds.
fn kind_of(name: &str) -> (String, String) {
    if let Some(counted) = name.strip_prefix("count/") {
        let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
        return (group.to_owned(), plural.to_owned());
    }
    let plural = match name {
        "configmaps"
        | "secrets"
        | "replicationcontrollers"
        | "resourcequotas"
        | "services"
        | "persistentvolumeclaims" => name,
        _ if name.starts_with("services.") => "services",
        _ if name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/") => {
            "persistentvolumeclaims"
        }
        _ => "pods",
    };
    (String::new(), plural.to_owned())
}

/// What a write asks for.
struct Asked<'a> {
    attributes: &'a Attributes<'a>,
    obj: &'a Value,
    /// By how much usage grows.
    more: Usage,
}

impl<'a> Asked<'a> {
    fn of(attributes: &'a Attributes<'a>, obj: &'a Value) -> Self {
        let cx = attributes.request;
        let mut more = quota::usage(&cx.group, &cx.resource, obj);
        if let Some(old) = attributes.old.filter(|_| attributes.operation == Operation::Update) {
            let before = quota::usage(&cx.group, &cx.resource, old);
            for (name, amount) in &mut more {
                if let Some(was) = before.get(name) {
                    *amount = amount.sub(was);
                }
            }
        }
        more.retain(|_, amount| amount.sign() > 0);
        Self { attributes, obj, more }
    }

    fn concerns(&self, quota: &Value) -> bool {
        let cx = self.attributes.request;
        let bounded =
            entries(quota, "/spec/hard").any(|(name, _)| self.more.contains_key(name) || self.must_say(name));
        bounded && quota::covers(at(quota, "/spec"), &cx.group, &cx.resource, self.obj)
    }

    /// Whether a pod may not leave out what it asks for of a resource.
    fn must_say(&self, name: &str) -> bool {
        let cx = self.attributes.request;
        let new_pod =
            self.attributes.operation == Operation::Create && cx.group.is_empty() && cx.resource == "pods";
        new_pod && quota::REQUIRED.contains(&name)
    }

    fn forbidden(&self, why: String) -> Status {
        let cx = self.attributes.request;
        let name = meta::name(self.obj).or(cx.name.as_deref()).unwrap_or_default();
        Status::forbidden(&GroupResource::new(cx.group.as_str(), cx.resource.as_str()), name, why)
    }

    /// Adds what is asked for to what a quota counts, or says why that is too much. `counted` is what its status does not say.
    fn charge(&self, quota: &mut Value, counted: &Usage) -> Result<(), Status> {
        let hard = amounts(quota, "/spec/hard");
        self.speaks(quota, &hard)?;
        let mut used = amounts(quota, "/status/used");
        for (name, amount) in counted {
            used.entry(name.clone()).or_insert(*amount);
        }
        let mut exceeded = Vec::new();
        for (name, most) in &hard {
            let was = used.entry(name.clone()).or_insert_with(|| Quantity::from_value(0));
            let Some(more) = self.more.get(name) else { continue };
            let sum = was.add(more);
            if sum > *most {
                exceeded.push((name, *more, *was, *most));
            }
            *was = sum;
        }
        if !exceeded.is_empty() {
            let shown = |pick: fn(&(&String, Quantity, Quantity, Quantity)) -> Quantity| {
                let all: Vec<String> = exceeded.iter().map(|e| format!("{}={}", e.0, pick(e))).collect();
                all.join(",")
            };
            let name = text(quota, "/metadata/name");
            return Err(self.forbidden(format!(
                "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
                shown(|e| e.1),
                shown(|e| e.2),
                shown(|e| e.3)
            )));
        }
        used.retain(|name, _| hard.contains_key(name));
        write(quota, &used);
        Ok(())
    }

    /// Each container must say what it asks for, where a quota bounds CPU or memory.
    fn speaks(&self, quota: &Value, hard: &Usage) -> Result<(), Status> {
        let mut missing = Vec::new();
        for name in hard.keys().filter(|name| self.must_say(name)) {
            let silent = quota::silent_containers(self.obj, name);
            if !silent.is_empty() {
                missing.push(format!("{name} for: {}", silent.join(",")));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let name = text(quota, "/metadata/name");
        Err(self.forbidden(format!("failed quota: {name}: must specify {}", missing.join("; "))))
    }
}

fn amounts(quota: &Value, pointer: &str) -> Usage {
    entries(quota, pointer)
        .filter_map(|(name, v)| Some((name.clone(), Quantity::parse(v.as_str()?).ok()?)))
        .collect()
}

/// The status of a quota: what it bounds and what is used of that.
fn write(quota: &mut Value, used: &Usage) {
    let hard = at(quota, "/spec/hard").clone();
    let used: Map<String, Value> = used.iter().map(|(k, v)| (k.clone(), v.to_string().into())).collect();
    if let Some(status) = object(quota, "status") {
        set(status, "hard", hard);
        set(status, "used", used);
    }
}
