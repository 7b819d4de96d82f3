//! The identities of what runs inside the server: what Kubernetes calls them, so that its default roles fit.

use coracle_apiserver::UserInfo;

use crate::authn::service_account;

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
