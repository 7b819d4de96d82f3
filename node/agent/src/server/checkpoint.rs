//! `/checkpoint`: the runtime writes what a container is to a file of this node.

use axum::extract::RawQuery;
use axum::response::{IntoResponse, Response};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::pods::state::Phase;
use crate::volumes::is_component;

/// What the runtime has for it when the caller does not say, in seconds.
const SECONDS: i64 = 300;
/// The most that it has, whatever the caller says: the runtime gives no checkpoint more.
const MOST_SECONDS: i64 = 3600;

fn refused(code: StatusCode, words: impl Into<String>) -> Response {
    (code, words.into() + "\n").into_response()
}

fn timeout(query: Option<&str>) -> Result<i64, String> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| key == "timeout") {
        None => Ok(0),
        Some((_, text)) => match text.parse::<i64>() {
            Ok(seconds) if seconds >= 0 => Ok(seconds.min(MOST_SECONDS)),
            _ => Err("cannot parse value of timeout parameter".to_owned()),
        },
    }
}

/// Writes a checkpoint of a running container, and answers where it is.
pub async fn post(
    State(shared): State<Shared>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let seconds = match timeout(query.as_deref()) {
        Ok(seconds) => seconds,
        Err(words) => return refused(StatusCode::BAD_REQUEST, words),
    };
    let context = &shared.context;
    let Some(pod) = shared.pods.find(&namespace, &name) else {
        return refused(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let state = match context.runtime.pod_state(&uid).await {
        Ok(state) => state,
        Err(status) => return refused(StatusCode::INTERNAL_SERVER_ERROR, status.message()),
    };
    let found = state.newest(&container).filter(|c| c.phase == Phase::Running);
    let Some(found) = found.filter(|_| [&namespace, &name, &container].iter().all(|part| is_component(part)))
    else {
        return refused(StatusCode::NOT_FOUND, format!("container {container} does not exist"));
    };
    let failed = |why: String| {
        let words = format!("checkpointing of {namespace}/{name}/{container} failed ({why})");
        refused(StatusCode::INTERNAL_SERVER_ERROR, words)
    };
    let folder = context.root.join("checkpoints");
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    if let Err(error) = builder.create(&folder) {
        return failed(format!("create {}: {error}", folder.display()));
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    let location = folder.join(format!("checkpoint-{name}_{namespace}-{container}-{now}.tar"));
    let location = location.display().to_string();
    let limit = if seconds > 0 { seconds } else { SECONDS };
    match context.runtime.checkpoint(&found.id, &location, limit).await {
        Ok(()) => axum::Json(json!({"items": [location]})).into_response(),
        Err(status) => failed(crate::pods::steps::container::words(&status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds() {
        assert_eq!((timeout(None), timeout(Some("x=1")), timeout(Some("timeout=7"))), (Ok(0), Ok(0), Ok(7)));
        assert_eq!(timeout(Some("timeout=9223372036854775807")), Ok(3600));
        assert!(timeout(Some("timeout=soon")).is_err() && timeout(Some("timeout=-1")).is_err());
    }
}
