//! Changing a stored object: read, change, check, write, and again if another writer came between.

use std::sync::Arc;

use axum::body::Body;
use coracle_api::field::{Error, Path};
use coracle_api::{Status, meta};
use coracle_store::{KeyValue, Txn, Value as Stored};
use http::{Response, StatusCode};
use serde_json::Value;

use crate::admission::{Operation, Together};
use crate::call::{Call, Target};
use crate::negotiate::{Encoding, Form};
use crate::objects::MAX_ATTEMPTS;
use crate::strategy::Strategy;
use crate::{codec, managed, respond, validate};

/// Under whose rules an object changes.
#[derive(Clone)]
pub(crate) enum Rules {
    /// Everything but status.
    Main,
    /// Status alone.
    Status,
    /// Another strategy's.
    Other(Arc<dyn Strategy>),
}

/// An object as it is after a write.
pub(crate) struct Written {
    /// The object with its `resourceVersion` (which a dry-run create has not).
    pub obj: Value,
    /// Its stored form and revision, where it was written.
    pub stored: Option<(Stored, u64)>,
}

impl Written {
    /// The answer to the call that wrote it.
    pub fn respond(&self, call: &Call, code: StatusCode) -> Result<Response<Body>, Status> {
        let plain = call.accepted.form == Form::Object && call.accepted.encoding == Encoding::Json;
        match &self.stored {
            Some((stored, revision)) if plain && !call.served.def.strategy.converts() => {
                Ok(respond::json_bytes(code, stored.with_revision(*revision)))
            }
            _ => respond::object(call, code, &self.obj),
        }
    }
}

/// Changes the object that the target names. `change` makes the new object of the old one; it runs again after a conflict.
pub(crate) async fn update<F>(target: &Target, rules: &Rules, change: F) -> Result<Written, Status>
where
    F: FnMut(&Value) -> Result<Value, Status> + Send,
{
    run(target, rules, false, change).await
}

/// The same for a change that says itself who owns what then.
pub(crate) async fn apply<F>(target: &Target, rules: &Rules, change: F) -> Result<Written, Status>
where
    F: FnMut(&Value) -> Result<Value, Status> + Send,
{
    run(target, rules, true, change).await
}

async fn run<F>(target: &Target, rules: &Rules, applied: bool, mut change: F) -> Result<Written, Status>
where
    F: FnMut(&Value) -> Result<Value, Status> + Send,
{
    for _ in 0..MAX_ATTEMPTS {
        let kv = target.fetch().await?;
        let old = codec::decode(&target.served.def, &kv).map_err(crate::errors::corrupt)?;
        let new = change(&old)?;
        if let Some(written) = attempt(target, rules, applied, &kv, old, new).await? {
            return Ok(written);
        }
    }
    Err(Status::modified(&target.served.gr, target.name()))
}

/// One attempt; `None` when another writer came between.
async fn attempt(
    target: &Target,
    rules: &Rules,
    applied: bool,
    kv: &KeyValue,
    old: Value,
    mut new: Value,
) -> Result<Option<Written>, Status> {
    let strategy: &dyn Strategy = match rules {
        Rules::Other(strategy) => strategy.as_ref(),
        _ => target.served.def.strategy.as_ref(),
    };
    identity(target, &mut new)?;
    versions(target, strategy, kv, &old, &mut new)?;
    system_fields(&mut new, &old);
    if !applied {
        managed::updated(target, &old, &mut new);
    }
    target.admit(Operation::Update, Some(&mut new), Some(&old)).await?;
    identity(target, &mut new)?;
    let mut errors = Vec::new();
    match rules {
        Rules::Status => {
            strategy.prepare_for_status_update(&mut new, &old);
            errors.extend(validate::metadata_update(&new, &old));
            errors.extend(strategy.validate_status_update(&new, &old));
        }
        _ => {
            strategy.prepare_update(&target.strategy_context(), &mut new, &old).await?;
            strategy.prepare_for_update(&mut new, &old);
            errors.extend(validate::metadata_update(&new, &old));
            errors.extend(strategy.validate_update(&new, &old));
        }
    }
    if !errors.is_empty() {
        return Err(Status::invalid(&target.served.gvk, target.name(), errors));
    }
    let together = target.check_admission(Operation::Update, Some(&new), Some(&old)).await?;
    commit(target, kv, old, new, together).await
}

async fn commit(
    target: &Target,
    kv: &KeyValue,
    old: Value,
    mut new: Value,
    together: Together,
) -> Result<Option<Written>, Status> {
    let (gr, def) = (&target.served.gr, &target.served.def);
    codec::set_revision(&mut new, kv.mod_revision);
    managed::ignore_times(&mut new, &old);
    let ends = ends_deletion(target, &new);
    if target.cx.dry_run {
        return Ok(Some(Written { obj: new, stored: None }));
    }
    if ends {
        let done = target.shared.objects.txn(Txn::delete(kv.key.clone(), kv.mod_revision), gr).await?;
        if !done.succeeded {
            return Ok(None);
        }
        codec::set_revision(&mut new, done.revision);
        def.strategy.after_delete(&target.shared.objects, &new).await;
        return Ok(Some(Written { obj: new, stored: None }));
    }
    if new == old && !target.shared.objects.store().is_stale(kv) {
        return Ok(Some(Written { obj: old, stored: Some((kv.value.clone(), kv.mod_revision)) }));
    }
    let stored = codec::to_stored(def, &new)?;
    let mut txn = Txn::update(kv.key.clone(), kv.mod_revision, stored.clone(), target.served.ttl_ms());
    together.join(&mut txn);
    let done = target.shared.objects.txn(txn, gr).await?;
    if !done.succeeded {
        return Ok(None);
    }
    codec::set_revision(&mut new, done.revision);
    Ok(Some(Written { obj: new, stored: Some((stored, done.revision)) }))
}

/// Whether this update takes away the last thing that held a deleted object.
pub(crate) fn ends_deletion(target: &Target, new: &Value) -> bool {
    let grace = new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    meta::deletion_timestamp(new).is_some()
        && meta::finalizers(new).next().is_none()
        && grace == 0
        && !target.served.def.strategy.held(new)
}

/// Name and namespace must be those of the path; only the namespace may be absent.
pub(crate) fn identity(target: &Target, new: &mut Value) -> Result<(), Status> {
    let name = target.name();
    match meta::name(new) {
        Some(given) if given == name => {}
        Some(given) => {
            return Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        None => {
            return Err(Status::bad_request(format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            )));
        }
    }
    match (meta::namespace(new), target.cx.namespace.as_deref()) {
        (Some(given), Some(namespace)) if given != namespace => Err(Status::bad_request(format!(
            "the namespace of the object ({given}) does not match the namespace on the request ({namespace})"
        ))),
        _ => match_namespace(target, new),
    }
}

/// The namespace must be that of the path; an absent one is filled in, that of a cluster object is dropped.
pub(crate) fn match_namespace(target: &Target, new: &mut Value) -> Result<(), Status> {
    let Some(namespace) = target.cx.namespace.as_deref().filter(|_| target.served.def.namespaced) else {
        meta::remove_metadata(new, "namespace");
        return Ok(());
    };
    match meta::namespace(new) {
        Some(given) if given == namespace => {}
        None => meta::set_namespace(new, namespace),
        Some(_) => {
            let words =
                "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Status::bad_request(words));
        }
    }
    Ok(())
}

/// `resourceVersion` and `uid` must be those of the stored object, where they are given.
fn versions(
    target: &Target,
    strategy: &dyn Strategy,
    kv: &KeyValue,
    old: &Value,
    new: &mut Value,
) -> Result<(), Status> {
    let (gr, name) = (&target.served.gr, target.name());
    match meta::resource_version(new) {
        None | Some("0") => {
            if !strategy.allow_unconditional_update() {
                let at = Path::new("metadata").child("resourceVersion");
                let error = Error::invalid(&at, 0, "must be specified for an update");
                return Err(Status::invalid(&target.served.gvk, name, vec![error]));
            }
        }
        Some(given) => {
            let given: u64 = given.parse().map_err(|_| parse_version(given))?;
            if given != kv.mod_revision {
                return Err(Status::modified(gr, name));
            }
        }
    }
    let (is, was) = (meta::uid(new), meta::uid(old).unwrap_or(""));
    if let Some(is) = is.filter(|is| *is != was) {
        return Err(Status::conflict(
            gr,
            name,
            &format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {is}, UID in object meta: {was}",
                String::from_utf8_lossy(&kv.key).replace("/registry/core/", "/registry/")
            ),
        ));
    }
    Ok(())
}

/// How Kubernetes answers a resourceVersion in an object that is no number.
pub(crate) fn parse_version(given: &str) -> Status {
    Status::plain(format!(
        "strconv.ParseUint: parsing {}: invalid syntax",
        coracle_api::field::go_quote(given)
    ))
}

/// What only the server sets stays as it was, unless the caller names it (and then validation speaks).
fn system_fields(new: &mut Value, old: &Value) {
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    metadata.remove("selfLink");
    for name in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if metadata.get(name).is_none_or(Value::is_null)
            && let Some(was) = old.pointer("/metadata").and_then(|m| m.get(name))
        {
            metadata.insert(name.into(), was.clone());
        }
    }
    match old.pointer("/metadata/generation") {
        Some(was) => metadata.insert("generation".into(), was.clone()),
        None => metadata.remove("generation"),
    };
}
