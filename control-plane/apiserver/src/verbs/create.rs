//! create: a new object in a collection.

use axum::body::Body;
use coracle_api::{Status, meta, names};
use coracle_store::{OpResult, Txn, Value as Stored};
use http::{Response, StatusCode};
use serde_json::Value;

use crate::admission::Operation;
use crate::call::{Call, Target};
use crate::query::WriteOptions;
use crate::write::{Written, match_namespace};
use crate::{codec, decode, managed, respond, validate};

/// How many generated names are tried.
const MAX_NAMES: usize = 8;
/// How often admission is asked when what it writes beside the object was changed meanwhile.
const MAX_CHARGES: usize = 64;

/// Creates the object in the body.
pub(crate) async fn create(mut call: Call) -> Result<Response<Body>, Status> {
    let options = WriteOptions::of(&call.query);
    validate::write_options(&options, "CreateOptions", false)?;
    let body = call.body.clone();
    let decoded = decode::object(&call, &body)?;
    let mut warnings = decoded.warnings;
    if call.served.def.strategy.is_review() {
        let written = review(&mut call.target, decoded.object).await?;
        let mut response = written.respond(&call, StatusCode::CREATED)?;
        respond::warn(&mut response, &warnings);
        return Ok(response);
    }
    let written = insert(&mut call.target, decoded.object).await?;
    warnings.extend(call.served.def.strategy.warnings(&written.obj));
    let mut response = written.respond(&call, StatusCode::CREATED)?;
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// Answers a question; nothing is stored.
async fn review(target: &mut Target, mut obj: Value) -> Result<Written, Status> {
    match_namespace(target, &mut obj)?;
    let strategy = target.served.def.strategy.clone();
    strategy.default(&mut obj);
    strategy.answer(&target.strategy_context(), &mut obj).await?;
    Ok(Written { obj, stored: None })
}

/// Puts a decoded object through naming, admission, preparation and validation, and writes it.
pub(crate) async fn insert(target: &mut Target, obj: Value) -> Result<Written, Status> {
    named(target, obj, false).await
}

/// The same for an object that says itself who owns what of it.
pub(crate) async fn insert_applied(target: &mut Target, obj: Value) -> Result<Written, Status> {
    named(target, obj, true).await
}

async fn named(target: &mut Target, mut obj: Value, applied: bool) -> Result<Written, Status> {
    match_namespace(target, &mut obj)?;
    let prefix = match (meta::name(&obj), meta::generate_name(&obj)) {
        (None, Some(prefix)) => prefix.to_owned(),
        _ => return attempt(target, obj, applied).await,
    };
    for _ in 0..MAX_NAMES {
        let mut named = obj.clone();
        meta::set_name(&mut named, &names::generate(&prefix));
        match attempt(target, named, applied).await {
            Err(e) if e.is_already_exists() => {}
            other => return other,
        }
    }
    Err(Status::generate_name_conflict(&target.served.gr, &prefix))
}

async fn attempt(target: &mut Target, mut obj: Value, applied: bool) -> Result<Written, Status> {
    target.cx.name = meta::name(&obj).map(str::to_owned);
    target.served.def.strategy.default(&mut obj);
    if !applied {
        managed::created(target, &mut obj);
    }
    target.admit(Operation::Create, Some(&mut obj), None).await?;
    // Plugins may name it otherwise, but not put it elsewhere.
    target.cx.name = meta::name(&obj).map(str::to_owned);
    match_namespace(target, &mut obj)?;
    let strategy = target.served.def.strategy.clone();
    system_fields(target, &mut obj);
    strategy.prepare_for_create(&target.strategy_context(), &mut obj).await?;
    let result = store(target, &mut obj).await;
    if result.is_err() && !target.cx.dry_run {
        strategy.abandon_create(&target.strategy_context(), &obj).await;
    }
    result
}

async fn store(target: &Target, obj: &mut Value) -> Result<Written, Status> {
    let served = &target.served;
    let mut errors = validate::metadata(&served.def, obj);
    errors.extend(served.def.strategy.validate_create(obj));
    if !errors.is_empty() {
        return Err(Status::invalid(&served.gvk, target.name(), errors));
    }
    if meta::resource_version(obj).is_some_and(|v| v != "0") {
        return Err(Status::plain("resourceVersion should not be set on objects to be created"));
    }
    meta::remove_metadata(obj, "resourceVersion");
    let stored = codec::to_stored(&served.def, obj)?;
    for _ in 0..MAX_CHARGES {
        if let Some(revision) = write(target, obj, &stored).await? {
            codec::set_revision(obj, revision);
            return Ok(Written { obj: obj.take(), stored: Some((stored, revision)) });
        }
        if target.cx.dry_run {
            return Ok(Written { obj: obj.take(), stored: None });
        }
    }
    Err(Status::modified(&served.gr, target.name()))
}

/// One attempt to write a new object with what admission writes beside it: the revision, or nothing when another writer came
/// between (and for a dry run).
async fn write(target: &Target, obj: &Value, stored: &Stored) -> Result<Option<u64>, Status> {
    let (gr, objects) = (&target.served.gr, &target.shared.objects);
    let together = target.check_admission(Operation::Create, Some(obj), None).await?;
    let exists = || Status::already_exists(gr, target.name());
    let key = target.key();
    if target.cx.dry_run {
        return match objects.fetch(&key, gr).await? {
            Some(_) => Err(exists()),
            None => Ok(None),
        };
    }
    let mut txn = Txn::create(key, stored.clone(), target.served.ttl_ms());
    let more = together.join(&mut txn);
    let done = objects.txn(txn, gr).await?;
    if done.succeeded {
        return Ok(Some(done.revision));
    }
    let there = done.results.iter().any(|r| matches!(r, OpResult::Get(Some(_))));
    if there || !more { Err(exists()) } else { Ok(None) }
}

/// What only the server sets.
fn system_fields(target: &Target, obj: &mut Value) {
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        meta::remove_metadata(obj, name);
    }
    meta::set_metadata(obj, "creationTimestamp", coracle_api::time::seconds(target.cx.now));
    meta::set_uid(obj, &uuid::Uuid::new_v4().to_string());
    if target.served.def.strategy.has_generation() {
        meta::set_generation(obj, 1);
    }
}
