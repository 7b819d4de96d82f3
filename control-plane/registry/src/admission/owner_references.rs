//! OwnerReferencesPermissionEnforcement, which is off unless asked for: who changes the owners of an object must be allowed to
//! delete it, and who lets it hold up the deletion of an owner must be allowed to set the owner's finalizers.

use coracle_api::Gvk;
use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, AuthorizationRequest, Decision, Operation};
use serde_json::Value;

use crate::value::{flag, items, same, text};

const OWNERS: &str = "/metadata/ownerReferences";

/// The plugin.
pub struct OwnerReferencesPermissionEnforcement;

#[async_trait::async_trait]
impl Admission for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let Some(obj) = obj else { return Ok(()) };
        let (new, old) = (items(obj, OWNERS), attributes.old.map_or(&[][..], |old| items(old, OWNERS)));
        let status_of_pods =
            cx.group.is_empty() && cx.resource == "pods" && cx.subresource.as_deref() == Some("status");
        if status_of_pods || (new.len() == old.len() && new.iter().zip(old).all(|(a, b)| same(a, b))) {
            return Ok(());
        }
        // Who may create it may also say whose it is.
        if attributes.operation != Operation::Create {
            let own = AuthorizationRequest {
                user: &cx.user,
                verb: "delete",
                is_resource: true,
                group: &cx.group,
                version: &cx.version,
                resource: &cx.resource,
                subresource: cx.subresource.as_deref(),
                namespace: cx.namespace.as_deref(),
                name: cx.name.as_deref(),
                path: "",
            };
            if let Decision::Deny { reason } = attributes.authorizer.authorize(&own).await {
                let words = format!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>");
                return Err(forbidden(attributes, words));
            }
        }
        let blocked = |r: &&Value| {
            let uid = text(r, "/uid");
            flag(r, "/blockOwnerDeletion")
                && !old.iter().any(|o| text(o, "/uid") == uid && flag(o, "/blockOwnerDeletion"))
        };
        for owner in new.iter().filter(blocked) {
            may_block(attributes, owner).await?;
        }
        Ok(())
    }
}

async fn may_block(attributes: &Attributes<'_>, owner: &Value) -> Result<(), Status> {
    let (cx, gvk) = (attributes.request, Gvk::of(owner));
    let resources = attributes.objects.resources();
    let known = |r: &&std::sync::Arc<coracle_apiserver::ResourceDef>| {
        r.group == gvk.group && r.version == gvk.version && r.kind == gvk.kind
    };
    let Some(def) = resources.iter().find(known) else {
        let words = format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {} Kind {}: no matches for kind {:?} in version {:?}",
            gvk.api_version(),
            gvk.kind,
            gvk.kind,
            gvk.api_version()
        );
        return Err(forbidden(attributes, words));
    };
    let ask = AuthorizationRequest {
        user: &cx.user,
        verb: "update",
        is_resource: true,
        group: &def.group,
        version: &def.version,
        resource: &def.plural,
        subresource: Some("finalizers"),
        namespace: cx.namespace.as_deref().filter(|_| def.namespaced),
        name: Some(text(owner, "/name")),
        path: "",
    };
    match attributes.authorizer.authorize(&ask).await {
        Decision::Allow => Ok(()),
        Decision::Deny { reason } => Err(forbidden(
            attributes,
            format!(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {reason}, <nil>"
            ),
        )),
    }
}

fn forbidden(attributes: &Attributes<'_>, words: String) -> Status {
    let cx = attributes.request;
    let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
    Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), words)
}
