//! What the objects mean to the server, and what they are told of each other.

use async_trait::async_trait;
use coracle_apiserver::Objects;
use coracle_apiserver::flow::{
    Distinguisher, FlowConfig, FlowRule, FlowSchema, FlowSource, Limits, PathRule, PriorityLevel, Queuing,
    ResourceRule, Subject,
};
use serde_json::{Value, json};

use super::GROUP;
use crate::value::{at, flag, items, maybe_number, number, present, set, text};

/// Most queues that a level really has: more would only cost memory.
const MOST_QUEUES: i64 = 1024;
/// Most calls that really wait in one.
const LONGEST_QUEUE: i64 = 10_000;

/// Reads the objects of the group.
pub struct Source;

#[async_trait]
impl FlowSource for Source {
    fn prefixes(&self) -> Vec<String> {
        super::resources().iter().map(coracle_apiserver::ResourceDef::prefix).collect()
    }

    async fn load(&self, objects: &Objects) -> FlowConfig {
        let list = async |plural: &str| objects.list(GROUP, plural, None).await.unwrap_or_default();
        let (levels, schemas) = (list("prioritylevelconfigurations").await, list("flowschemas").await);
        for schema in &schemas {
            tell(objects, schema, &levels).await;
        }
        FlowConfig {
            levels: levels.iter().map(level).collect(),
            schemas: schemas.iter().map(schema).collect(),
        }
    }
}

/// Tells a schema whether its level exists. Who cannot be told now is told with the next change.
async fn tell(objects: &Objects, schema: &Value, levels: &[Value]) {
    let level = text(schema, "/spec/priorityLevelConfiguration/name");
    let condition = dangling(level, levels.iter().any(|l| text(l, "/metadata/name") == level));
    let known = items(schema, "/status/conditions").iter().find(|c| text(c, "/type") == "Dangling");
    let as_is = |field: &str| known.is_some_and(|c| at(c, field) == at(&condition, field));
    if as_is("/status") && as_is("/message") {
        return;
    }
    let told = objects.update(GROUP, "flowschemas", None, text(schema, "/metadata/name"), |schema| {
        let others = items(schema, "/status/conditions").iter().filter(|c| text(c, "/type") != "Dangling");
        let all: Vec<Value> = others.cloned().chain([condition.clone()]).collect();
        set(schema, "status", json!({"conditions": all}));
        Ok(())
    });
    if let Err(error) = told.await {
        tracing::debug!(%error, "a FlowSchema was not told of its level");
    }
}

/// The condition that tells a schema whether its level exists.
pub(super) fn dangling(level: &str, found: bool) -> Value {
    let (status, reason, rest) = match found {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {rest}");
    json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": coracle_api::time::now(),
    })
}

fn level(obj: &Value) -> PriorityLevel {
    let limited = at(obj, "/spec/limited");
    let queuing = at(limited, "/limitResponse/queuing");
    let size = |field: &str, most: i64| usize::try_from(number(queuing, field).clamp(1, most)).unwrap_or(1);
    let whole = |field: &str| u32::try_from(number(limited, field)).unwrap_or(0);
    let limits = Limits {
        shares: whole("/nominalConcurrencyShares"),
        lendable_percent: whole("/lendablePercent"),
        borrowing_percent: maybe_number(limited, "/borrowingLimitPercent")
            .map(|n| u32::try_from(n).unwrap_or(0)),
        queuing: (text(limited, "/limitResponse/type") == "Queue").then(|| Queuing {
            queues: size("/queues", MOST_QUEUES),
            hand_size: size("/handSize", MOST_QUEUES),
            length: size("/queueLengthLimit", LONGEST_QUEUE),
        }),
    };
    PriorityLevel {
        name: text(obj, "/metadata/name").into(),
        uid: text(obj, "/metadata/uid").into(),
        limits: (text(obj, "/spec/type") != "Exempt").then_some(limits),
    }
}

fn schema(obj: &Value) -> FlowSchema {
    FlowSchema {
        name: text(obj, "/metadata/name").into(),
        uid: text(obj, "/metadata/uid").into(),
        level: text(obj, "/spec/priorityLevelConfiguration/name").into(),
        precedence: number(obj, "/spec/matchingPrecedence"),
        distinguisher: match text(obj, "/spec/distinguisherMethod/type") {
            "ByUser" => Distinguisher::User,
            "ByNamespace" => Distinguisher::Namespace,
            _ => Distinguisher::None,
        },
        rules: items(obj, "/spec/rules").iter().map(rule).collect(),
    }
}

fn rule(rule: &Value) -> FlowRule {
    let words = |value: &Value, field: &str| -> Vec<String> {
        items(value, field).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    FlowRule {
        subjects: items(rule, "/subjects").iter().filter_map(subject).collect(),
        resources: items(rule, "/resourceRules")
            .iter()
            .map(|r| ResourceRule {
                verbs: words(r, "/verbs"),
                groups: words(r, "/apiGroups"),
                resources: words(r, "/resources"),
                cluster_scope: flag(r, "/clusterScope"),
                namespaces: words(r, "/namespaces"),
            })
            .collect(),
        paths: items(rule, "/nonResourceRules")
            .iter()
            .map(|r| PathRule { verbs: words(r, "/verbs"), paths: words(r, "/nonResourceURLs") })
            .collect(),
    }
}

fn subject(subject: &Value) -> Option<Subject> {
    let name = |field: &str| text(subject, &format!("/{field}/name")).to_owned();
    Some(match text(subject, "/kind") {
        "User" => Subject::User(name("user")),
        "Group" => Subject::Group(name("group")),
        "ServiceAccount" if present(subject, "/serviceAccount") => Subject::ServiceAccount(
            text(subject, "/serviceAccount/namespace").to_owned(),
            name("serviceAccount"),
        ),
        _ => return None,
    })
}
