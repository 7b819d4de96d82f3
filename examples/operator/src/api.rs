//! The Kubernetes API as a pod's service account.

use std::fmt;

use serde_json::Value;
use wstd::http::{Body, BodyExt, Client, Method, Request};

const SERVER: &str = "https://kubernetes.default.svc";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why a call failed.
#[derive(Debug)]
pub struct Error {
    /// The HTTP status; 0 where there was no answer.
    pub code: u16,
    words: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.words, self.code)
    }
}

fn failed(what: impl fmt::Debug) -> Error {
    let words =
        format!("{what:?}").lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    Error { code: 0, words }
}

/// A client.
pub struct Api {
    client: Client,
}

impl Api {
    /// The API server of the cluster that the pod is in. The runtime trusts the authority in the account's volume.
    pub fn in_cluster() -> Self {
        Self { client: Client::new() }
    }

    /// An object or a list.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::GET, path, "", None).await
    }

    /// Makes an object; one that exists stays as it is.
    pub async fn create(&self, path: &str, object: &Value) -> Result<(), Error> {
        match self.call(Method::POST, path, "application/json", Some(object)).await {
            Err(error) if error.code != 409 => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes an object what it should be, as far as this operator owns it.
    pub async fn apply(&self, path: &str, manager: &str, object: &Value) -> Result<Value, Error> {
        let path = format!("{path}?fieldManager={manager}&force=true");
        self.call(Method::PATCH, &path, "application/apply-patch+yaml", Some(object)).await
    }

    /// Changes what the patch names.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value, Error> {
        self.call(Method::PATCH, path, "application/merge-patch+json", Some(patch)).await
    }

    /// Deletes an object; one that is gone is no error.
    pub async fn delete(&self, path: &str) -> Result<(), Error> {
        match self.call(Method::DELETE, path, "", None).await {
            Err(error) if error.code != 404 => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns at the first change after a revision, or after some seconds.
    pub async fn changed(&self, path: &str, revision: &str, seconds: u32) -> Result<(), Error> {
        let path = format!("{path}?watch=true&resourceVersion={revision}&timeoutSeconds={seconds}");
        let response = self.client.send(request(Method::GET, &path, "", None)?).await.map_err(failed)?;
        // The first bytes of the stream are an event; its end is the end of the wait.
        let mut body = response.into_body().into_boxed_body();
        match body.frame().await {
            Some(Err(error)) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let response = self.client.send(request(method, path, kind, body)?).await.map_err(failed)?;
        let code = response.status().as_u16();
        let mut body = response.into_body();
        let bytes = body.contents().await.map_err(failed)?;
        let value: Value = serde_json::from_slice(bytes).map_err(failed)?;
        if code >= 300 {
            return Err(Error { code, words: value["message"].as_str().unwrap_or("no message").to_owned() });
        }
        Ok(value)
    }
}

fn request(method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Request<Body>, Error> {
    // Read each time: the agent renews it.
    let token = std::fs::read_to_string(TOKEN).map_err(failed)?;
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{SERVER}{path}"))
        .header("authorization", format!("Bearer {}", token.trim()))
        .header("user-agent", "operator/0.1")
        .header("accept", "application/json");
    if !kind.is_empty() {
        request = request.header("content-type", kind);
    }
    let body = body.map_or_else(Body::empty, |value| Body::from(value.to_string()));
    request.body(body).map_err(failed)
}
