//! Exchanges recorded from a Kubernetes 1.36.2 API server, replayed against decoding and patching. They lie beside the
//! repository, in `../shared/facts`.

#[path = "golden/recorded.rs"]
mod recorded;
#[path = "golden/typed.rs"]
mod typed;

use coracle_api::patch::{Patch, PatchType};
use coracle_api::schema::{self, Input, Validation};
use recorded::{Exchange, exchanges};
use serde_json::Value;

const TOPICS: [&str; 6] =
    ["01-crud", "02-defaulting", "03-validation", "04-patch", "05-lists", "06-subresources"];

/// What a real server writes must survive decoding unchanged: it tells which empty fields Kubernetes keeps.
#[test]
fn answers_decode_to_themselves() {
    let mut wrong = Vec::new();
    let mut objects = 0;
    for exchange in TOPICS.iter().flat_map(|t| exchanges(t)) {
        for object in exchange.objects() {
            let Some(ty) = schema::for_gvk(&coracle_api::Gvk::of(&object)) else { continue };
            objects += 1;
            let concrete = recorded::concrete(&object);
            match schema::decode_value(ty, &concrete) {
                Ok((decoded, problems)) => {
                    for difference in recorded::differences(&decoded, &concrete) {
                        wrong.push(format!("{}: {} {difference}", exchange.name, ty.short_name()));
                    }
                    wrong.extend(problems.into_iter().map(|p| format!("{}: {p}", exchange.name)));
                }
                Err(e) => wrong.push(format!("{}: {e}", exchange.name)),
            }
        }
    }
    assert!(objects > 300, "only {objects} objects were found");
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

fn validation(exchange: &Exchange) -> Validation {
    Validation::parse(exchange.query("fieldValidation").as_deref().unwrap_or("")).unwrap_or_default()
}

/// Bodies that the server could not decode are refused in the same words; all others decode.
#[test]
fn bodies_are_decoded_or_refused_alike() {
    let mut wrong = Vec::new();
    let (mut accepted, mut refused) = (0, 0);
    for exchange in TOPICS.iter().flat_map(|t| exchanges(t)) {
        if !matches!(exchange.method.as_str(), "POST" | "PUT")
            || exchange.body.is_empty() && exchange.status != 400
        {
            continue;
        }
        let Some(expected) = exchange.kind() else { continue };
        if exchange.status == 415 {
            continue;
        }
        let input = if exchange.content_type.contains("yaml") {
            Input::Yaml(exchange.body.as_bytes())
        } else {
            Input::Json(exchange.body.as_bytes())
        };
        let ours = schema::decode(&expected, input, validation(&exchange));
        let message = exchange.response["message"].as_str().unwrap_or_default();
        let theirs = exchange.status == 400
            && (message.contains("cannot be handled as a")
                || message.contains("the object provided is unrecognized"));
        match (theirs, ours) {
            (true, Err(status)) if status.message == message && status.code == 400 => refused += 1,
            (true, other) => wrong.push(format!("{}: wanted {message:?}, got {other:?}", exchange.name)),
            (false, Err(status)) => wrong.push(format!("{}: refused: {}", exchange.name, status.message)),
            (false, Ok(decoded)) => {
                accepted += 1;
                let theirs: Vec<String> =
                    exchange.warnings().into_iter().filter(|w| w.contains("field \"")).collect();
                if exchange.status < 300 && theirs != decoded.warnings {
                    wrong
                        .push(format!("{}: warnings {theirs:?}, ours {:?}", exchange.name, decoded.warnings));
                }
            }
        }
    }
    assert!(accepted > 150 && refused > 12, "only {accepted} accepted and {refused} refused");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Fields that the server fills in after a patch.
const DEFAULTED: [&str; 10] = [
    "imagePullPolicy",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "protocol",
    "defaultMode",
    "progressDeadlineSeconds",
    "generation",
    "managedFields",
    "resourceVersion",
    ".status",
];

/// Patches of the recording, each applied to the object as the recording last showed it.
#[test]
fn patches_apply_alike() {
    let mut last: std::collections::HashMap<String, Value> = Default::default();
    let mut wrong = Vec::new();
    let (mut applied, mut refused) = (0, 0);
    for exchange in exchanges("04-patch") {
        let path = exchange.object_path();
        let patch = PatchType::from_content_type(&exchange.content_type)
            .filter(|_| exchange.method == "PATCH" && exchange.query("force").is_none());
        if let (Some(kind), Some(target)) = (patch, last.get(&path)) {
            let gvk = coracle_api::Gvk::of(target);
            let ty = schema::for_gvk(&gvk).unwrap();
            let ours = Patch::parse(kind, exchange.body.as_bytes())
                .and_then(|p| p.apply(target, ty))
                .and_then(|v| schema::decode_patched(&gvk, &recorded::concrete(&v), validation(&exchange)));
            let message = exchange.response["message"].as_str().unwrap_or_default();
            match ours {
                Ok(decoded) if exchange.status == 200 => {
                    applied += 1;
                    for d in recorded::differences(&decoded.object, &recorded::concrete(&exchange.response)) {
                        if !DEFAULTED.iter().any(|f| d.contains(f)) {
                            wrong.push(format!("{}: {d}", exchange.name));
                        }
                    }
                }
                // Later checks refuse these: names, validation, revisions.
                Ok(_) if !message.contains("patch") && matches!(exchange.status, 400 | 409 | 422) => {}
                Err(ours) if exchange.status == ours.code => {
                    refused += 1;
                    let shown_object = message.contains("patch: Invalid value");
                    let tail = |m: &str| m.rsplit("\": ").next().unwrap_or_default().to_string();
                    let same = if shown_object {
                        tail(&ours.message) == tail(message)
                    } else {
                        ours.message == message
                    };
                    if !same || ours.reason != exchange.response["reason"].as_str().unwrap_or_default() {
                        wrong.push(format!(
                            "{}: wanted {message:?}, got {:?} {:?}",
                            exchange.name, ours.reason, ours.message
                        ));
                    }
                }
                other => wrong.push(format!(
                    "{}: wanted {} {message:?}, got {other:?}",
                    exchange.name, exchange.status
                )),
            }
        }
        if exchange.status < 300
            && exchange.query("dryRun").is_none()
            && exchange.response["metadata"].is_object()
        {
            last.insert(path, exchange.response);
        }
    }
    assert!(applied > 25 && refused > 10, "only {applied} applied and {refused} refused");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

/// Selectors of the recording are read, or refused in the same words.
#[test]
fn selectors_are_read_alike() {
    let mut wrong = Vec::new();
    let (mut read, mut refused) = (0, 0);
    for exchange in TOPICS.iter().flat_map(|t| exchanges(t)) {
        let decode = |v: String| recorded::percent_decode(&v);
        let labels = exchange
            .query("labelSelector")
            .map(decode)
            .map(|s| coracle_api::labels::Selector::parse(&s).map(drop));
        let fields = exchange
            .query("fieldSelector")
            .map(decode)
            .map(|s| coracle_api::fields::Selector::parse(&s).map(drop));
        for outcome in [labels, fields].into_iter().flatten() {
            let message = exchange.response["message"].as_str().unwrap_or_default();
            match outcome {
                Ok(())
                    if exchange.status == 200
                        || message.contains("field selector: only")
                        || message.contains("not supported") =>
                {
                    read += 1
                }
                Ok(()) if exchange.status != 400 || message.contains("Table") => {}
                Err(status) if status.message == message && exchange.status == status.code => refused += 1,
                other => wrong.push(format!(
                    "{}: wanted {} {message:?}, got {other:?}",
                    exchange.name, exchange.status
                )),
            }
        }
    }
    assert!(read > 20 && refused > 8, "only {read} read and {refused} refused");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}
