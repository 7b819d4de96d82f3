//! What the autoscaler follows: the readings of every revision, as lines of JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures::stream;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Interval;

use crate::forward::State;
pub use crate::meters::{Reading, RevisionKey};

/// The path under the node API.
pub const PATH: &str = "/gateway/demand";
/// Between two lines, unless a request begins to wait.
pub const PERIOD: Duration = Duration::from_secs(1);

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub revisions: Vec<Reading>,
}

pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new().route(PATH, get(follow)).with_state(state)
}

struct Lines {
    state: Arc<State>,
    held: watch::Receiver<u64>,
    ticks: Interval,
}

async fn follow(Shared(state): Shared<Arc<State>>) -> Response {
    let lines = Lines { held: state.meters.held(), state, ticks: tokio::time::interval(PERIOD) };
    let lines = stream::unfold(lines, |mut lines| async move {
        tokio::select! {
            _ = lines.ticks.tick() => {}
            changed = lines.held.changed() => changed.ok()?,
        }
        let mut line = serde_json::to_vec(&Report { revisions: lines.state.meters.read() }).ok()?;
        line.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), lines))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/x-ndjson"));
    response
}
