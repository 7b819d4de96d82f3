//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::logs;
use crate::pods::state::{Container, find_container};
use crate::runtime::label;

/// Answers with the log as plain text.
pub async fn get(
    State(shared): State<Shared>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    match answer(shared, &namespace, &name, &container, &query).await {
        Ok(body) => ([("Content-Type", "text/plain")], body).into_response(),
        Err((code, message)) => (code, message).into_response(),
    }
}

type Refusal = (StatusCode, String);

async fn answer(
    shared: Shared,
    namespace: &str,
    name: &str,
    container: &str,
    query: &HashMap<String, String>,
) -> Result<Body, Refusal> {
    let wanted = parse(query).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
    let previous = flag(query, "previous");
    let pod = shared.pods.find(namespace, name);
    let pod = pod.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{name}\" not found\n")))?;
    if find_container(&pod, container).is_none() {
        return Err((StatusCode::NOT_FOUND, format!("container {container} not found in pod {name}\n")));
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let state = shared.context.runtime.pod_state(&uid).await;
    let state = state.map_err(|e| {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the runtime does not answer: {}\n", e.message()))
    })?;
    let found = if previous { state.by_id(last_ended(&pod, container)) } else { state.newest(container) };
    let found = match (found, previous) {
        (Some(found), _) => found.clone(),
        (None, true) => {
            let message =
                format!("previous terminated container \"{container}\" in pod \"{name}\" not found\n");
            return Err((StatusCode::BAD_REQUEST, message));
        }
        (None, false) => return Err((StatusCode::BAD_REQUEST, waiting(&pod, name, container))),
    };
    let path = log_path(&shared.context, &pod, &found);
    if !wanted.follow && !path.exists() {
        return Err((
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("failed to open the log of container {container}\n"),
        ));
    }
    let (out, lines) = tokio::sync::mpsc::channel(64);
    let context = shared.context.clone();
    let alive = move || is_running(context.clone(), uid.clone(), found.id.clone());
    tokio::spawn(logs::stream(path, wanted, alive, out));
    Ok(Body::from_stream(ReceiverStream::new(lines)))
}

fn log_path(context: &Context, pod: &Pod, container: &Container) -> PathBuf {
    if container.log_path.starts_with('/') {
        return PathBuf::from(&container.log_path);
    }
    context.log_directory(pod).join(&container.name).join(format!("{}.log", container.attempt))
}

/// The container that `kubectl logs --previous` means: the one that the status names in `lastState.terminated`.
fn last_ended<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let last = all
        .filter(|one| one.name == container)
        .find_map(|one| one.last_state.as_ref()?.terminated.as_ref())?;
    Some(last.container_id.as_deref()?.rsplit('/').next().unwrap_or_default())
}

/// Why there is no log yet, in the API's words.
fn waiting(pod: &Pod, name: &str, container: &str) -> String {
    let status = pod.status.iter().flat_map(|s| {
        s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten())
    });
    let mut matching = status.filter(|s| s.name == container);
    let reason = matching.find_map(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let why = match reason.as_deref() {
        None => "not available".to_owned(),
        Some(reason @ ("ErrImagePull" | "ImagePullBackOff")) => {
            return format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: trying and failing to pull image ({reason})\n"
            );
        }
        Some(reason) => reason.to_owned(),
    };
    format!("container \"{container}\" in pod \"{name}\" is waiting to start: {why}\n")
}

async fn is_running(context: Arc<Context>, uid: String, id: String) -> bool {
    let labels = HashMap::from([(label::POD_UID.to_owned(), uid)]);
    match context.runtime.containers(labels).await {
        Ok(containers) => containers.iter().any(|c| c.id == id && c.state == 1),
        // A runtime that is being restarted keeps its containers.
        Err(_) => true,
    }
}

fn flag(query: &HashMap<String, String>, name: &str) -> bool {
    query.get(name).is_some_and(|v| v == "true" || v == "1")
}

fn parse(query: &HashMap<String, String>) -> Result<logs::Query, String> {
    let number = |name: &str| -> Result<Option<u64>, String> {
        let text = query.get(name).filter(|t| !t.is_empty());
        text.map(|t| t.parse().map_err(|_| format!("invalid value {t:?} of {name}\n"))).transpose()
    };
    let since = match (query.get("sinceTime").filter(|t| !t.is_empty()), number("sinceSeconds")?) {
        (Some(text), _) => {
            Some(text.parse::<Timestamp>().map_err(|_| format!("invalid value {text:?} of sinceTime\n"))?)
        }
        (None, Some(seconds)) => {
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            Some(Timestamp::now().saturating_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH))
        }
        (None, None) => None,
    };
    Ok(logs::Query {
        follow: flag(query, "follow"),
        tail: number("tailLines")?,
        since,
        timestamps: flag(query, "timestamps"),
        limit: number("limitBytes")?,
    })
}
