//! Lifecycle hooks of containers: `postStart` and `preStop`.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;

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
            check::http(get, target).await
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
