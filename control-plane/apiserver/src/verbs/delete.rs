//! delete: at once, gracefully, or as soon as nothing holds the object.

use axum::body::Body;
use coracle_api::field::{Error, Path};
use coracle_api::status::Details;
use coracle_api::{Status, meta};
use coracle_store::{KeyValue, Txn};
use http::{Response, StatusCode};
use jiff::SignedDuration;
use serde_json::Value;

use crate::admission::Operation;
use crate::call::{Call, Target};
use crate::objects::MAX_ATTEMPTS;
use crate::query::Query;
use crate::{codec, respond, validate};

/// `DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub propagation: Option<String>,
    pub dry_run: Vec<String>,
}

/// What became of an object.
pub(crate) struct Deleted {
    /// The object as it was, or as it is now that it is marked.
    pub obj: Value,
    /// Whether it is gone from the store.
    pub gone: bool,
}

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// Deletes the object that the path names.
pub(crate) async fn delete(mut call: Call) -> Result<Response<Body>, Status> {
    let options = read_options(&call)?;
    call.target.cx.dry_run |= !options.dry_run.is_empty();
    let deleted = delete_object(&call.target, &options).await?;
    let served = &call.served;
    if !deleted.gone || served.def.strategy.returns_deleted_object() {
        let accepted = !deleted.gone && options.orphan_dependents == Some(false);
        let code = if accepted { StatusCode::ACCEPTED } else { StatusCode::OK };
        return respond::object(&call, code, &deleted.obj);
    }
    let uid = meta::uid(&deleted.obj).unwrap_or("").to_owned();
    let details = Details {
        name: call.name().to_owned(),
        group: served.gr.group.clone(),
        kind: served.gr.resource.clone(),
        uid,
        ..Details::default()
    };
    Ok(respond::success(&call.accepted, details))
}

/// Options from the body, or from the query where there is no body.
pub(crate) fn read_options(call: &Call) -> Result<DeleteOptions, Status> {
    let options = if call.body.is_empty() { from_query(&call.query)? } else { from_body(call, &call.body)? };
    let mut errors = Vec::new();
    if options.orphan_dependents.is_some() && options.propagation.is_some() {
        let words = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(Error::invalid(&Path::new("propagationPolicy"), options.propagation.clone(), words));
    } else if let Some(policy) = options.propagation.as_deref()
        && !matches!(policy, "Foreground" | "Background" | "Orphan")
    {
        errors.push(Error::not_supported(
            &Path::new("propagationPolicy"),
            policy,
            &["Foreground", "Background", "Orphan", "nil"],
        ));
    }
    errors.extend(validate::dry_run(&options.dry_run));
    validate::options_status("DeleteOptions", errors)?;
    Ok(options)
}

fn from_query(query: &Query) -> Result<DeleteOptions, Status> {
    let grace = match query.text("gracePeriodSeconds") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Status::bad_request(format!(
                "strconv.ParseInt: parsing {}: invalid syntax",
                coracle_api::field::go_quote(text)
            ))
        })?),
    };
    Ok(DeleteOptions {
        grace,
        orphan_dependents: query.tristate("orphanDependents"),
        propagation: query.text("propagationPolicy").map(str::to_owned),
        dry_run: query.all("dryRun").filter(|v| !v.is_empty()).map(str::to_owned).collect(),
        ..DeleteOptions::default()
    })
}

fn from_body(call: &Call, body: &[u8]) -> Result<DeleteOptions, Status> {
    let value = crate::decode::plain(call, body)?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    if let Some(kind) = text("kind").filter(|k| *k != "DeleteOptions") {
        let version = text("apiVersion").unwrap_or("v1");
        return Err(Status::bad_request(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme \"pkg/apis/meta/internalversion/scheme/register.go:27\""
        )));
    }
    let grace = match value.get("gracePeriodSeconds") {
        None | Some(Value::Null) => None,
        Some(n) => {
            Some(n.as_i64().ok_or_else(|| Status::bad_request("gracePeriodSeconds must be an integer"))?)
        }
    };
    let condition = |name: &str| {
        value.get("preconditions").and_then(|p| p.get(name)).and_then(Value::as_str).map(str::to_owned)
    };
    let dry_run = value.get("dryRun").and_then(Value::as_array);
    Ok(DeleteOptions {
        grace,
        uid: condition("uid"),
        resource_version: condition("resourceVersion"),
        orphan_dependents: value.get("orphanDependents").and_then(Value::as_bool),
        propagation: text("propagationPolicy").map(str::to_owned),
        dry_run: dry_run.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
    })
}

/// Deletes the object that the target names; tries again when another writer came between.
pub(crate) async fn delete_object(target: &Target, options: &DeleteOptions) -> Result<Deleted, Status> {
    for _ in 0..MAX_ATTEMPTS {
        let kv = target.fetch().await?;
        if let Some(deleted) = attempt(target, options, &kv).await? {
            return Ok(deleted);
        }
    }
    Err(Status::modified(&target.served.gr, target.name()))
}

async fn attempt(target: &Target, options: &DeleteOptions, kv: &KeyValue) -> Result<Option<Deleted>, Status> {
    let def = &target.served.def;
    let old = codec::decode(def, kv).map_err(crate::errors::corrupt)?;
    preconditions(target, options, &old)?;
    target.admit(Operation::Delete, None, Some(&old)).await?;
    target.check_admission(Operation::Delete, None, Some(&old)).await?;
    let mut new = old.clone();
    propagate(target, options, &mut new);
    if let (Some(finalizer), None) = (def.strategy.deletion_finalizer(), meta::deletion_timestamp(&old)) {
        let mut all: Vec<String> = meta::finalizers(&new).map(str::to_owned).collect();
        if !all.iter().any(|f| f == finalizer) {
            all.push(finalizer.to_owned());
            meta::set_finalizers(&mut new, all);
        }
    }
    let held = meta::finalizers(&new).next().is_some() || def.strategy.held(&new);
    let grace = def.strategy.grace_period(&old, options.grace.map(|g| if g < 0 { 1 } else { g }));
    let wait = mark(target, &mut new, &old, grace, held);
    if wait {
        return store_marked(target, kv, old, new).await;
    }
    if !target.cx.dry_run {
        let done = target
            .shared
            .objects
            .txn(Txn::delete(kv.key.clone(), kv.mod_revision), &target.served.gr)
            .await?;
        if !done.succeeded {
            return Ok(None);
        }
        codec::set_revision(&mut new, done.revision);
        def.strategy.after_delete(&target.shared.objects, &new).await;
    }
    Ok(Some(Deleted { obj: new, gone: true }))
}

async fn store_marked(
    target: &Target,
    kv: &KeyValue,
    old: Value,
    mut new: Value,
) -> Result<Option<Deleted>, Status> {
    if new == old || target.cx.dry_run {
        return Ok(Some(Deleted { obj: new, gone: false }));
    }
    let stored = codec::to_stored(&target.served.def, &new)?;
    let txn = Txn::update(kv.key.clone(), kv.mod_revision, stored, target.served.ttl_ms());
    let done = target.shared.objects.txn(txn, &target.served.gr).await?;
    if !done.succeeded {
        return Ok(None);
    }
    codec::set_revision(&mut new, done.revision);
    Ok(Some(Deleted { obj: new, gone: false }))
}

/// Sets the marks of a deletion. True: the object stays for now.
fn mark(target: &Target, new: &mut Value, old: &Value, grace: Option<i64>, held: bool) -> bool {
    let strategy = &target.served.def.strategy;
    let graceful = grace.is_some();
    let seconds = grace.unwrap_or(0).max(0);
    if meta::deletion_timestamp(old).is_some() {
        let before = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        // A second delete may only shorten the grace period.
        if graceful && seconds < before {
            stamp(target, new, seconds);
        }
        return held || (graceful && seconds.min(before) > 0);
    }
    let wait = held || seconds > 0;
    if wait || graceful {
        stamp(target, new, seconds);
        if wait {
            if meta::generation(old) > 0 {
                meta::set_generation(new, meta::generation(old) + 1);
            }
            strategy.marked_for_deletion(new);
        }
    }
    wait
}

fn stamp(target: &Target, new: &mut Value, seconds: i64) {
    let at = target.cx.now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(target.cx.now);
    meta::set_metadata(new, "deletionTimestamp", coracle_api::time::seconds(at));
    // What the kind itself holds goes when the kind lets go; there is no grace to count.
    if !target.served.def.strategy.held(new) {
        meta::set_metadata(new, "deletionGracePeriodSeconds", seconds);
    }
}

/// Finalizers that the propagation policy adds or takes away.
fn propagate(target: &Target, options: &DeleteOptions, new: &mut Value) {
    let before: Vec<String> = meta::finalizers(new).map(str::to_owned).collect();
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation.as_deref()) {
        (Some(orphan), _) => (orphan, false),
        (None, Some("Orphan")) => (true, false),
        (None, Some("Foreground")) => (false, true),
        (None, Some(_)) => (false, false),
        // Whoever set a finalizer before has decided already.
        (None, None) if before.iter().any(|f| f == ORPHAN || f == FOREGROUND) => return,
        (None, None) => (target.served.def.strategy.orphans_by_default(), false),
    };
    let mut after: Vec<String> =
        before.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if orphan {
        after.push(ORPHAN.into());
    }
    if foreground {
        after.push(FOREGROUND.into());
    }
    if after != before {
        meta::set_finalizers(new, after);
    }
}

fn preconditions(target: &Target, options: &DeleteOptions, old: &Value) -> Result<(), Status> {
    let mut gr = target.served.gr.clone();
    gr.resource = target.served.def.kind.clone();
    let name = target.name();
    if let Some(uid) = &options.uid {
        let was = meta::uid(old).unwrap_or("");
        if uid != was {
            return Err(Status::conflict(
                &gr,
                name,
                &format!(
                    "the UID in the precondition ({uid}) does not match the UID in record ({was}). The object might have been deleted and then recreated"
                ),
            ));
        }
    }
    if let Some(version) = &options.resource_version {
        let was = meta::resource_version(old).unwrap_or("");
        if version != was {
            return Err(Status::conflict(
                &gr,
                name,
                &format!(
                    "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({was}). The object might have been modified"
                ),
            ));
        }
    }
    Ok(())
}
