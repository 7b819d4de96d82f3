//! Role and ClusterRole: who writes one must hold what it grants.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, validation};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext};
use jiff::Timestamp;
use serde_json::Value;

use crate::authz::Authorizers;
use crate::authz::escalation::{GROUP, check_role};
use crate::authz::rules::Rule;
use crate::value::{at, items, present, same, set_default, text};
use crate::{check, table};

static COLUMNS: [Column; 2] = [table::NAME, table::CREATED_AT];

/// Both resources.
pub fn resources(authorizers: &Arc<Authorizers>) -> [ResourceDef; 2] {
    let strategy = |cluster| Arc::new(Role { cluster, authorizers: authorizers.clone() });
    [
        ResourceDef::new(GROUP, "v1", "Role", "roles", strategy(false)),
        ResourceDef::new(GROUP, "v1", "ClusterRole", "clusterroles", strategy(true)).cluster_scoped(),
    ]
}

struct Role {
    cluster: bool,
    authorizers: Arc<Authorizers>,
}

impl Role {
    fn check(&self, cx: &StrategyContext<'_>, obj: &Value) -> Result<(), Status> {
        let mut wanted = Rule::of_role(obj);
        if present(obj, "/aggregationRule") {
            // What it will hold is not known: only who holds everything may make one.
            let all = || vec!["*".to_owned()];
            let resources = Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() };
            wanted.push(Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() });
            wanted.push(resources);
        }
        check_role(&self.authorizers, cx.request, &wanted)
    }

    fn rule(&self, errors: &mut Vec<Error>, path: &Path, rule: &Value) {
        let list = |key: &str| items(rule, &format!("/{key}"));
        if list("verbs").is_empty() {
            errors.push(Error::required(&path.child("verbs"), "verbs must contain at least one value"));
        }
        let urls = list("nonResourceURLs");
        if !urls.is_empty() {
            let path_of = path.child("nonResourceURLs");
            if !self.cluster {
                let words = "namespaced rules cannot apply to non-resource URLs";
                errors.push(Error::invalid(&path_of, urls.to_vec(), words));
            }
            let mixed = ["apiGroups", "resources", "resourceNames"].iter().any(|k| !list(k).is_empty());
            if self.cluster && mixed {
                let words = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(Error::invalid(&path_of, urls.to_vec(), words));
            }
            return;
        }
        for (key, words) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if list(key).is_empty() {
                errors.push(Error::required(&path.child(key), words));
            }
        }
    }
}

#[async_trait::async_trait]
impl Strategy for Role {
    fn has_status(&self) -> bool {
        false
    }

    fn default(&self, obj: &mut Value) {
        set_default(obj, "rules", Value::Null);
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        self.check(cx, obj)
    }

    async fn prepare_update(
        &self,
        cx: &StrategyContext<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let unchanged = |key: &str| same(at(new, key), at(old, key));
        if unchanged("/rules") && unchanged("/aggregationRule") {
            return Ok(());
        }
        self.check(cx, new)
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        for (i, rule) in items(obj, "/rules").iter().enumerate() {
            self.rule(&mut errors, &Path::new("rules").index(i), rule);
        }
        if self.cluster && present(obj, "/aggregationRule") {
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = items(obj, "/aggregationRule/clusterRoleSelectors");
            if selectors.is_empty() {
                let words = "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(Error::required(&path, words));
            }
            for (i, selector) in selectors.iter().enumerate() {
                check::label_selector(&mut errors, &path.index(i), selector);
            }
        }
        errors
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        name_words(name, prefix)
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), meta::creation_timestamp(obj).unwrap_or_default().into()]
    }
}

/// RoleBinding and ClusterRoleBinding share this: the role that a binding names, `Role/name`.
pub fn shown(binding: &Value) -> Value {
    format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name")).into()
}

/// What is wrong with the name of a role or binding: anything that can be one part of a path will do.
pub fn name_words(name: &str, _prefix: bool) -> Vec<String> {
    validation::path_segment(name)
}
