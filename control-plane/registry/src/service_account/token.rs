//! `serviceaccounts/token`: a token for an account, bound to a pod or a Secret, for an audience and for a time.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::{GroupResource, Gvk};
use coracle_api::schema::{Input, Validation, apply_defaults, decode, for_gvk};
use coracle_api::status::Status;
use coracle_api::{meta, time};
use coracle_apiserver::{Objects, RequestContext, SubresourceHandler, SubresourceRequest};
use http::{Response, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::authn::service_account::{Claims, Named, Private, ServiceAccountTokens, uid};
use crate::authn::{ISSUER, service_account};
use crate::authz::node::node_of;
use crate::subresource::existing;
use crate::value::{items, maybe_number, object, present, set, text};

/// What is asked for where nothing is said, in seconds.
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
/// 2^32 seconds, Kubernetes' bound on what may be asked for; what is given is at most [`MAX_GIVEN`].
const MAX_SECONDS: i64 = 1 << 32;
/// The longest life of a token, in seconds.
const MAX_GIVEN: i64 = 365 * 24 * 3600;

/// Serves `serviceaccounts/token`.
pub struct TokenRequests {
    /// Signs.
    pub tokens: Arc<ServiceAccountTokens>,
}

#[async_trait::async_trait]
impl SubresourceHandler for TokenRequests {
    async fn handle(&self, request: SubresourceRequest) -> Result<Response<axum::body::Body>, Status> {
        let cx = request.context;
        let bytes = coracle_apiserver::body::read(request.http.into_body()).await?;
        let gvk = Gvk::new("authentication.k8s.io", "v1", "TokenRequest");
        let mut wanted = decode(&gvk, Input::Json(&bytes), Validation::Warn)?.object;
        if let Some(ty) = for_gvk(&gvk) {
            apply_defaults(ty, &mut wanted);
        }
        let answer = self.issue(&request.objects, &cx, wanted, &gvk).await?;
        let mut response = Response::new(answer.to_string().into());
        *response.status_mut() = StatusCode::CREATED;
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        Ok(response)
    }
}

impl TokenRequests {
    async fn issue(
        &self,
        objects: &Objects,
        cx: &RequestContext,
        mut wanted: Value,
        gvk: &Gvk,
    ) -> Result<Value, Status> {
        let (name, namespace) =
            (cx.name.as_deref().unwrap_or_default(), cx.namespace.as_deref().unwrap_or_default());
        let account = existing(objects, "", "serviceaccounts", Some(namespace), name).await?;
        let Some(spec) = object(&mut wanted, "spec") else {
            return Err(Status::bad_request("spec is not an object"));
        };
        complete(spec);
        let errors = check(spec);
        if !errors.is_empty() {
            return Err(Status::invalid(gvk, "", errors));
        }
        let mut private = Private {
            namespace: namespace.to_owned(),
            serviceaccount: Named { name: name.to_owned(), uid: uid(&account) },
            ..Private::default()
        };
        bind(objects, &mut private, spec).await?;
        if let Some(node) = node_of(&cx.user)
            && private.node.as_ref().is_none_or(|n| n.name != node)
        {
            let gr = GroupResource::new("", "serviceaccounts");
            let why = format!("node {node:?} may ask only for tokens that are bound to a pod on it");
            return Err(Status::forbidden(&gr, name, why));
        }
        let seconds = maybe_number(spec, "/expirationSeconds").unwrap_or(DEFAULT_SECONDS).min(MAX_GIVEN);
        let end = cx.now.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        let claims = Claims {
            aud: items(spec, "/audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            exp: end.as_second(),
            iat: cx.now.as_second(),
            iss: ISSUER.to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: service_account::account(namespace, name).name,
            nbf: cx.now.as_second(),
            kubernetes: private,
        };
        let token = self.tokens.key().sign(&claims).map_err(Status::internal)?;
        set(spec, "expirationSeconds", seconds);
        let spec = spec.clone();
        Ok(json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid(&account),
                "creationTimestamp": time::seconds(cx.now),
            },
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": time::seconds(end)},
        }))
    }
}

fn complete(spec: &mut Value) {
    if items(spec, "/audiences").is_empty() {
        set(spec, "audiences", json!([ISSUER]));
    }
    if !present(spec, "/expirationSeconds") {
        set(spec, "expirationSeconds", DEFAULT_SECONDS);
    }
    if !present(spec, "/boundObjectRef") {
        set(spec, "boundObjectRef", Value::Null);
    }
}

fn check(spec: &Value) -> Vec<Error> {
    let path = Path::new("spec").child("expirationSeconds");
    let seconds = maybe_number(spec, "/expirationSeconds").unwrap_or_default();
    let wrong = |words: &'static str| vec![Error::invalid(&path, seconds, words)];
    match seconds {
        s if s < MIN_SECONDS => wrong("may not specify a duration less than 10 minutes"),
        s if s > MAX_SECONDS => wrong("may not specify a duration larger than 2^32 seconds"),
        _ => Vec::new(),
    }
}

/// Binds the claims to the object that the request names.
async fn bind(objects: &Objects, private: &mut Private, spec: &Value) -> Result<(), Status> {
    if !present(spec, "/boundObjectRef") {
        return Ok(());
    }
    let namespace = private.namespace.clone();
    let reference = |field: &str| text(spec, &format!("/boundObjectRef/{field}")).to_owned();
    let (name, wanted) = (reference("name"), reference("uid"));
    let plural = match (reference("apiVersion").as_str(), reference("kind").as_str()) {
        ("v1", "Pod") => "pods",
        ("v1", "Secret") => "secrets",
        (api, kind) => {
            let words = format!("cannot bind token to object of type {api}, Kind={kind}");
            return Err(Status::bad_request(words));
        }
    };
    let found = existing(objects, "", plural, Some(&namespace), &name).await?;
    let gr = GroupResource::new("", plural);
    let has = uid(&found);
    if !wanted.is_empty() && wanted != has {
        let words = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&gr, &name, &words));
    }
    let bound = Named { name: name.clone(), uid: has };
    if plural == "secrets" {
        private.secret = Some(bound);
        return Ok(());
    }
    let account = &private.serviceaccount.name;
    if text(&found, "/spec/serviceAccountName") != account {
        let words = format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        );
        return Err(Status::bad_request(words));
    }
    if let Some(node) = Some(text(&found, "/spec/nodeName")).filter(|n| !n.is_empty()) {
        // A Node that is gone has no uid.
        let found = objects.get("", "nodes", None, node).await?;
        private.node = Some(Named {
            name: node.to_owned(),
            uid: found.as_ref().and_then(meta::uid).unwrap_or_default().to_owned(),
        });
    }
    private.pod = Some(bound);
    Ok(())
}
