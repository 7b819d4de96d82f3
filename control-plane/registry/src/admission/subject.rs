//! What webhooks and policies judge: a call, in the form of the resource that their rules name.

use std::sync::Arc;

use coracle_api::status::Status;
use coracle_apiserver::{Attributes, FieldValidation, Operation, ResourceDef};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::admission_rules::{self, Asked};
use crate::check;
use crate::value::at;

const GROUP: &str = "admissionregistration.k8s.io";
/// Kinds that nobody may be kept from repairing.
const EXEMPT: [&str; 6] = [
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

/// The resource in whose form the object is shown; none: its own.
pub type Form = Option<Arc<ResourceDef>>;

/// A call that is judged.
pub struct Subject<'a> {
    pub attributes: &'a Attributes<'a>,
    /// The namespace of the object; of a Namespace, its own name. Empty for other cluster objects.
    pub namespace: &'a str,
    namespace_object: OnceCell<Value>,
    equivalents: OnceCell<Vec<Arc<ResourceDef>>>,
}

/// The operation in the words of rules.
pub fn word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

impl<'a> Subject<'a> {
    /// A call, unless nobody may judge it.
    pub fn of(attributes: &'a Attributes<'a>) -> Option<Self> {
        let cx = attributes.request;
        if cx.group == GROUP && EXEMPT.contains(&cx.resource.as_str()) {
            return None;
        }
        let named = cx.name.as_deref().filter(|_| is_namespaces(&cx.group, &cx.resource));
        let namespace = cx.namespace.as_deref().or(named).unwrap_or_default();
        let (namespace_object, equivalents) = (OnceCell::new(), OnceCell::new());
        Some(Self { attributes, namespace, namespace_object, equivalents })
    }

    /// In which form rules cover the call; none where they do not.
    pub async fn matched(&self, rules: &[Value], exact: bool) -> Option<Form> {
        let cx = self.attributes.request;
        let asked = Asked {
            operation: word(self.attributes.operation),
            group: &cx.group,
            version: &cx.version,
            resource: &cx.resource,
            subresource: cx.subresource.as_deref().unwrap_or_default(),
            name: cx.name.as_deref().unwrap_or_default(),
            namespaced: cx.namespace.is_some(),
        };
        if rules.iter().any(|r| admission_rules::covers(r, &asked)) {
            return Some(None);
        }
        if exact {
            return None;
        }
        let others = self.equivalents.get_or_init(|| async { self.attributes.equivalents() }).await;
        let covers = |rule: &Value| {
            let found = others.iter().find(|other| {
                let asked =
                    Asked { group: &other.group, version: &other.version, resource: &other.plural, ..asked };
                admission_rules::covers(rule, &asked)
            });
            found.cloned()
        };
        rules.iter().find_map(covers).map(Some)
    }

    /// The namespace of the object; of a Namespace, itself. Null where there is none.
    pub async fn namespace_object(&self, object: &Value, old: &Value) -> Result<&Value, Status> {
        let cx = self.attributes.request;
        let read = || async {
            if is_namespaces(&cx.group, &cx.resource) && self.attributes.operation != Operation::Connect {
                let is = if object.is_object() && cx.subresource.is_none() { object } else { old };
                return Ok(is.clone());
            }
            if self.namespace.is_empty() {
                return Ok(Value::Null);
            }
            let found = self.attributes.objects.get("", "namespaces", None, self.namespace).await?;
            Ok(found.unwrap_or_default())
        };
        self.namespace_object.get_or_try_init(read).await
    }

    /// Whether the selectors of `holder` choose the call.
    pub async fn chosen(&self, holder: &Value, object: &Value, old: &Value) -> Result<bool, Status> {
        if !admission_rules::chosen(at(holder, "/objectSelector"), [object, old]) {
            return Ok(false);
        }
        let selector = at(holder, "/namespaceSelector");
        if check::selector_is_empty(selector) || self.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = self.namespace_object(object, old).await?;
        Ok(check::selector_matches(selector, at(namespace, "/metadata/labels")))
    }

    /// An object in some form.
    pub async fn shown(&self, form: &Form, object: &Value) -> Result<Value, Status> {
        match form {
            Some(def) if object.is_object() && !self.attributes.is_other_kind() => {
                self.attributes.convert(object, def)
            }
            _ => Ok(object.clone()),
        }
    }

    /// The admission request without its objects.
    pub fn request(&self, form: &Form, uid: &str) -> Value {
        let (cx, kind) = (self.attributes.request, self.attributes.kind);
        let subresource = cx.subresource.as_deref().unwrap_or_default();
        let own_kind = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let own = json!({"group": cx.group, "version": cx.version, "resource": cx.resource});
        let (is, of) = match form {
            Some(def) => (
                match self.attributes.is_other_kind() {
                    true => own_kind.clone(),
                    false => json!({"group": def.group, "version": def.version, "kind": def.kind}),
                },
                json!({"group": def.group, "version": def.version, "resource": def.plural}),
            ),
            None => (own_kind.clone(), own.clone()),
        };
        let mut user = json!({"username": cx.user.name, "groups": cx.user.groups});
        if !cx.user.uid.is_empty() {
            user["uid"] = cx.user.uid.as_str().into();
        }
        if !cx.user.extra.is_empty() {
            user["extra"] = json!(cx.user.extra);
        }
        let mut request = json!({
            "uid": uid, "kind": is, "resource": of, "requestKind": own_kind, "requestResource": own,
            "operation": word(self.attributes.operation), "userInfo": user, "dryRun": cx.dry_run,
            "options": self.options(),
        });
        for (field, value) in [
            ("subResource", subresource),
            ("requestSubResource", subresource),
            ("name", cx.name.as_deref().unwrap_or_default()),
            ("namespace", self.namespace),
        ] {
            if !value.is_empty() {
                request[field] = value.into();
            }
        }
        request
    }

    /// The options of the call; null for a connection.
    fn options(&self) -> Value {
        let cx = self.attributes.request;
        let kind = match (self.attributes.operation, cx.verb) {
            (Operation::Connect, _) => return Value::Null,
            (Operation::Delete, _) => "DeleteOptions",
            (Operation::Create, _) => "CreateOptions",
            (Operation::Update, "patch") => "PatchOptions",
            (Operation::Update, _) => "UpdateOptions",
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if cx.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if kind != "DeleteOptions" {
            options["fieldManager"] = cx.field_manager.as_str().into();
            options["fieldValidation"] = match cx.field_validation {
                FieldValidation::Ignore => "Ignore",
                FieldValidation::Warn => "Warn",
                FieldValidation::Strict => "Strict",
            }
            .into();
        }
        options
    }
}

fn is_namespaces(group: &str, resource: &str) -> bool {
    group.is_empty() && resource == "namespaces"
}
