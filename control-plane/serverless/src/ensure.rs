//! Writing what should be, and nothing when it already is.

use std::fmt::Debug;

use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Creates an object, or merges what is wanted into the one that exists. Writes only where that changes something.
pub async fn ensure<K>(api: &Api<K>, wanted: &K) -> kube::Result<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let name = wanted.name_any();
    loop {
        let Some(found) = api.get_opt(&name).await? else {
            match api.create(&PostParams::default(), wanted).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => continue,
                created => return created,
            }
        };
        let wanted = value(wanted)?;
        let mut merged = value(&found)?;
        let before = merged.clone();
        json_patch::merge(&mut merged, &wanted);
        if merged == before {
            return Ok(found);
        }
        return api.patch(&name, &PatchParams::default(), &Patch::Merge(&wanted)).await;
    }
}

/// Writes the status of an object where it differs.
pub async fn ensure_status<K, S>(
    api: &Api<K>,
    object: &K,
    present: Option<&S>,
    wanted: &S,
) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: Serialize + PartialEq,
{
    if present == Some(wanted) {
        return Ok(());
    }
    let patch = json!({"status": wanted});
    api.patch_status(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

fn value<T: Serialize>(object: &T) -> kube::Result<Value> {
    serde_json::to_value(object).map_err(kube::Error::SerdeError)
}
