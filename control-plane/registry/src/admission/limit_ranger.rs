//! The bounds that a LimitRange sets on each pod, container and claim of its namespace, and its defaults.

use coracle_api::meta::{self, GroupResource};
use coracle_api::quantity::Quantity;
use coracle_api::quota::{Usage, pod_resources};
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::value::{at, entries, items, items_mut, object, present, set, text};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The plugin.
pub struct LimitRanger;

#[async_trait::async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(pod) = obj else { return Ok(()) };
        if attributes.operation != Operation::Create || !super::writes_pods(attributes) {
            return Ok(());
        }
        for limit in limits(attributes, "Container").await? {
            fill(pod, &limit);
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let Some(obj) = obj.filter(|_| cx.group.is_empty() && cx.subresource.is_none()) else {
            return Ok(());
        };
        let mut wrong = Vec::new();
        match (cx.resource.as_str(), attributes.operation) {
            ("pods", Operation::Create) => {
                let all = items(obj, "/spec/containers").iter().chain(items(obj, "/spec/initContainers"));
                let containers: Vec<&Value> = all.collect();
                for limit in limits(attributes, "Container").await? {
                    for c in &containers {
                        let amounts = |kind: &str| parsed(c, &format!("/resources/{kind}"));
                        check(&mut wrong, &limit, "Container", &amounts("requests"), &amounts("limits"));
                    }
                }
                for limit in limits(attributes, "Pod").await? {
                    let amounts = |kind: &str| pod_resources(obj, kind);
                    check(&mut wrong, &limit, "Pod", &amounts("requests"), &amounts("limits"));
                }
            }
            ("persistentvolumeclaims", Operation::Create | Operation::Update) => {
                for limit in limits(attributes, "PersistentVolumeClaim").await? {
                    let size = parsed(obj, "/spec/resources/requests");
                    check_claim(&mut wrong, &limit, &size);
                }
            }
            _ => return Ok(()),
        }
        if wrong.is_empty() {
            return Ok(());
        }
        wrong.dedup();
        let why = match wrong.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let name = meta::name(obj).or(cx.name.as_deref()).unwrap_or_default();
        Err(Status::forbidden(&GroupResource::new("", cx.resource.as_str()), name, why))
    }
}

/// What the LimitRanges of the namespace say of one kind.
async fn limits(attributes: &Attributes<'_>, kind: &str) -> Result<Vec<Value>, Status> {
    let Some(namespace) = attributes.request.namespace.as_deref() else { return Ok(Vec::new()) };
    let ranges = attributes.objects.list("", "limitranges", Some(namespace)).await?;
    let all = ranges.iter().flat_map(|r| items(r, "/spec/limits"));
    Ok(all.filter(|l| text(l, "/type") == kind).cloned().collect())
}

/// Gives containers what they do not ask for themselves, and notes it on the pod.
fn fill(pod: &mut Value, limit: &Value) {
    let mut notes = Vec::new();
    let Some(spec) = object(pod, "spec") else { return };
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        for c in items_mut(spec, list) {
            let name = text(c, "/name").to_string();
            for (kind, from, what) in
                [("requests", "defaultRequest", "request"), ("limits", "default", "limit")]
            {
                let missing: Vec<(String, Value)> = entries(limit, &format!("/{from}"))
                    .filter(|(name, _)| at(c, &format!("/resources/{kind}")).get(name).is_none())
                    .map(|(name, amount)| (name.clone(), amount.clone()))
                    .collect();
                if missing.is_empty() {
                    continue;
                }
                let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
                notes.push(format!("{} {what} for {word} {name}", names.join(", ")));
                if let Some(map) = object(c, "resources").and_then(|r| object(r, kind)) {
                    missing.into_iter().for_each(|(name, amount)| set(map, &name, amount));
                }
            }
        }
    }
    if !notes.is_empty() {
        meta::set_annotation(pod, ANNOTATION, &format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

fn parsed(obj: &Value, pointer: &str) -> Usage {
    entries(obj, pointer)
        .filter_map(|(name, v)| Some((name.clone(), Quantity::parse(v.as_str()?).ok()?)))
        .collect()
}

fn check(wrong: &mut Vec<String>, limit: &Value, kind: &str, requests: &Usage, limits: &Usage) {
    for (name, least) in parsed(limit, "/min") {
        let said = format!("minimum {name} usage per {kind} is {least}");
        match requests.get(&name) {
            None => wrong.push(format!("{said}.  No request is specified")),
            Some(request) if *request < least => wrong.push(format!("{said}, but request is {request}")),
            Some(_) => {
                if let Some(most) = limits.get(&name).filter(|l| **l < least) {
                    wrong.push(format!("{said}, but limit is {most}"));
                }
            }
        }
    }
    for (name, most) in parsed(limit, "/max") {
        let said = format!("maximum {name} usage per {kind} is {most}");
        match limits.get(&name) {
            None => wrong.push(format!("{said}.  No limit is specified")),
            Some(limit) if *limit > most => wrong.push(format!("{said}, but limit is {limit}")),
            Some(_) => {
                if let Some(request) = requests.get(&name).filter(|r| **r > most) {
                    wrong.push(format!("{said}, but request is {request}"));
                }
            }
        }
    }
    for (name, ratio) in parsed(limit, "/maxLimitRequestRatio") {
        let said = format!("{name} max limit to request ratio per {kind} is {ratio}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => wrong.push(format!("{said}, but no request is specified or request is 0")),
            (Some(r), _) if r.sign() == 0 => {
                wrong.push(format!("{said}, but no request is specified or request is 0"));
            }
            (_, None) => wrong.push(format!("{said}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let given = limit.milli_value() as f64 / request.milli_value() as f64;
                if given * 1000.0 > ratio.milli_value() as f64 {
                    wrong.push(format!("{said}, but provided ratio is {given:.6}"));
                }
            }
        }
    }
}

fn check_claim(wrong: &mut Vec<String>, limit: &Value, size: &Usage) {
    let kind = "PersistentVolumeClaim";
    let Some(request) = size.get("storage").filter(|_| present(limit, "/min") || present(limit, "/max"))
    else {
        return;
    };
    if let Some(least) = parsed(limit, "/min").get("storage").filter(|least| request < *least) {
        wrong.push(format!("minimum storage usage per {kind} is {least}, but request is {request}"));
    }
    if let Some(most) = parsed(limit, "/max").get("storage").filter(|most| request > *most) {
        wrong.push(format!("maximum storage usage per {kind} is {most}, but request is {request}"));
    }
}
