//! Repairs what is claimed by Services: claims that no Service holds are given back, those that a Service lacks are made
//! again, and the IPAddress of each claimed address is there and says whose it is.

use std::time::Duration;

use coracle_apiserver::Objects;
use coracle_store::{Compare, Op, Range, Txn};
use jiff::Timestamp;
use serde_json::Value;

use super::claim::{self, ADDRESSES, Claim, Holder, PORTS, Refusal, What, failed, holder, stale};
use crate::networking::{self, ip_address};

/// What a look found and mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Claims that no Service held.
    pub given_back: usize,
    /// Claims that a Service lacked.
    pub claimed: usize,
    /// IPAddresses that were missing, or of another Service.
    pub shown: usize,
    /// IPAddresses of Services that no claim stood behind.
    pub hidden: usize,
    /// Things that two Services hold; one of them has to be made anew by hand.
    pub doubled: usize,
}

/// Looks every `period` until `shutdown`, at once for the first time.
pub async fn run(objects: &Objects, period: Duration, shutdown: impl Future<Output = ()>) {
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        match once(objects).await {
            Ok(done) if done == Repaired::default() => {}
            Ok(done) => tracing::info!(?done, "what Services hold of addresses and ports is repaired"),
            Err(error) => tracing::debug!(?error, "what Services hold is looked at again later"),
        }
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = &mut shutdown => return,
        }
    }
}

/// The claims below a prefix, with their revisions.
fn claims(objects: &Objects, prefix: &'static str) -> Result<Vec<(What, Option<Claim>, u64)>, Refusal> {
    let held = objects.store().range(&Range::prefix(prefix)).map_err(failed)?;
    let read = held.kvs.into_iter().filter_map(|kv| {
        let text = std::str::from_utf8(kv.key.get(prefix.len()..)?).ok()?;
        let what = match prefix {
            PORTS => What::Port(text.parse().ok()?),
            _ => What::Address(text.parse().ok()?),
        };
        Some((what, Claim::of(&kv), kv.mod_revision))
    });
    Ok(read.collect())
}

/// Looks once.
///
/// # Errors
/// When the store does not take part. What was mended until then stays mended.
pub async fn once(objects: &Objects) -> Result<Repaired, Refusal> {
    let mut done = Repaired::default();
    for service in objects.list("", "services", None).await.map_err(Refusal::Failed)? {
        let holder = holder(&service);
        for what in What::of(&service) {
            let found = objects.store().get(&what.key());
            if found.as_deref().and_then(Claim::of).is_some_and(|claim| claim.is_of(&holder)) {
                continue;
            }
            // Gone or changed since it was listed: its write claims by itself.
            let (namespace, name) = (&holder.0, &holder.1);
            let now = objects.get("", "services", Some(namespace), name).await.map_err(Refusal::Failed)?;
            if !now.is_some_and(|now| what.held_by(&now)) {
                continue;
            }
            if claim::claim(what, &holder, objects).await? {
                done.claimed += 1;
            } else {
                done.doubled += 1;
                tracing::warn!(namespace, name, key = ?what.key(), "another holds this too; make the Service anew");
            }
        }
    }
    for prefix in [ADDRESSES, PORTS] {
        for (what, claim, revision) in claims(objects, prefix)? {
            if stale(what, claim.as_ref(), objects).await? {
                let answer = objects.store().txn(claim::unclaim(what, revision)).await.map_err(failed)?;
                done.given_back += usize::from(answer.succeeded);
            } else if let Some(claim) = claim {
                done.shown += usize::from(show(what, &claim.holder(), revision, objects).await?);
            }
        }
    }
    done.hidden = hide(objects).await?;
    Ok(done)
}

fn parent(ip: &Value) -> Holder {
    let field = |name: &str| crate::value::text(ip, &format!("/spec/parentRef/{name}")).to_owned();
    (field("namespace"), field("name"))
}

/// Writes the IPAddress of a claim where it is missing, or tells of another Service. Whether it did.
async fn show(what: What, holder: &Holder, revision: u64, objects: &Objects) -> Result<bool, Refusal> {
    let What::Address(ip) = what else { return Ok(false) };
    let found = objects.get(networking::GROUP, ip_address::PLURAL, None, &ip.to_string()).await;
    if found
        .map_err(Refusal::Failed)?
        .is_some_and(|found| !ip_address::is_of_services(&found) || parent(&found) == *holder)
    {
        return Ok(false);
    }
    let object = ip_address::of_service(ip, &holder.0, &holder.1, Timestamp::now());
    let stored = objects.stored(networking::GROUP, ip_address::PLURAL, &object);
    let (key, value) = stored.map_err(Refusal::Failed)?;
    let txn = Txn {
        compares: vec![Compare::ModRevision(what.key(), revision)],
        success: vec![Op::Put { key, value, ttl_ms: None }],
        failure: Vec::new(),
    };
    Ok(objects.store().txn(txn).await.map_err(failed)?.succeeded)
}

/// Removes IPAddresses that say that a Service holds them, and no claim does.
async fn hide(objects: &Objects) -> Result<usize, Refusal> {
    let mut hidden = 0;
    for object in objects.list(networking::GROUP, ip_address::PLURAL, None).await.map_err(Refusal::Failed)? {
        let Some(Ok(ip)) = coracle_api::meta::name(&object).map(str::parse) else { continue };
        let what = What::Address(ip);
        if !ip_address::is_of_services(&object) || objects.store().get(&what.key()).is_some() {
            continue;
        }
        let key = format!("/registry/{}/{}/{ip}", networking::GROUP, ip_address::PLURAL);
        let txn = Txn {
            compares: vec![Compare::Absent(what.key())],
            success: vec![Op::Delete { key: key.into() }],
            failure: Vec::new(),
        };
        hidden += usize::from(objects.store().txn(txn).await.map_err(failed)?.succeeded);
    }
    Ok(hidden)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_store::Store;
    use serde_json::json;

    use super::*;

    async fn put(objects: &Objects, key: bytes::Bytes, value: coracle_store::Value) {
        let op = Op::Put { key, value, ttl_ms: None };
        objects.store().txn(Txn { compares: vec![], success: vec![op], failure: vec![] }).await.unwrap();
    }

    async fn delete(objects: &Objects, key: bytes::Bytes) {
        let txn = Txn { compares: vec![], success: vec![Op::Delete { key }], failure: vec![] };
        objects.store().txn(txn).await.unwrap();
    }

    async fn shown(objects: &Objects, ip: &str) -> Option<Value> {
        objects.get(networking::GROUP, ip_address::PLURAL, None, ip).await.unwrap()
    }

    #[tokio::test]
    async fn claims_follow_what_services_hold() {
        let store = Store::in_memory(&coracle_store::Options::new("unused"));
        let options = crate::RegistryOptions::default();
        let resources = crate::builtin(&options, &store).unwrap().resources.into_iter().map(Arc::new);
        let objects = &Objects::new(Arc::new(store), resources.collect());
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "s", "namespace": "default", "uid": "u"},
            "spec": {"type": "NodePort", "clusterIP": "127.96.1.1", "clusterIPs": ["127.96.1.1"],
                "ports": [{"port": 80, "nodePort": 30100}]},
        });
        let (key, value) = objects.stored("", "services", &service).unwrap();
        put(objects, key, value).await;

        // The claims of a Service are missing, then the object that shows its address.
        let store = objects.store();
        let address = What::Address("127.96.1.1".parse().unwrap());
        assert_eq!(once(objects).await, Ok(Repaired { claimed: 2, ..Repaired::default() }));
        assert_eq!(once(objects).await, Ok(Repaired::default()), "nothing is broken any more");
        delete(objects, "/registry/networking.k8s.io/ipaddresses/127.96.1.1".into()).await;
        assert_eq!(once(objects).await, Ok(Repaired { shown: 1, ..Repaired::default() }));
        assert_eq!(parent(&shown(objects, "127.96.1.1").await.unwrap()).1, "s");
        delete(objects, address.key()).await;
        assert_eq!(once(objects).await.unwrap().claimed, 1);

        // Claims of one that is not there: old ones go, those of a write that may be under way stay.
        let claimed = |at: i64| {
            let claim = json!({"namespace": "default", "name": "gone", "at": at}).to_string();
            coracle_store::Value::raw(claim.into_bytes())
        };
        let now = Timestamp::now().as_second();
        let (old, young) = (What::Address("127.96.77.1".parse().unwrap()), What::Port(32_700));
        put(objects, old.key(), claimed(now - 600)).await;
        put(objects, young.key(), claimed(now)).await;
        assert_eq!(once(objects).await, Ok(Repaired { given_back: 1, ..Repaired::default() }));
        assert!(store.get(&old.key()).is_none() && store.get(&young.key()).is_some());

        // An IPAddress that claims to be a Service's.
        let stray =
            ip_address::of_service("127.96.77.2".parse().unwrap(), "default", "gone", Timestamp::now());
        let (key, value) = objects.stored(networking::GROUP, ip_address::PLURAL, &stray).unwrap();
        put(objects, key, value).await;
        assert_eq!(once(objects).await, Ok(Repaired { hidden: 1, ..Repaired::default() }));
        assert!(shown(objects, "127.96.77.2").await.is_none());
        assert_eq!(once(objects).await, Ok(Repaired::default()));
    }
}
