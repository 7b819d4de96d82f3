//! Impersonation: a caller that may `impersonate` acts as somebody else.

use coracle_api::Status;
use http::HeaderMap;

use crate::authz::{AuthorizationRequest, Decision};
use crate::request::UserInfo;
use crate::state::Shared;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// What user names of service accounts begin with: `system:serviceaccount:<namespace>:<name>`.
const ACCOUNT: &str = "system:serviceaccount:";
/// Most groups that one call may name.
const MAX_GROUPS: usize = 64;
/// Most headers that are looked at for extra fields.
const MAX_HEADERS: usize = 256;

/// The user that the call acts as: the caller, or whom its headers name.
pub(crate) async fn apply(
    shared: &Shared,
    caller: UserInfo,
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
    let groups: Vec<&str> =
        headers.get_all(GROUP).iter().take(MAX_GROUPS).filter_map(|v| v.to_str().ok()).collect();
    let Some(name) = text(USER) else {
        let others = !groups.is_empty()
            || text(UID).is_some()
            || headers.keys().any(|k| k.as_str().starts_with(EXTRA));
        return match others {
            true => Err(Status::bad_request(
                "requested impersonation of groups, uid or extra without impersonating a user",
            )),
            false => Ok(caller),
        };
    };
    let account = name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => {
            ask(shared, &caller, "serviceaccounts", None, Some(namespace), name).await?;
        }
        None => allowed(shared, &caller, "users", name).await?,
    }
    for group in &groups {
        allowed(shared, &caller, "groups", group).await?;
    }
    let mut user = UserInfo { name: name.to_owned(), ..UserInfo::default() };
    user.groups = groups.iter().map(|g| (*g).to_owned()).collect();
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    if let Some(uid) = text(UID) {
        allowed(shared, &caller, "uids", uid).await?;
        user.uid = uid.to_owned();
    }
    for (key, value) in headers.iter().take(MAX_HEADERS) {
        let (Some(key), Ok(value)) = (key.as_str().strip_prefix(EXTRA), value.to_str()) else { continue };
        let key = crate::query::percent_decode(key, false)
            .ok_or_else(|| Status::bad_request(format!("{EXTRA}{key}: the name does not decode")))?;
        ask(shared, &caller, "userextras", Some(&key), None, value).await?;
        user.extra.entry(key).or_default().push(value.to_owned());
    }
    let usual =
        if name == UserInfo::anonymous().name { "system:unauthenticated" } else { "system:authenticated" };
    if !user.in_group(usual) {
        user.groups.push(usual.to_owned());
    }
    Ok(user)
}

async fn allowed(shared: &Shared, caller: &UserInfo, resource: &str, name: &str) -> Result<(), Status> {
    ask(shared, caller, resource, None, None, name).await
}

async fn ask(
    shared: &Shared,
    caller: &UserInfo,
    resource: &str,
    subresource: Option<&str>,
    namespace: Option<&str>,
    name: &str,
) -> Result<(), Status> {
    let extra = resource == "uids" || resource == "userextras";
    let ask = AuthorizationRequest {
        user: caller,
        verb: "impersonate",
        is_resource: true,
        group: if extra { "authentication.k8s.io" } else { "" },
        version: "v1",
        resource,
        subresource,
        namespace,
        name: Some(name),
        path: "",
    };
    match shared.authorizer.authorize(&ask).await {
        Decision::Allow => Ok(()),
        Decision::Deny { reason } => Err(super::forbidden(&ask, &reason)),
    }
}
