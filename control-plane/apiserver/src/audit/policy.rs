//! The policy: `Policy` of `audit.k8s.io/v1`. The first rule that matches a call says how much of it is told.

use serde_json::Value;

use crate::path::ResourcePath;
use crate::request::UserInfo;

/// Most rules of a policy.
const MAX_RULES: usize = 1024;

/// How much is told of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    const ALL: [Self; 4] =
        [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic];

    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A call as rules see it.
pub(crate) struct Asked<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    /// `None`: the path is no resource.
    pub resource: Option<&'a ResourcePath>,
    pub path: &'a str,
}

/// What holds for one call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub level: Level,
    pub omit: Vec<Stage>,
    pub omit_managed_fields: bool,
}

/// Rules in order.
#[derive(Debug, Default)]
pub(super) struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    verdict: Verdict,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    paths: Vec<String>,
}

#[derive(Debug)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

impl Policy {
    /// Reads a policy, YAML or JSON; says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let documents = coracle_api::yaml::to_json_documents(text).map_err(|e| e.to_string())?;
        let [document] = documents.as_slice() else {
            return Err("it is not one document of kind Policy".into());
        };
        let said = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or("");
        if said("kind") != "Policy" || said("apiVersion") != "audit.k8s.io/v1" {
            return Err("its kind is not Policy of audit.k8s.io/v1".into());
        }
        let (omit, managed) = (stages(document)?, flag(document, "omitManagedFields").unwrap_or(false));
        let rules = document.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if rules.is_empty() || rules.len() > MAX_RULES {
            return Err(format!("rules: 1 to {MAX_RULES} are needed"));
        }
        let read = |(i, rule)| Rule::read(rule, &omit, managed).map_err(|why| format!("rules[{i}]: {why}"));
        Ok(Self { rules: rules.iter().enumerate().map(read).collect::<Result<_, _>>()? })
    }

    /// What is told of a call; `None`: nothing.
    pub fn verdict(&self, asked: &Asked<'_>) -> Option<&Verdict> {
        let rule = self.rules.iter().find(|rule| rule.matches(asked))?;
        (rule.verdict.level != Level::None).then_some(&rule.verdict)
    }
}

fn flag(value: &Value, name: &str) -> Option<bool> {
    value.get(name).and_then(Value::as_bool)
}

fn texts(value: &Value, name: &str) -> Result<Vec<String>, String> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => {
            let text = |v: &Value| v.as_str().map(str::to_owned).ok_or(format!("{name}: texts are needed"));
            list.iter().map(text).collect()
        }
        Some(_) => Err(format!("{name} must be a list")),
    }
}

fn stages(value: &Value) -> Result<Vec<Stage>, String> {
    let stage = |name: String| {
        let found = Stage::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or(format!("omitStages: {name:?} is no stage"))
    };
    texts(value, "omitStages")?.into_iter().map(stage).collect()
}

impl Rule {
    fn read(value: &Value, omit: &[Stage], managed: bool) -> Result<Self, String> {
        let level = value.get("level").and_then(Value::as_str).unwrap_or("");
        let level = Level::ALL.into_iter().find(|l| l.name() == level);
        let level = level.ok_or("level must be None, Metadata, Request or RequestResponse")?;
        let mut all = omit.to_vec();
        all.extend(stages(value)?);
        let group_resources = value.get("resources").and_then(Value::as_array);
        let resources = group_resources.into_iter().flatten().map(|entry| {
            let group = entry.get("group").and_then(Value::as_str).unwrap_or("").to_owned();
            let (resources, names) = (texts(entry, "resources")?, texts(entry, "resourceNames")?);
            if resources.is_empty() && !names.is_empty() {
                return Err("using resourceNames requires at least one resource".to_owned());
            }
            Ok(Resources { group, resources, names })
        });
        let rule = Self {
            verdict: Verdict {
                level,
                omit: all,
                omit_managed_fields: flag(value, "omitManagedFields").unwrap_or(managed),
            },
            users: texts(value, "users")?,
            groups: texts(value, "userGroups")?,
            verbs: texts(value, "verbs")?,
            resources: resources.collect::<Result<_, _>>()?,
            namespaces: texts(value, "namespaces")?,
            paths: texts(value, "nonResourceURLs")?,
        };
        let of_objects = !rule.resources.is_empty() || !rule.namespaces.is_empty();
        if of_objects && !rule.paths.is_empty() {
            return Err("rules cannot apply to both regular resources and non-resource URLs".into());
        }
        Ok(rule)
    }

    fn matches(&self, asked: &Asked<'_>) -> bool {
        let among = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|e| e == wanted);
        if !among(&self.users, &asked.user.name)
            || !(self.groups.is_empty() || self.groups.iter().any(|g| asked.user.in_group(g)))
            || !among(&self.verbs, asked.verb)
        {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            let Some(path) = asked.resource else { return false };
            return among(&self.namespaces, path.namespace.as_deref().unwrap_or(""))
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(path)));
        }
        if !self.paths.is_empty() {
            return asked.resource.is_none()
                && self.paths.iter().any(|entry| match entry.strip_suffix('*') {
                    Some(prefix) => asked.path.starts_with(prefix),
                    None => entry == asked.path,
                });
        }
        true
    }
}

impl Resources {
    fn matches(&self, path: &ResourcePath) -> bool {
        if self.group != path.group {
            return false;
        }
        let name = path.name.as_deref().unwrap_or("");
        let named = self.names.is_empty() || self.names.iter().any(|n| n == name);
        let sub = path.subresource.as_deref();
        self.resources.is_empty()
            || (named
                && self.resources.iter().any(|entry| match (entry.split_once('/'), sub) {
                    _ if entry == "*" => true,
                    (None, None) => *entry == path.resource,
                    (None, Some(_)) => false,
                    (Some((resource, "*")), _) => resource == path.resource,
                    (Some((resource, of)), Some(sub)) => {
                        of == sub && (resource == "*" || resource == path.resource)
                    }
                    (Some(_), None) => false,
                }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: ["watch"]
  resources: [{group: "", resources: ["endpoints", "services", "services/status"]}]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Request
  resources: [{group: "", resources: ["configmaps"], resourceNames: ["controller-leader"]}]
  namespaces: ["kube-system"]
- level: RequestResponse
  omitManagedFields: true
  omitStages: [Panic]
  resources: [{group: "", resources: ["pods/*", "*/scale"]}]
- level: Metadata
  userGroups: ["system:authenticated"]
"#;

    fn level(policy: &Policy, user: &UserInfo, verb: &str, path: &str) -> Level {
        let resource = crate::path::parse(path);
        let asked = Asked { user, verb, resource: resource.as_ref(), path };
        policy.verdict(&asked).map_or(Level::None, |v| v.level)
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = Policy::parse(TEXT).expect("policy");
        let (jane, proxy) = (UserInfo::new("jane", &[]), UserInfo::new("system:kube-proxy", &[]));
        assert_eq!(level(&policy, &proxy, "watch", "/api/v1/services"), Level::None);
        assert_eq!(level(&policy, &proxy, "list", "/api/v1/services"), Level::Metadata);
        assert_eq!(level(&policy, &jane, "get", "/healthz/ping"), Level::None);
        assert_eq!(level(&policy, &jane, "get", "/version/x"), Level::Metadata);
        let map = "/api/v1/namespaces/kube-system/configmaps/controller-leader";
        assert_eq!(level(&policy, &jane, "update", map), Level::Request);
        assert_eq!(level(&policy, &jane, "update", &map.replace("kube-system", "x")), Level::Metadata);
        assert_eq!(
            level(&policy, &jane, "create", "/api/v1/namespaces/a/pods/b/exec"),
            Level::RequestResponse
        );
        assert_eq!(
            level(&policy, &jane, "get", "/api/v1/namespaces/a/replicationcontrollers/b/scale"),
            Level::RequestResponse
        );
        assert_eq!(level(&policy, &UserInfo::anonymous(), "get", "/api/v1/nodes"), Level::None);
        let path = crate::path::parse("/api/v1/namespaces/a/pods/b");
        let asked = Asked { user: &jane, verb: "get", resource: path.as_ref(), path: "" };
        let verdict = policy.verdict(&asked).expect("verdict");
        assert!(verdict.omit_managed_fields && verdict.omit == [Stage::RequestReceived, Stage::Panic]);
    }

    #[test]
    fn bad_policies_are_refused() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, words) in [
            ("kind: Policy", "audit.k8s.io/v1"),
            (&format!("{head}rules: []"), "rules"),
            (&format!("{head}rules: [{{level: Everything}}]"), "rules[0]: level"),
            (&format!("{head}omitStages: [Later]\nrules: [{{level: None}}]"), "no stage"),
            (
                &format!(
                    "{head}rules: [{{level: None, nonResourceURLs: [/x], resources: [{{group: apps}}]}}]"
                ),
                "both",
            ),
        ] {
            let error = Policy::parse(text).expect_err(text);
            assert!(error.contains(words), "{error}");
        }
    }
}
