//! Writes to the API by path, with JSON bodies, so that a controller never has to hold the whole of what it changes.

use http::{Method, Request};
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

/// What is read of an answer.
#[derive(Debug, Default, Deserialize)]
pub struct Written {
    /// Metadata of the object as it is now.
    #[serde(default)]
    pub metadata: WrittenMeta,
}

/// Identity and version of a written object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WrittenMeta {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

/// What a write may answer.
pub type Result<T> = std::result::Result<T, kube::Error>;

/// The path of an object, or of a collection when `name` is empty. An empty namespace means none.
pub fn path<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> String {
    let mut path = K::url_path(&(), Some(namespace).filter(|n| !n.is_empty()));
    if !name.is_empty() {
        path.push('/');
        path.push_str(name);
    }
    path
}

/// How to delete.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delete<'a> {
    /// Only if it is still this object.
    pub uid: Option<&'a str>,
    /// Only if it has not changed since.
    pub resource_version: Option<&'a str>,
    /// `Background`, `Foreground` or `Orphan`; the server's default when absent.
    pub propagation: Option<&'a str>,
    /// Seconds; 0 is at once.
    pub grace: Option<i64>,
}

/// Writes under one identity.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

impl Writer {
    /// Writes through this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client, for reads.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Creates an object in a collection, or posts to a subresource.
    pub async fn create(&self, path: &str, body: &Value) -> Result<Written> {
        self.call(Method::POST, path, "application/json", body).await
    }

    /// Replaces an object.
    pub async fn replace(&self, path: &str, body: &Value) -> Result<Written> {
        self.call(Method::PUT, path, "application/json", body).await
    }

    /// Changes an object by a JSON merge patch (RFC 7386).
    pub async fn merge(&self, path: &str, body: &Value) -> Result<Written> {
        self.call(Method::PATCH, path, "application/merge-patch+json", body).await
    }

    /// Changes an object by a strategic merge patch.
    pub async fn strategic(&self, path: &str, body: &Value) -> Result<Written> {
        self.call(Method::PATCH, path, "application/strategic-merge-patch+json", body).await
    }

    /// Writes an object's status, if it is still what was read. An object that is gone is a success.
    pub async fn status<K: Resource<DynamicType = ()>>(&self, object: &K, status: Value) -> Result<()> {
        let meta = object.meta();
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let path = format!("{}/status", path::<K>(namespace.unwrap_or_default(), name.unwrap_or_default()));
        let body = json!({
            "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version }, "status": status,
        });
        match self.merge(&path, &body).await {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Deletes an object or, on a collection's path, all in it. An object that is gone already is a success.
    pub async fn delete(&self, path: &str, how: Delete<'_>) -> Result<()> {
        let mut body = json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
        if how.uid.is_some() || how.resource_version.is_some() {
            body["preconditions"] = json!({});
        }
        if let Some(uid) = how.uid {
            body["preconditions"]["uid"] = uid.into();
        }
        if let Some(version) = how.resource_version {
            body["preconditions"]["resourceVersion"] = version.into();
        }
        if let Some(propagation) = how.propagation {
            body["propagationPolicy"] = propagation.into();
        }
        if let Some(grace) = how.grace {
            body["gracePeriodSeconds"] = grace.into();
        }
        let request = Request::delete(path)
            .header("content-type", "application/json")
            .body(body.to_string().into_bytes());
        match self.client.request_text(request.map_err(kube::Error::HttpError)?).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Posts JSON to something whose answer need not be JSON, such as a proxy.
    pub async fn post_text(&self, path: &str, body: &Value) -> Result<String> {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await
    }

    /// Reads JSON.
    pub async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    async fn call(&self, method: Method, path: &str, content_type: &str, body: &Value) -> Result<Written> {
        let request = Request::builder().method(method).uri(path).header("content-type", content_type);
        let request = request.body(body.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn reason(error: &kube::Error) -> &str {
    match error {
        kube::Error::Api(status) => &status.reason,
        _ => "",
    }
}

/// The object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// Somebody else was faster: a version, a uid or a name is not as it was.
pub fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// The name is taken.
pub fn is_already_exists(error: &kube::Error) -> bool {
    reason(error) == "AlreadyExists"
}

/// The namespace is going away, so nothing new may be made in it.
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => {
            let causes = status.details.as_ref().map(|d| d.causes.as_slice()).unwrap_or_default();
            status.code == 403 && causes.iter().any(|c| c.reason == "NamespaceTerminating")
        }
        _ => false,
    }
}

/// An API error in its own words, for Events and conditions.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
