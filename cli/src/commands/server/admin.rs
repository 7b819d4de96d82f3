//! What a server offers about the cluster itself, below `/coracle`: joining, its members, snapshots.
//!
//! The authorizer has allowed the call: joining to all, for the secret is what counts; the rest to administrators.

use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use coracle_store::Store;
use http::StatusCode;
use serde_json::json;

use super::archive::Source;
use super::join::{self, Answer, Ask};
use super::membership::{Membership, read_keys};

/// What the calls work on.
pub struct Admin {
    /// The state, and whose it is.
    pub source: Source,
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
        .route("/coracle/status", get(status))
        .route("/coracle/compact", post(compact))
        .route("/coracle/defragment/{id}", post(defragment))
        .with_state(Arc::new(admin))
}

/// What a member asks of another; the store is there as soon as it is open.
pub fn member_router(store: Arc<OnceLock<Store>>) -> Router {
    Router::new()
        .route(OWN_STATUS, get(own_status))
        .route(OWN_DEFRAGMENT, post(own_defragment))
        .with_state(store)
}

const OWN_STATUS: &str = "/coracle/own/status";
const OWN_DEFRAGMENT: &str = "/coracle/own/defragment";

type Own = State<Arc<OnceLock<Store>>>;

fn own(store: &OnceLock<Store>) -> Result<&Store> {
    store.get().context("the store is not open yet")
}

async fn own_status(State(store): Own) -> Answered {
    Ok(Json(own(&store).map_err(failed)?.status()).into_response())
}

async fn own_defragment(State(store): Own) -> Answered {
    let (before, after) = own(&store).map_err(failed)?.defragment().await.map_err(failed)?;
    Ok(Json(json!({"before": before, "after": after})).into_response())
}

/// All members, each as it sees itself; of one that does not answer, why.
async fn status(State(admin): State<Arc<Admin>>) -> Answered {
    let asked = admin.source.store.members().into_iter().map(|member| {
        let admin = admin.clone();
        async move {
            let status = match member.id == admin.source.membership.member {
                true => serde_json::to_value(admin.source.store.status()).map_err(anyhow::Error::from),
                false => {
                    let asked = admin.source.store.ask_member(member.id, http::Method::GET, OWN_STATUS).await;
                    asked.map_err(anyhow::Error::from).and_then(|body| Ok(serde_json::from_slice(&body)?))
                }
            };
            match status {
                Ok(status) => json!({"id": member.id, "address": member.address, "voter": member.voter, "status": status}),
                Err(error) => {
                    let error = format!("{error:#}");
                    json!({"id": member.id, "address": member.address, "voter": member.voter, "error": error})
                }
            }
        }
    });
    let members = futures::future::join_all(asked).await;
    Ok(Json(json!({"cluster": admin.source.membership.cluster, "members": members})).into_response())
}

#[derive(serde::Deserialize)]
struct Compaction {
    /// None: to the newest revision.
    revision: Option<u64>,
}

async fn compact(State(admin): State<Arc<Admin>>, Query(asked): Query<Compaction>) -> Answered {
    admin.source.store.linearizable().await.map_err(failed)?;
    let revision = asked.revision.unwrap_or_else(|| admin.source.store.revision());
    admin.source.store.compact(revision).await.map_err(failed)?;
    Ok(Json(json!({"revision": revision})).into_response())
}

async fn defragment(State(admin): State<Arc<Admin>>, Path(id): Path<u64>) -> Answered {
    if id == admin.source.membership.member {
        let (before, after) = admin.source.store.defragment().await.map_err(failed)?;
        return Ok(Json(json!({"before": before, "after": after})).into_response());
    }
    let asked =
        admin.source.store.ask_member(id, http::Method::POST, OWN_DEFRAGMENT).await.map_err(failed)?;
    Ok(([("content-type", "application/json")], asked).into_response())
}

fn failed(error: impl Into<anyhow::Error>) -> Response {
    let error: anyhow::Error = error.into();
    let code = match error.downcast_ref::<coracle_store::Error>() {
        Some(coracle_store::Error::Invalid(_) | coracle_store::Error::FutureRevision { .. }) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
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
    if !join::admits(&admin.source.store, &ask).await.map_err(failed)? {
        return Err(refuse(
            StatusCode::UNAUTHORIZED,
            "the token is not, or no longer, the cluster's join token",
        ));
    }
    let member = join::next_member(&admin.source.store).await.map_err(failed)?;
    let known = admin.source.store.members().into_iter().map(|member| (member.id, member.address)).collect();
    let membership = Membership { member, join: known, ..admin.source.membership.clone() };
    let keys = read_keys(&admin.source.data_dir.join("pki")).map_err(failed)?;
    tracing::info!(member, "a server joins");
    Ok(Json(Answer::new(membership, keys)).into_response())
}

async fn new_token(State(admin): State<Arc<Admin>>) -> Answered {
    match join::renew(&admin.source.store, &admin.ca_pem, false).await.map_err(failed)? {
        Some(token) => Ok(Json(json!({"token": token.to_string()})).into_response()),
        None => Err(refuse(StatusCode::CONFLICT, "another token is being made")),
    }
}

async fn members(State(admin): State<Arc<Admin>>) -> Answered {
    admin.source.store.linearizable().await.map_err(failed)?;
    Ok(Json(json!({"members": admin.source.store.members()})).into_response())
}

async fn remove(State(admin): State<Arc<Admin>>, Path(id): Path<u64>) -> Answered {
    admin.source.store.remove_member(id).await.map_err(failed)?;
    Ok(Json(json!({"removed": id})).into_response())
}

async fn snapshot(State(admin): State<Arc<Admin>>) -> Answered {
    let (length, stream) = admin.source.snapshot().await.map_err(failed)?;
    let headers =
        [("content-type", "application/octet-stream".to_owned()), ("content-length", length.to_string())];
    Ok((headers, Body::from_stream(stream)).into_response())
}
