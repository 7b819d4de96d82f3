//! Rules of roles: what they match, and whether some rules grant all that others do.

use std::collections::BTreeMap;

use coracle_api::field::go_quote;
use coracle_apiserver::AuthorizationRequest;
use serde::Deserialize;
use serde_json::{Value, json};

const ALL: &str = "*";

/// A rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, or `*`.
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<String>,
    /// API groups, or `*`.
    #[serde(deserialize_with = "list")]
    pub api_groups: Vec<String>,
    /// Resources (`pods`, `pods/log`, `*/scale`, `*`).
    #[serde(deserialize_with = "list")]
    pub resources: Vec<String>,
    /// Names; empty means all.
    #[serde(deserialize_with = "list")]
    pub resource_names: Vec<String>,
    /// Paths that are no resources; may end in `*`.
    #[serde(rename = "nonResourceURLs", deserialize_with = "list")]
    pub non_resource_urls: Vec<String>,
}

/// A list that may be null.
fn list<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(from)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == wanted || item == ALL)
}

impl Rule {
    /// The rules in a role; what is no rule grants nothing.
    pub fn of_role(role: &Value) -> Vec<Rule> {
        let rules = role.get("rules").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        rules.iter().filter_map(|rule| Rule::deserialize(rule).ok()).collect()
    }

    /// Whether the rule allows a call.
    pub fn allows(&self, ask: &AuthorizationRequest<'_>) -> bool {
        if !has(&self.verbs, ask.verb) {
            return false;
        }
        if !ask.is_resource {
            return self.non_resource_urls.iter().any(|url| url_matches(url, ask.path));
        }
        has(&self.api_groups, ask.group)
            && self.resources.iter().any(|r| resource_matches(r, ask.resource, ask.subresource))
            && (self.resource_names.is_empty()
                || ask.name.is_some_and(|name| self.resource_names.iter().any(|n| n == name)))
    }

    /// Whether this rule grants all that a rule of one verb, group, resource and name does.
    fn covers(&self, one: &Rule) -> bool {
        let all_in = |mine: &[String], theirs: &[String]| theirs.iter().all(|t| has(mine, t));
        if !all_in(&self.verbs, &one.verbs) {
            return false;
        }
        if !one.non_resource_urls.is_empty() {
            return one
                .non_resource_urls
                .iter()
                .all(|path| self.non_resource_urls.iter().any(|url| url_matches(url, path)));
        }
        let resources = one.resources.iter().all(|wanted| {
            let (resource, subresource) = match wanted.split_once('/') {
                Some((resource, subresource)) => (resource, Some(subresource)),
                None => (wanted.as_str(), None),
            };
            self.resources.iter().any(|mine| mine == wanted || resource_matches(mine, resource, subresource))
        });
        let names = self.resource_names.is_empty()
            || (!one.resource_names.is_empty()
                && one.resource_names.iter().all(|n| self.resource_names.contains(n)));
        all_in(&self.api_groups, &one.api_groups) && resources && names
    }

    /// One rule for each verb, group, resource and name.
    fn split(&self) -> Vec<Rule> {
        let mut out = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                let (verbs, non_resource_urls) = (vec![verb.clone()], vec![url.clone()]);
                out.push(Rule { verbs, non_resource_urls, ..Rule::default() });
            }
            for (group, resource) in
                self.api_groups.iter().flat_map(|g| self.resources.iter().map(move |r| (g, r)))
            {
                let one = Rule {
                    verbs: vec![verb.clone()],
                    api_groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Rule::default()
                };
                if self.resource_names.is_empty() {
                    out.push(one.clone());
                }
                for name in &self.resource_names {
                    out.push(Rule { resource_names: vec![name.clone()], ..one.clone() });
                }
            }
        }
        out
    }

    /// As the API writes it.
    pub fn to_value(&self) -> Value {
        let mut out = json!({"verbs": self.verbs});
        for (key, list) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                out[key] = json!(list);
            }
        }
        out
    }

    /// As Kubernetes writes it in errors.
    fn words(&self) -> String {
        let mut parts = Vec::new();
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                parts.push(format!("{name}:{}", quoted(list)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// A list of strings as Go prints it.
pub fn quoted(list: &[String]) -> String {
    let all: Vec<String> = list.iter().map(|s| go_quote(s)).collect();
    format!("[{}]", all.join(" "))
}

fn resource_matches(rule: &str, resource: &str, subresource: Option<&str>) -> bool {
    if rule == ALL {
        return true;
    }
    match (rule.split_once('/'), subresource) {
        (None, None) => rule == resource,
        (Some((r, s)), Some(subresource)) => (r == resource || r == ALL) && s == subresource,
        _ => false,
    }
}

fn url_matches(rule: &str, path: &str) -> bool {
    rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// What `wanted` grants and `held` does not, in Kubernetes' words, a line a rule; empty where all is held.
pub fn missing(held: &[Rule], wanted: &[Rule]) -> String {
    let lacking: Vec<Rule> =
        wanted.iter().flat_map(Rule::split).filter(|one| !held.iter().any(|mine| mine.covers(one))).collect();
    let mut lines: Vec<String> = compact(lacking).iter().map(Rule::words).collect();
    lines.sort();
    lines.dedup();
    lines.join("\n")
}

/// Rules of one group and resource without names become one, with all their verbs.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut simple: BTreeMap<(Vec<String>, Vec<String>), Rule> = BTreeMap::new();
    let mut out = Vec::new();
    for rule in rules {
        if rule.resources.is_empty() || !rule.resource_names.is_empty() {
            out.push(rule);
            continue;
        }
        let key = (rule.api_groups.clone(), rule.resources.clone());
        match simple.entry(key) {
            std::collections::btree_map::Entry::Vacant(free) => drop(free.insert(rule)),
            std::collections::btree_map::Entry::Occupied(mut kept) => {
                for verb in rule.verbs {
                    if !kept.get().verbs.contains(&verb) {
                        kept.get_mut().verbs.push(verb);
                    }
                }
            }
        }
    }
    out.extend(simple.into_values());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_apiserver::UserInfo;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Rule {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            api_groups: own(groups),
            resources: own(resources),
            resource_names: own(names),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn what_rules_allow() {
        let user = UserInfo::default();
        let ask = |verb, group, resource, subresource, name| AuthorizationRequest {
            user: &user,
            verb,
            is_resource: true,
            group,
            version: "v1",
            resource,
            subresource,
            namespace: None,
            name,
            path: "",
        };
        let pods = rule(&[""], &["pods", "*/log"], &[], &["get"]);
        assert!(pods.allows(&ask("get", "", "pods", None, None)));
        assert!(pods.allows(&ask("get", "", "pods", Some("log"), None)));
        assert!(!pods.allows(&ask("get", "", "pods", Some("exec"), None)));
        assert!(!pods.allows(&ask("list", "", "pods", None, None)));
        assert!(!pods.allows(&ask("get", "apps", "pods", None, None)));
        let named = rule(&["*"], &["*"], &["a"], &["*"]);
        assert!(named.allows(&ask("delete", "x", "y", Some("z"), Some("a"))));
        assert!(!named.allows(&ask("delete", "x", "y", None, None)));
    }

    #[test]
    fn what_is_missing() {
        let held = [rule(&[""], &["configmaps"], &["dc1"], &["get"])];
        let wanted = [rule(&[""], &["secrets"], &[], &["get", "list"])];
        assert_eq!(
            missing(&held, &wanted),
            r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}"#
        );
        assert_eq!(missing(&held, &held), "");
        assert_ne!(missing(&held, &[rule(&[""], &["configmaps"], &[], &["get"])]), "");
        assert_eq!(missing(&[rule(&["*"], &["*"], &[], &["*"])], &wanted), "");
        let scale = [rule(&["apps"], &["deployments/scale"], &[], &["update"])];
        assert_eq!(missing(&[rule(&["apps"], &["*/scale"], &[], &["update"])], &scale), "");
        assert_ne!(missing(&[rule(&["apps"], &["deployments"], &[], &["update"])], &scale), "");
    }
}
