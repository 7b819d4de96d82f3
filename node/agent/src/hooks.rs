//! Lifecycle hooks of containers: `postStart` and `preStop`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{HTTPGetAction, LifecycleHandler};

use crate::probes::check::http::{self, Failure};
use crate::probes::check::{self, Target};

/// Runs a hook to its end, for so long at most.
///
/// # Errors
/// What went wrong, for people.
pub async fn run(hook: &LifecycleHandler, target: &Target<'_>, limit: Duration) -> Result<(), String> {
    let run = async {
        if let Some(exec) = &hook.exec {
            check::exec(exec.command.as_deref().unwrap_or_default(), target, limit).await
        } else if let Some(get) = &hook.http_get {
            asked(get, target).await
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            Ok(())
        } else if hook.tcp_socket.is_some() {
            // Kubernetes keeps the field and never acts on it.
            Err("tcpSocket hooks do nothing; use exec, httpGet or sleep".to_owned())
        } else {
            Err("the hook says neither exec, httpGet nor sleep".to_owned())
        }
    };
    match tokio::time::timeout(limit, run).await {
        Ok(done) => done,
        Err(_) => Err(format!("not done within {limit:?}")),
    }
}

/// A hook that GETs a page is done when there is an answer, whatever it is: the kubelet looks at no status. What is asked by
/// TLS and answers without is asked again without, as it is there too.
async fn asked(get: &HTTPGetAction, target: &Target<'_>) -> Result<(), String> {
    match http::get(get, target, "lifecycle").await {
        Err(Failure::Plain(_)) => http::get_plain(get, target, "lifecycle").await,
        answer => answer,
    }?;
    Ok(())
}
