//! list: a collection, whole or in pages, now or as it was.

mod raw;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use base64::Engine;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::GeneralPurposeConfig;
use bytes::Bytes;
use coracle_api::field::{Error, Path};
use coracle_api::{Status, field, schema};
use coracle_store::{KeyValue, Range};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use super::get::{not_older_than, revision};
use crate::call::Call;
use crate::negotiate::{Encoding, Form};
use crate::select::Selection;
use crate::{codec, respond as answers, tables, validate};

/// Objects that are looked at or decoded in one go.
const INLINE: usize = 512;

/// Reads tokens as leniently as Go does.
const TOKEN: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What the metadata of a list says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub revision: u64,
    pub next: Option<String>,
    pub remaining: Option<u64>,
}

/// Where and how to read.
struct Plan {
    limit: usize,
    /// Exactly this revision.
    at: Option<u64>,
    /// Go on after this key.
    after: Option<Vec<u8>>,
}

/// Answers with the collection.
pub(crate) async fn list(call: Call) -> Result<Response<Body>, Status> {
    let prefix = call.served.list_prefix(call.cx.namespace.as_deref());
    let selection = Selection::of(&call.served, &call.query, None)?;
    if let Some(mut objects) = call.served.def.strategy.computed(call.cx.namespace.as_deref()) {
        objects.retain(|o| selection.matches_value(o));
        let page = Page { revision: call.shared.objects.store().revision(), ..Page::default() };
        return respond(&call, StatusCode::OK, &objects, &page);
    }
    let plan = plan(&call, &prefix).await?;
    let (kvs, page) = match read(&call, &prefix, &selection, &plan).await {
        Err(e) if e.code == 410 && plan.after.is_some() => return Ok(expired(&call, &prefix, &plan)),
        read => read?,
    };
    let plain = call.accepted.form == Form::Object && call.accepted.encoding == Encoding::Json;
    if plain && !call.served.def.strategy.converts() {
        return Ok(raw::respond(&call.served, kvs, &page, call.connection.as_ref()));
    }
    if kvs.len() > INLINE {
        // Decoding so many objects would keep other calls of this thread waiting.
        let work = tokio::task::spawn_blocking(move || decoded(&call, &kvs, &page));
        return work.await.map_err(Status::internal)?;
    }
    decoded(&call, &kvs, &page)
}

/// How many objects are converted together.
const TOGETHER: usize = 500;

fn decoded(call: &Call, kvs: &[Arc<KeyValue>], page: &Page) -> Result<Response<Body>, Status> {
    let def = &call.served.def;
    let mut objects = Vec::with_capacity(kvs.len());
    for kvs in kvs.chunks(TOGETHER) {
        def.strategy.prepare_reads(&mut kvs.iter().filter_map(|kv| codec::stored(kv).ok()))?;
        let decode = |kv: &Arc<KeyValue>| codec::decode(def, kv).map_err(crate::errors::corrupt);
        for kv in kvs {
            objects.push(decode(kv)?);
        }
    }
    respond(call, StatusCode::OK, &objects, page)
}

async fn read(
    call: &Call,
    prefix: &str,
    selection: &Selection,
    plan: &Plan,
) -> Result<(Vec<Arc<KeyValue>>, Page), Status> {
    let mut range = Range::prefix(prefix.to_owned());
    if let Some(name) = &selection.name
        && (call.cx.namespace.is_some() || !call.served.def.namespaced)
    {
        // One object: the range is its key alone.
        range.start = Bytes::from(format!("{prefix}{name}"));
        range.end = Some(Bytes::from(format!("{prefix}{name}\0")));
    }
    range.revision = plan.at;
    if let Some(after) = &plan.after {
        range = range.after(after);
    }
    let mut chosen = Vec::new();
    let mut page = Page::default();
    loop {
        // With a selector, pages of the store are read until enough objects match.
        let wanted = if plan.limit == 0 { 0 } else { plan.limit - chosen.len() };
        let found = call.shared.objects.range(&range.clone().limit(wanted), &call.served.gr).await?;
        page.revision = found.revision;
        if call.cx.namespace.is_none() && plan.after.is_none() {
            call.served.listed.store(found.count, Ordering::Relaxed);
        }
        let last = found.kvs.last().map(|kv| kv.key.clone());
        if selection.is_everything() {
            chosen = found.kvs;
        } else {
            for (i, kv) in found.kvs.into_iter().enumerate() {
                if i % INLINE == INLINE - 1 {
                    tokio::task::yield_now().await;
                }
                if selection.matches(&call.served, &kv)? {
                    chosen.push(kv);
                }
            }
        }
        let Some(last) = last.filter(|_| found.more) else { return Ok((chosen, page)) };
        if plan.limit > 0 && chosen.len() >= plan.limit {
            page.next = Some(continue_token(page.revision.cast_signed(), prefix, &last));
            if selection.is_everything() {
                page.remaining = found.count.checked_sub(chosen.len() as u64).filter(|n| *n > 0);
            }
            return Ok((chosen, page));
        }
        range = range.at(page.revision).after(&last);
    }
}

/// 410 for a token whose revision is gone, with one that goes on from the same key in what is there now.
fn expired(call: &Call, prefix: &str, plan: &Plan) -> Response<Body> {
    let mut status = crate::errors::continue_expired().to_value();
    let token = continue_token(-1, prefix, plan.after.as_deref().unwrap_or_default());
    if let Some(metadata) = status.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("continue".into(), token.into());
    }
    answers::encoded(StatusCode::GONE, call.accepted.encoding, &status)
}

/// Reads limit, continue, resourceVersion and resourceVersionMatch.
async fn plan(call: &Call, prefix: &str) -> Result<Plan, Status> {
    let query = &call.query;
    let version = query.get("resourceVersion").unwrap_or("");
    let matching = query.get("resourceVersionMatch").unwrap_or("");
    check_match(call, version, matching)?;
    let limit = match query.text("limit") {
        None => 0,
        Some(text) => {
            let n: i64 = text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {}: invalid syntax",
                    field::go_quote(text)
                ))
            })?;
            usize::try_from(n).unwrap_or(0)
        }
    };
    if let Some(token) = query.text("continue") {
        if !version.is_empty() && version != "0" {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (at, after) = read_token(token, prefix)
            .map_err(|e| Status::bad_request(format!("invalid continue token: {e}")))?;
        return Ok(Plan { limit, at, after: Some(after) });
    }
    if version.is_empty() {
        return Ok(Plan { limit, at: None, after: None });
    }
    let revision =
        revision(version).map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?;
    if revision == 0 {
        // Whatever is in memory, all of it: the limit does not count, as in Kubernetes.
        return Ok(Plan { limit: 0, at: None, after: None });
    }
    let exact = matching == "Exact" || (matching.is_empty() && limit > 0);
    not_older_than(call, revision).await?;
    Ok(Plan { limit, at: exact.then_some(revision), after: None })
}

/// 422 for combinations of options that mean nothing.
fn check_match(call: &Call, version: &str, matching: &str) -> Result<(), Status> {
    let at = Path::new("resourceVersionMatch");
    let mut errors = Vec::new();
    if !matching.is_empty() {
        if version.is_empty() {
            errors.push(Error::forbidden(
                &at,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if call.query.text("continue").is_some() {
            errors.push(Error::forbidden(&at, "resourceVersionMatch is forbidden when continue is provided"));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.push(Error::not_supported(&at, matching, &["Exact", "NotOlderThan", ""]));
        }
        if matching == "Exact" && version == "0" {
            errors.push(Error::forbidden(
                &at,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    if call.query.get("sendInitialEvents").is_some() {
        errors.push(Error::forbidden(
            &Path::new("sendInitialEvents"),
            "sendInitialEvents is forbidden for list",
        ));
    }
    validate::options_status("ListOptions", errors)
}

/// A token in Kubernetes' form: base64 of `{"v":"meta.k8s.io/v1","rv":N,"start":"name\u0000"}`.
fn continue_token(revision: i64, prefix: &str, last: &[u8]) -> String {
    let rest = String::from_utf8_lossy(last.get(prefix.len()..).unwrap_or_default());
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{rest}\0")});
    TOKEN.encode(codec::to_bytes(&token))
}

/// The revision (none for "now") and the last key of the page before.
fn read_token(token: &str, prefix: &str) -> Result<(Option<u64>, Vec<u8>), String> {
    let bad = |e: &dyn std::fmt::Display| format!("continue key is not valid: {e}");
    let bytes = TOKEN.decode(token).map_err(|e| bad(&e))?;
    let words = |e: serde_json::Error| schema::json_syntax_error(&bytes).unwrap_or_else(|| e.to_string());
    let token: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&words(e)))?;
    let version = token.get("v").and_then(Value::as_str).unwrap_or("");
    if version != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {version}")));
    }
    let revision = token.get("rv").and_then(Value::as_i64).unwrap_or(0);
    if revision == 0 {
        return Err(bad(&"incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    let start = token.get("start").and_then(Value::as_str).unwrap_or("");
    let start = start.strip_suffix('\0').unwrap_or(start);
    if start.is_empty() || start.contains("../") {
        return Err(bad(&"empty encoded start value (version meta.k8s.io/v1)"));
    }
    Ok((u64::try_from(revision).ok(), format!("{prefix}{start}").into_bytes()))
}

fn metadata(page: &Page) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), page.revision.to_string().into());
    if let Some(next) = &page.next {
        metadata.insert("continue".into(), next.as_str().into());
    }
    if let Some(remaining) = page.remaining {
        metadata.insert("remainingItemCount".into(), remaining.into());
    }
    Value::Object(metadata)
}

/// A list of decoded objects in the form that was asked for.
pub(crate) fn respond(
    call: &Call,
    code: StatusCode,
    objects: &[Value],
    page: &Page,
) -> Result<Response<Body>, Status> {
    let served = &call.served;
    let list = match &call.accepted.form {
        Form::Object => {
            let bare = |o: &Value| if served.head.is_empty() { o.clone() } else { without_type(o.clone()) };
            let items: Vec<Value> = objects.iter().map(bare).collect();
            json!({"kind": served.def.list_kind, "apiVersion": served.api_version, "metadata": metadata(page), "items": items})
        }
        Form::Table(version) => {
            let include = tables::Include::of(&call.query)?;
            let objects: Vec<&Value> = objects.iter().collect();
            tables::table(served, version, &objects, metadata(page), include, call.cx.now)
        }
        Form::Partial(version) | Form::PartialList(version) => {
            let items: Vec<Value> = objects.iter().map(|o| tables::partial(o, version)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata(page), "items": items})
        }
        Form::Discovery(_) => return Err(crate::errors::not_acceptable_form()),
    };
    Ok(answers::encoded(code, call.accepted.encoding, &list))
}

fn without_type(mut obj: Value) -> Value {
    if let Some(map) = obj.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    obj
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens() {
        let token = continue_token(7, "/registry/core/configmaps/ns/", b"/registry/core/configmaps/ns/a");
        assert_eq!(
            read_token(&token, "/registry/core/configmaps/ns/"),
            Ok((Some(7), b"/registry/core/configmaps/ns/a".to_vec()))
        );
        assert!(read_token("garbage", "/x/").is_err());
        let version = "eyJ2IjoibWV0YS5rOHMuaW8vdjIiLCJydiI6MSwic3RhcnQiOiJ4In0";
        assert_eq!(
            read_token(version, "/x/"),
            Err("continue key is not valid: server does not recognize this encoded version meta.k8s.io/v2"
                .into())
        );
    }
}
