//! CertificateSigningRequest: who asks is written down by the server; approving and signing need rights over the signer.

mod validation;

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::{
    AuthorizationRequest, Column, RequestContext, ResourceDef, Strategy, StrategyContext, Subresource,
    SubresourceAction,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::authz::{Authorizers, MASTERS};
use crate::table;
use crate::value::{at, items, items_mut, maybe_number, object, same, set, set_default, text};

pub(crate) const GROUP: &str = "certificates.k8s.io";

static COLUMNS: [Column; 6] = [
    table::NAME,
    table::AGE,
    table::string("SignerName", "signerName indicates the requested signer, and is a qualified name."),
    table::string(
        "Requestor",
        "username contains the name of the user that created the CertificateSigningRequest.",
    ),
    table::string(
        "RequestedDuration",
        "expirationSeconds is the requested duration of validity of the issued certificate.",
    ),
    table::string("Condition", "The last condition that was set on the request."),
];

/// The resource.
pub fn resource(authorizers: &Arc<Authorizers>) -> ResourceDef {
    let strategy = |part| Arc::new(Request { part, authorizers: authorizers.clone() });
    let kind = "CertificateSigningRequest";
    let approval = Subresource::new(
        "approval",
        kind,
        &["get", "patch", "update"],
        SubresourceAction::Object(strategy(Part::Approval)),
    );
    let status = Subresource::new(
        "status",
        kind,
        &["get", "patch", "update"],
        SubresourceAction::Object(strategy(Part::Status)),
    );
    ResourceDef::new(GROUP, "v1", kind, "certificatesigningrequests", strategy(Part::Whole))
        .cluster_scoped()
        .short_names(&["csr"])
        .subresource(approval)
        .subresource(status)
}

/// Which part of the object a call may write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Approval,
    Status,
}

struct Request {
    part: Part,
    authorizers: Arc<Authorizers>,
}

fn decides(condition: &Value) -> bool {
    matches!(text(condition, "/type"), "Approved" | "Denied")
}

impl Request {
    /// 403 unless the caller may `verb` for a signer.
    fn check_signer(&self, cx: &RequestContext, verb: &str, signer: &str) -> Result<(), Status> {
        let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*")).unwrap_or_default();
        let may = |name: &str| {
            self.authorizers
                .explain(&AuthorizationRequest {
                    user: &cx.user,
                    verb,
                    is_resource: true,
                    group: GROUP,
                    version: "*",
                    resource: "signers",
                    subresource: None,
                    namespace: None,
                    name: Some(name),
                    path: "",
                })
                .allowed
        };
        if cx.user.in_group(MASTERS) || may(signer) || may(&domain) {
            return Ok(());
        }
        let gr = GroupResource::new(GROUP, "certificatesigningrequests");
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        Err(Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), why))
    }
}

#[async_trait::async_trait]
impl Strategy for Request {
    fn default(&self, obj: &mut Value) {
        object(obj, "status");
        let now = time::now();
        if let Some(status) = object(obj, "status") {
            for condition in items_mut(status, "conditions") {
                set_default(condition, "status", "True");
                set_default(condition, "lastUpdateTime", now.as_str());
                set_default(condition, "lastTransitionTime", now.as_str());
            }
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let user = &cx.request.user;
        set(obj, "status", json!({}));
        let Some(spec) = object(obj, "spec") else { return Ok(()) };
        for (key, value) in [("username", &user.name), ("uid", &user.uid)] {
            if value.is_empty() {
                crate::value::remove(spec, key);
            } else {
                set(spec, key, value.as_str());
            }
        }
        set(spec, "groups", user.groups.clone());
        if user.extra.is_empty() {
            crate::value::remove(spec, "extra");
        } else {
            set(spec, "extra", json!(user.extra));
        }
        if text(spec, "/signerName") == "kubernetes.io/kube-apiserver-client"
            && validation::organizations(text(spec, "/request")).iter().any(|o| o == MASTERS)
        {
            let gr = GroupResource::new(GROUP, "certificatesigningrequests");
            let why =
                "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
            return Err(Status::forbidden(&gr, cx.request.name.as_deref().unwrap_or_default(), why));
        }
        if text(spec, "/signerName") == "kubernetes.io/kube-apiserver-client"
            && validation::common_name(text(spec, "/request")).as_deref() == Some(crate::FRONT_PROXY)
        {
            let gr = GroupResource::new(GROUP, "certificatesigningrequests");
            let why = "the servers of aggregated APIs believe whoever has this name";
            return Err(Status::forbidden(&gr, cx.request.name.as_deref().unwrap_or_default(), why));
        }
        Ok(())
    }

    async fn prepare_update(
        &self,
        cx: &StrategyContext<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        let signer = text(old, "/spec/signerName");
        match self.part {
            Part::Approval => self.check_signer(cx.request, "approve", signer),
            Part::Status if !same(at(new, "/status/certificate"), at(old, "/status/certificate")) => {
                self.check_signer(cx.request, "sign", signer)
            }
            _ => Ok(()),
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        set(new, "spec", at(old, "/spec").clone());
        let given = at(new, "/status").clone();
        let mut status = at(old, "/status").clone();
        let mix = |decided_by: &Value, others: &Value| -> Vec<Value> {
            let decided = items(decided_by, "/conditions").iter().filter(|c| decides(c));
            decided.chain(items(others, "/conditions").iter().filter(|c| !decides(c))).cloned().collect()
        };
        match self.part {
            Part::Whole => {}
            Part::Approval => {
                let conditions = mix(&given, &status);
                set(&mut status, "conditions", conditions);
            }
            Part::Status => {
                let conditions = mix(&status, &given);
                if !conditions.is_empty() {
                    set(&mut status, "conditions", conditions);
                }
                if !at(&given, "/certificate").is_null() {
                    set(&mut status, "certificate", at(&given, "/certificate").clone());
                }
            }
        }
        if !status.is_object() {
            status = json!({});
        }
        set(new, "status", status);
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        validation::spec(at(obj, "/spec"), &Path::new("spec"))
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("status").child("conditions");
        let has = |obj: &Value, wanted: &str| {
            items(obj, "/status/conditions").iter().any(|c| text(c, "/type") == wanted)
        };
        for wanted in ["Approved", "Denied"] {
            if has(old, wanted) && !has(new, wanted) {
                errors.push(Error::forbidden(
                    &path,
                    format!("updates may not remove a condition of type {wanted:?}"),
                ));
            }
        }
        if has(new, "Approved") && has(new, "Denied") {
            let words = "Approved and Denied conditions are mutually exclusive";
            errors.push(Error::invalid(&path, "Denied", words));
        }
        let (was, is) = (text(old, "/status/certificate"), text(new, "/status/certificate"));
        if !was.is_empty() && was != is {
            errors.push(Error::forbidden(
                &Path::new("status").child("certificate"),
                "updates may not modify existing certificate content",
            ));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let duration = maybe_number(obj, "/spec/expirationSeconds").map(table::duration);
        let mut condition: Vec<&str> = Vec::new();
        for c in items(obj, "/status/conditions") {
            condition.push(text(c, "/type"));
        }
        if condition.is_empty() {
            condition.push("Pending");
        }
        if !text(obj, "/status/certificate").is_empty() {
            condition.push("Issued");
        }
        vec![
            table::name(obj),
            table::age(obj, now),
            text(obj, "/spec/signerName").into(),
            text(obj, "/spec/username").into(),
            duration.unwrap_or_else(|| "<none>".into()).into(),
            condition.join(",").into(),
        ]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "spec.signerName").then(|| text(obj, "/spec/signerName").to_owned())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.signerName"]
    }
}
