//! What a server offers about the cluster itself, below `/coracle`: joining, its members, snapshots.
//!
//! The authorizer has allowed the call: joining to all, for the secret is what counts; the rest to administrators.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use coracle_store::Store;
use http::StatusCode;
use serde_json::json;

use super::archive;
use super::join::{self, Answer, Ask};
use super::membership::{Membership, read_keys};

/// What the calls work on.
pub struct Admin {
    /// The state.
    pub store: Store,
    /// This server's part in the cluster.
    pub membership: Membership,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// The authority's certificate.
    pub ca_pem: String,
}

type Answered = Result<Response, Response>;

/// The calls, with whole paths.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/coracle/join", post(let_in))
        .route("/coracle/join-token", post(new_token))
        .route("/coracle/members", get(members))
        .route("/coracle/members/{id}", delete(remove))
        .route("/coracle/snapshot", get(snapshot))
        .with_state(Arc::new(admin))
}

fn failed(error: impl Into<anyhow::Error>) -> Response {
    let error: anyhow::Error = error.into();
    let code = match error.downcast_ref::<coracle_store::Error>() {
        Some(coracle_store::Error::Invalid(_)) => StatusCode::UNPROCESSABLE_ENTITY,
        Some(coracle_store::Error::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Some(coracle_store::Error::Timeout(_)) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(code, &format!("{error:#}"))
}

/// In the form of the API's own errors, which clients show.
fn refuse(code: StatusCode, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""),
        "code": code.as_u16(),
    });
    (code, Json(status)).into_response()
}

async fn let_in(State(admin): State<Arc<Admin>>, Json(ask): Json<Ask>) -> Answered {
    if !join::admits(&admin.store, &ask).await.map_err(failed)? {
        return Err(refuse(
            StatusCode::UNAUTHORIZED,
            "the token is not, or no longer, the cluster's join token",
        ));
    }
    let member = join::next_member(&admin.store).await.map_err(failed)?;
    let known = admin.store.members().into_iter().map(|member| (member.id, member.address)).collect();
    let membership = Membership { member, join: known, ..admin.membership.clone() };
    let keys = read_keys(&admin.data_dir.join("pki")).map_err(failed)?;
    tracing::info!(member, "a server joins");
    Ok(Json(Answer::new(membership, keys)).into_response())
}

async fn new_token(State(admin): State<Arc<Admin>>) -> Answered {
    match join::renew(&admin.store, &admin.ca_pem, false).await.map_err(failed)? {
        Some(token) => Ok(Json(json!({"token": token.to_string()})).into_response()),
        None => Err(refuse(StatusCode::CONFLICT, "another token is being made")),
    }
}

async fn members(State(admin): State<Arc<Admin>>) -> Answered {
    admin.store.linearizable().await.map_err(failed)?;
    Ok(Json(json!({"members": admin.store.members()})).into_response())
}

async fn remove(State(admin): State<Arc<Admin>>, Path(id): Path<u64>) -> Answered {
    admin.store.remove_member(id).await.map_err(failed)?;
    Ok(Json(json!({"removed": id})).into_response())
}

async fn snapshot(State(admin): State<Arc<Admin>>) -> Answered {
    admin.store.linearizable().await.map_err(failed)?;
    let keys = read_keys(&admin.data_dir.join("pki")).map_err(failed)?;
    let folder = tempfile::tempdir_in(&admin.data_dir).map_err(failed)?;
    let state = folder.path().join("state");
    admin.store.save_snapshot(&state).await.map_err(failed)?;
    let (length, stream) = archive::stream(&admin.membership, &keys, folder, &state).await.map_err(failed)?;
    let headers =
        [("content-type", "application/octet-stream".to_owned()), ("content-length", length.to_string())];
    Ok((headers, Body::from_stream(stream)).into_response())
}
