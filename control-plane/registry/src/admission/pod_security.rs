//! Pod Security: what a namespace's labels let its pods do. `enforce` refuses pods, `warn` tells the client, `audit` goes to the
//! audit log.

mod checks;

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, GroupResource, Gvk};
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::value::{at, same};

const PREFIX: &str = "pod-security.kubernetes.io/";
const MODES: [&str; 3] = ["enforce", "audit", "warn"];

/// How much a pod may do, from most to least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Privileged,
    /// What needs no known escalation of privileges.
    Baseline,
    /// What follows hardening practice.
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// The plugin.
pub struct PodSecurity;

#[async_trait::async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        let Some(obj) = obj.filter(|_| writes) else { return Ok(()) };
        if cx.group.is_empty() && cx.resource == "namespaces" && cx.subresource.is_none() {
            return labels(obj);
        }
        let Some((pod, pointer)) = pod_of(attributes) else { return Ok(()) };
        let spec = at(obj, pointer);
        if attributes.old.is_some_and(|old| same(at(old, pointer), spec)) {
            return Ok(());
        }
        let Some(namespace) = cx.namespace.as_deref() else { return Ok(()) };
        let found = attributes.objects.get("", "namespaces", None, namespace).await?;
        let Some(namespace) = found.filter(|n| meta::labels(n).any(|(k, _)| k.starts_with(PREFIX))) else {
            return Ok(());
        };
        let verdict = |mode: &str| {
            let level = Level::parse(meta::label(&namespace, &format!("{PREFIX}{mode}"))?)?;
            let version = meta::label(&namespace, &format!("{PREFIX}{mode}-version")).unwrap_or("latest");
            let wrong = checks::violations(spec, level);
            let policy = format!("PodSecurity \"{}:{version}\"", level.word());
            (!wrong.is_empty()).then(|| format!("{policy}: {}", wrong.join(", ")))
        };
        if let Some(level) = meta::label(&namespace, &format!("{PREFIX}enforce")).filter(|_| pod) {
            let version = meta::label(&namespace, &format!("{PREFIX}enforce-version")).unwrap_or("latest");
            cx.annotations.add(format!("{PREFIX}enforce-policy"), format!("{level}:{version}"));
        }
        if let Some(why) = verdict("enforce").filter(|_| pod) {
            let name = meta::name(obj).or(cx.name.as_deref()).unwrap_or_default();
            return Err(Status::forbidden(&GroupResource::new("", "pods"), name, format!("violates {why}")));
        }
        if let Some(why) = verdict("audit") {
            cx.annotations.add(format!("{PREFIX}audit-violations"), format!("would violate {why}"));
        }
        if let Some(why) = verdict("warn") {
            cx.warnings.add(format!("would violate {why}"));
        }
        Ok(())
    }
}

/// Whether a call writes pods (and not templates of them), and where the spec of the pods is.
fn pod_of(attributes: &Attributes<'_>) -> Option<(bool, &'static str)> {
    let cx = attributes.request;
    match (cx.group.as_str(), cx.resource.as_str(), cx.subresource.as_deref()) {
        ("", "pods", None | Some("ephemeralcontainers")) => Some((true, "/spec")),
        ("", "podtemplates", None) => Some((false, "/template/spec")),
        ("", "replicationcontrollers", None)
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets", None)
        | ("batch", "jobs", None) => Some((false, "/spec/template/spec")),
        ("batch", "cronjobs", None) => Some((false, "/spec/jobTemplate/spec/template/spec")),
        _ => None,
    }
}

/// The labels of a namespace must name levels that there are.
fn labels(namespace: &Value) -> Result<(), Status> {
    let path = Path::new("metadata").child("labels");
    let mut errors = Vec::new();
    for mode in MODES {
        let key = format!("{PREFIX}{mode}");
        if let Some(level) = meta::label(namespace, &key).filter(|l| Level::parse(l).is_none()) {
            let words = "must be one of privileged, baseline, restricted";
            errors.push(Error::invalid(&path.key(key), level, words));
        }
        let key = format!("{PREFIX}{mode}-version");
        if let Some(version) = meta::label(namespace, &key).filter(|v| !is_version(v)) {
            let words = "must be \"latest\" or \"v1.x\"";
            errors.push(Error::invalid(&path.key(key), version, words));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&Gvk::new("", "v1", "Namespace"), meta::name(namespace).unwrap_or_default(), errors))
}

fn is_version(text: &str) -> bool {
    text == "latest" || text.strip_prefix("v1.").is_some_and(|minor| minor.parse::<u32>().is_ok())
}
