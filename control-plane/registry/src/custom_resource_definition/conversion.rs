//! Conversion between the versions of a custom kind by a webhook.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::Gvk;
use coracle_api::status::Status;
use coracle_apiserver::webhook::{Place, WebhookClient};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::value::{at, items, set, text};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Most objects that are kept converted, for each version that is served.
const KEPT_MAX: usize = 4096;

/// The webhook of a definition.
pub(super) struct Conversion {
    client: Arc<WebhookClient>,
    place: Result<Place, String>,
    review: String,
    kind: String,
    group: String,
    /// Converted objects by uid and revision: what is stored does not change under a revision.
    kept: Mutex<HashMap<(String, String), Arc<Value>>>,
}

impl Conversion {
    /// The webhook that a definition names, if it names one.
    pub fn of(definition: &Value, client: &Arc<WebhookClient>) -> Option<Self> {
        let conversion = at(definition, "/spec/conversion");
        if text(conversion, "/strategy") != "Webhook" {
            return None;
        }
        let webhook = at(conversion, "/webhook");
        let versions = items(webhook, "/conversionReviewVersions").iter().filter_map(Value::as_str);
        let version = versions.into_iter().find(|v| matches!(*v, "v1" | "v1beta1")).unwrap_or("v1");
        Some(Self {
            client: client.clone(),
            place: Place::of(at(webhook, "/clientConfig")),
            review: format!("apiextensions.k8s.io/{version}"),
            kind: text(definition, "/spec/names/kind").to_owned(),
            group: text(definition, "/spec/group").to_owned(),
            kept: Mutex::default(),
        })
    }

    fn gvk(&self, api_version: &str) -> Gvk {
        let version = api_version.rsplit('/').next().unwrap_or_default();
        Gvk::new(self.group.as_str(), version, self.kind.as_str())
    }

    fn failed(&self, from: &str, why: impl std::fmt::Display) -> Status {
        Status::plain(format!("conversion webhook for {} failed: {why}", self.gvk(from)))
    }

    /// Converts one object, which is kept for later where it is a stored one.
    pub fn one(&self, obj: &mut Value, to: &str, stored: bool) -> Result<(), Status> {
        let key = key(obj).filter(|_| stored);
        if let Some(found) = key.as_ref().and_then(|key| self.kept.lock().get(key).cloned()) {
            *obj = found.as_ref().clone();
            return Ok(());
        }
        let mut converted = self.all(vec![obj.take()], to)?;
        *obj = converted.pop().unwrap_or_default();
        if let Some(key) = key {
            self.keep(key, obj);
        }
        Ok(())
    }

    /// Converts stored objects in one call, and keeps what became of them.
    pub fn prepare(&self, stored: Vec<Value>, to: &str) -> Result<(), Status> {
        let mut by_version: HashMap<String, Vec<Value>> = HashMap::new();
        {
            let kept = self.kept.lock();
            for obj in stored {
                let from = text(&obj, "/apiVersion");
                if from != to && key(&obj).is_none_or(|key| !kept.contains_key(&key)) {
                    by_version.entry(from.to_owned()).or_default().push(obj);
                }
            }
        }
        for objects in by_version.into_values() {
            for converted in self.all(objects, to)? {
                if let Some(key) = key(&converted) {
                    self.keep(key, &converted);
                }
            }
        }
        Ok(())
    }

    fn keep(&self, key: (String, String), obj: &Value) {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(key, Arc::new(obj.clone()));
    }

    /// Converts objects of one version.
    fn all(&self, objects: Vec<Value>, to: &str) -> Result<Vec<Value>, Status> {
        let from = objects.first().map(|o| text(o, "/apiVersion").to_owned()).unwrap_or_default();
        let place = self.place.as_ref().map_err(|why| self.failed(&from, why))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let request = json!({"uid": uid, "desiredAPIVersion": to, "objects": objects});
        let review = json!({"kind": "ConversionReview", "apiVersion": self.review, "request": request});
        let asked = self.client.post(place, review.to_string().into(), TIMEOUT);
        let said = wait(asked).map_err(|why| self.failed(&from, why))?;
        let said = said.map_err(|e| self.failed(&from, e.words))?;
        self.verify(&said, &uid, &objects, to).map_err(|why| {
            let kind = self.gvk(&from);
            Status::plain(why.replacen("{kind}", &kind.to_string(), 1))
        })
    }

    /// The converted objects of an answer, whose metadata stays but for labels and annotations.
    fn verify(&self, said: &Value, uid: &str, objects: &[Value], to: &str) -> Result<Vec<Value>, String> {
        let response = at(said, "/response");
        if !response.is_object() {
            return Err("conversion webhook for {kind} failed: no response provided".into());
        }
        let given = text(response, "/uid");
        if given != uid {
            return Err(format!(
                "conversion webhook for {{kind}} failed: expected response.uid={uid:?}, got {given:?}"
            ));
        }
        if text(response, "/result/status") != "Success" {
            let why = text(response, "/result/message");
            return Err(format!("conversion webhook for {{kind}} failed: {why}"));
        }
        let converted = items(response, "/convertedObjects");
        let (is, wanted) = (converted.len(), objects.len());
        if is != wanted {
            return Err(format!("conversion webhook for {{kind}} returned {is} objects, expected {wanted}"));
        }
        let mut all = Vec::with_capacity(is);
        for (i, (new, old)) in converted.iter().zip(objects).enumerate() {
            let wrong = |why: String| {
                format!(
                    "conversion webhook for {{kind}} returned invalid converted object at index {i}: {why}"
                )
            };
            let (version, kind) = (text(new, "/apiVersion"), text(new, "/kind"));
            if version != to {
                return Err(wrong(format!("invalid groupVersion (expected {to}, received {version})")));
            }
            if kind != self.kind {
                return Err(wrong(format!("invalid kind (expected {}, received {kind})", self.kind)));
            }
            let mut metadata = at(old, "/metadata").as_object().cloned().unwrap_or_default();
            for part in ["labels", "annotations"] {
                take_over(&mut metadata, part, at(new, &format!("/metadata/{part}"))).map_err(&wrong)?;
            }
            let mut new = new.clone();
            set(&mut new, "metadata", metadata);
            all.push(new);
        }
        Ok(all)
    }
}

fn take_over(metadata: &mut Map<String, Value>, part: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Null => drop(metadata.remove(part)),
        Value::Object(map) if map.values().all(Value::is_string) => {
            metadata.insert(part.to_owned(), value.clone());
        }
        _ => return Err(format!("metadata.{part} is no map of strings")),
    }
    Ok(())
}

fn key(obj: &Value) -> Option<(String, String)> {
    let (uid, revision) = (text(obj, "/metadata/uid"), text(obj, "/metadata/resourceVersion"));
    (!uid.is_empty() && !revision.is_empty()).then(|| (uid.to_owned(), revision.to_owned()))
}

/// Waits for what is asked elsewhere, where objects are read and nothing may be awaited. Other tasks of the thread move on.
fn wait<T>(asked: impl Future<Output = T>) -> Result<T, String> {
    let handle = Handle::try_current().map_err(|e| e.to_string())?;
    match handle.runtime_flavor() {
        RuntimeFlavor::MultiThread => Ok(tokio::task::block_in_place(|| handle.block_on(asked))),
        _ => Err("this server has one thread and cannot wait".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        struct Nowhere;
        #[async_trait::async_trait]
        impl coracle_apiserver::webhook::ServiceResolver for Nowhere {
            async fn resolve(&self, _: &str, _: &str, _: u16) -> Result<(String, u16), String> {
                Err("nowhere".into())
            }
        }
        let definition = json!({"spec": {"group": "g.io", "names": {"kind": "K"}, "conversion": {"strategy": "Webhook",
            "webhook": {"clientConfig": {"url": "https://h/x"}, "conversionReviewVersions": ["v1"]}}}});
        let conversion =
            Conversion::of(&definition, &Arc::new(WebhookClient::new(Arc::new(Nowhere)))).unwrap();
        let old = json!({"apiVersion": "g.io/v1", "kind": "K", "metadata": {"name": "a", "uid": "u", "labels": {"x": "y"}}});
        let verify = |objects: Value| {
            let said = json!({"response": {"uid": "1", "result": {"status": "Success"}, "convertedObjects": objects}});
            conversion.verify(&said, "1", std::slice::from_ref(&old), "g.io/v2")
        };
        let good = json!({"apiVersion": "g.io/v2", "kind": "K", "metadata": {"name": "other", "labels": {"z": "w"}}, "spec": 1});
        assert_eq!(
            verify(json!([good])),
            Ok(vec![
                json!({"apiVersion": "g.io/v2", "kind": "K", "metadata": {"name": "a", "uid": "u", "labels": {"z": "w"}}, "spec": 1})
            ])
        );
        assert_eq!(
            verify(json!([])),
            Err("conversion webhook for {kind} returned 0 objects, expected 1".into())
        );
        assert_eq!(
            verify(json!([old])),
            Err("conversion webhook for {kind} returned invalid converted object at index 0: invalid groupVersion (expected g.io/v2, received g.io/v1)".into())
        );
    }
}
