//! May they? SubjectAccessReview, the local and the self kind, and SelfSubjectRulesReview.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, Gvk};
use coracle_api::status::Status;
use coracle_apiserver::{AuthorizationRequest, ResourceDef, Strategy, StrategyContext, UserInfo};
use serde_json::{Map, Value, json};

use crate::authz::Authorizers;
use crate::authz::rules::Rule;
use crate::value::{at, entries, items, present, set, text};

const GROUP: &str = "authorization.k8s.io";

/// The four resources.
pub fn resources(authorizers: &Arc<Authorizers>) -> [ResourceDef; 4] {
    let def = |kind: &str, plural: &str, whose: Whose| {
        let strategy = Arc::new(AccessReview { whose, authorizers: authorizers.clone() });
        ResourceDef::new(GROUP, "v1", kind, plural, strategy).verbs(&["create"])
    };
    let rules = Arc::new(RulesReview { authorizers: authorizers.clone() });
    [
        def("LocalSubjectAccessReview", "localsubjectaccessreviews", Whose::Local),
        def("SelfSubjectAccessReview", "selfsubjectaccessreviews", Whose::Caller).cluster_scoped(),
        ResourceDef::new(GROUP, "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", rules)
            .verbs(&["create"])
            .cluster_scoped(),
        def("SubjectAccessReview", "subjectaccessreviews", Whose::Anyone).cluster_scoped(),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Anyone,
    Local,
    Caller,
}

struct AccessReview {
    whose: Whose,
    authorizers: Arc<Authorizers>,
}

impl AccessReview {
    fn check(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("spec");
        let (resource, other) = (at(obj, "/spec/resourceAttributes"), at(obj, "/spec/nonResourceAttributes"));
        if !resource.is_null() && !other.is_null() {
            let shown = json!({"Path": text(other, "/path"), "Verb": text(other, "/verb")});
            let words = "cannot be specified in combination with resourceAttributes";
            errors.push(Error::invalid(&path.child("nonResourceAttributes"), shown, words));
        }
        if resource.is_null() && other.is_null() {
            let words = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(Error::invalid(&path.child("resourceAttributes"), Value::Null, words));
        }
        if self.whose != Whose::Caller
            && text(obj, "/spec/user").is_empty()
            && items(obj, "/spec/groups").is_empty()
        {
            let words = "at least one of user or group must be specified";
            errors.push(Error::invalid(&path.child("user"), "", words));
        }
        if self.whose == Whose::Local {
            let namespace = text(obj, "/spec/resourceAttributes/namespace");
            if !resource.is_null() && Some(namespace) != meta::namespace(obj) {
                let path = path.child("resourceAttributes").child("namespace");
                errors.push(Error::invalid(&path, namespace, "must match metadata.namespace"));
            }
            if !other.is_null() {
                let words = "disallowed on this kind of request";
                errors.push(Error::invalid(&path.child("nonResourceAttributes"), other.clone(), words));
            }
        }
        errors
    }
}

/// The user that a review asks about.
fn subject(obj: &Value) -> UserInfo {
    let strings =
        |list: &[Value]| list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let extra: BTreeMap<String, Vec<String>> =
        entries(obj, "/spec/extra").map(|(key, v)| (key.clone(), strings(items(v, "")))).collect();
    UserInfo {
        name: text(obj, "/spec/user").to_owned(),
        uid: text(obj, "/spec/uid").to_owned(),
        groups: strings(items(obj, "/spec/groups")),
        extra,
    }
}

fn request<'a>(user: &'a UserInfo, obj: &'a Value) -> AuthorizationRequest<'a> {
    fn some(value: &str) -> Option<&str> {
        (!value.is_empty()).then_some(value)
    }
    let is_resource = present(obj, "/spec/resourceAttributes");
    let of = |key: &str| {
        let from = if is_resource { "resourceAttributes" } else { "nonResourceAttributes" };
        text(at(obj, "/spec"), &format!("/{from}/{key}"))
    };
    AuthorizationRequest {
        user,
        verb: of("verb"),
        is_resource,
        group: of("group"),
        version: of("version"),
        resource: of("resource"),
        subresource: some(of("subresource")),
        namespace: some(of("namespace")),
        name: some(of("name")),
        path: of("path"),
    }
}

#[async_trait::async_trait]
impl Strategy for AccessReview {
    fn is_review(&self) -> bool {
        true
    }

    async fn answer(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let errors = self.check(obj);
        if !errors.is_empty() {
            // Kubernetes leaves the kind out here.
            return Err(Status::invalid(&Gvk::new(GROUP, "v1", ""), "", errors));
        }
        let user = match self.whose {
            Whose::Caller => cx.request.user.clone(),
            _ => subject(obj),
        };
        let verdict = self.authorizers.explain(&request(&user, obj));
        let mut status = Map::new();
        status.insert("allowed".into(), verdict.allowed.into());
        if !verdict.reason.is_empty() {
            status.insert("reason".into(), verdict.reason.into());
        }
        set(obj, "status", status);
        Ok(())
    }
}

struct RulesReview {
    authorizers: Arc<Authorizers>,
}

#[async_trait::async_trait]
impl Strategy for RulesReview {
    fn is_review(&self) -> bool {
        true
    }

    async fn answer(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let namespace = text(obj, "/spec/namespace");
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let rules = self.authorizers.rbac.rules(&cx.request.user, Some(namespace));
        let (paths, resources): (Vec<Rule>, Vec<Rule>) =
            rules.into_iter().partition(|r| !r.non_resource_urls.is_empty());
        let values = |rules: &[Rule]| -> Vec<Value> { rules.iter().map(Rule::to_value).collect() };
        let status = json!({
            "incomplete": false, "resourceRules": values(&resources), "nonResourceRules": values(&paths),
        });
        set(obj, "spec", json!({}));
        set(obj, "status", status);
        Ok(())
    }
}
