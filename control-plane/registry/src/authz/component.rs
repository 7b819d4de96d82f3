//! The identities of what runs inside the server: what Kubernetes calls them, so that its default roles fit.

use coracle_apiserver::UserInfo;

use serde_json::Value;

use crate::authn::service_account;
use crate::value::{items, text};

/// Who lists and watches for all controllers.
pub const INFORMERS: &str = "shared-informers";

/// The user as which a controller of this name calls: the service account of that name in `kube-system`. The shared
/// informers are the controller manager itself.
pub fn controller(name: &str) -> UserInfo {
    if name == INFORMERS {
        return UserInfo::new("system:kube-controller-manager", &[]);
    }
    service_account::account("kube-system", name)
}

/// The user as which the scheduler calls.
pub fn scheduler() -> UserInfo {
    UserInfo::new("system:kube-scheduler", &[])
}

/// The default roles that are bound to a controller's user; none means that it may do nothing but read what everyone may.
pub fn roles(name: &str) -> Vec<String> {
    let user = controller(name).name;
    let names = |subject: &Value| match text(subject, "/kind") {
        "ServiceAccount" => {
            service_account::account(text(subject, "/namespace"), text(subject, "/name")).name == user
        }
        "User" => text(subject, "/name") == user,
        _ => false,
    };
    let bindings = super::defaults::all().into_iter().filter(|b| items(b, "/subjects").iter().any(names));
    bindings.map(|binding| text(&binding, "/roleRef/name").to_owned()).collect()
}
