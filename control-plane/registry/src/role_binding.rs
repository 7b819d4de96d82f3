//! RoleBinding and ClusterRoleBinding: who writes one must hold what its role grants, or may `bind` it.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authz::Authorizers;
use crate::authz::escalation::{GROUP, check_binding};
use crate::value::{at, items, items_mut, object, same, set_default, text};
use crate::{check, role, table};

static COLUMNS: [Column; 6] = [
    table::NAME,
    table::string(
        "Role",
        "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error. This field is immutable.",
    ),
    table::AGE,
    table::wide("Users", "Users in the binding"),
    table::wide("Groups", "Groups in the binding"),
    table::wide("ServiceAccounts", "ServiceAccounts in the binding"),
];

/// Both resources.
pub fn resources(authorizers: &Arc<Authorizers>) -> [ResourceDef; 2] {
    let strategy = |cluster| Arc::new(Binding { cluster, authorizers: authorizers.clone() });
    [
        ResourceDef::new(GROUP, "v1", "RoleBinding", "rolebindings", strategy(false)),
        ResourceDef::new(GROUP, "v1", "ClusterRoleBinding", "clusterrolebindings", strategy(true))
            .cluster_scoped(),
    ]
}

struct Binding {
    cluster: bool,
    authorizers: Arc<Authorizers>,
}

impl Binding {
    fn check(&self, cx: &StrategyContext<'_>, obj: &Value) -> Result<(), Status> {
        let namespace = match text(obj, "/roleRef/kind") {
            "Role" => cx.request.namespace.as_deref(),
            _ => None,
        };
        check_binding(&self.authorizers, cx.request, namespace, text(obj, "/roleRef/name"))
    }

    fn role_ref(&self, errors: &mut Vec<Error>, obj: &Value) {
        let path = Path::new("roleRef");
        let group = text(obj, "/roleRef/apiGroup");
        if group != GROUP {
            errors.push(Error::not_supported(&path.child("apiGroup"), group, &[GROUP]));
        }
        let kinds: &[&str] = if self.cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        let kind = text(obj, "/roleRef/kind");
        if !kinds.contains(&kind) {
            errors.push(Error::not_supported(&path.child("kind"), kind, kinds));
        }
        let name = text(obj, "/roleRef/name");
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else {
            check::words(errors, &path.child("name"), name, validation::path_segment(name));
        }
    }

    fn subject(&self, errors: &mut Vec<Error>, path: &Path, subject: &Value) {
        let (kind, name) = (text(subject, "/kind"), text(subject, "/name"));
        let (group, namespace) = (text(subject, "/apiGroup"), text(subject, "/namespace"));
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        let supported = |errors: &mut Vec<Error>, wanted: &str| {
            if group != wanted {
                errors.push(Error::not_supported(&path.child("apiGroup"), group, &[wanted]));
            }
        };
        match kind {
            "ServiceAccount" => {
                if !name.is_empty() {
                    let words = validation::dns1123_subdomain(name);
                    check::words(errors, &path.child("name"), name, words);
                }
                supported(errors, "");
                if self.cluster && namespace.is_empty() {
                    errors.push(Error::required(&path.child("namespace"), ""));
                }
            }
            "User" | "Group" => supported(errors, GROUP),
            _ => errors.push(Error::not_supported(
                &path.child("kind"),
                kind,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
}

#[async_trait::async_trait]
impl Strategy for Binding {
    fn has_status(&self) -> bool {
        false
    }

    fn default(&self, obj: &mut Value) {
        if let Some(role) = object(obj, "roleRef") {
            set_default(role, "apiGroup", GROUP);
        }
        for subject in items_mut(obj, "subjects") {
            if matches!(text(subject, "/kind"), "User" | "Group") {
                set_default(subject, "apiGroup", GROUP);
            }
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        // What cannot be valid is refused for that, not for the caller's rights.
        if !self.validate_create(obj).is_empty() {
            return Ok(());
        }
        self.check(cx, obj)
    }

    async fn prepare_update(
        &self,
        cx: &StrategyContext<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let unchanged = |key: &str| same(at(new, key), at(old, key));
        if (unchanged("/roleRef") && unchanged("/subjects")) || !self.validate_update(new, old).is_empty() {
            return Ok(());
        }
        self.check(cx, new)
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        self.role_ref(&mut errors, obj);
        for (i, subject) in items(obj, "/subjects").iter().enumerate() {
            self.subject(&mut errors, &Path::new("subjects").index(i), subject);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let role = at(new, "/roleRef");
        if !same(role, at(old, "/roleRef")) {
            // Kubernetes shows its inner type here, whose fields begin with capitals.
            let shown = json!({
                "APIGroup": text(role, "/apiGroup"), "Kind": text(role, "/kind"), "Name": text(role, "/name"),
            });
            errors.push(Error::invalid(&Path::new("roleRef"), shown, "cannot change roleRef"));
        }
        errors
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        role::name_words(name, prefix)
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let of = |kind: &str| -> Value {
            let all = items(obj, "/subjects").iter().filter(|s| text(s, "/kind") == kind);
            let names: Vec<String> = all
                .map(|s| match text(s, "/namespace") {
                    "" => text(s, "/name").to_owned(),
                    namespace => format!("{namespace}/{}", text(s, "/name")),
                })
                .collect();
            names.join(", ").into()
        };
        vec![
            table::name(obj),
            role::shown(obj),
            table::age(obj, now),
            of("User"),
            of("Group"),
            of("ServiceAccount"),
        ]
    }
}
