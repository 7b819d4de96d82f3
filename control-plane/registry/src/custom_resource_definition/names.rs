//! Which names a definition gets: those that no other definition of its group has. And its conditions.

use coracle_api::status::Status;
use coracle_api::time;
use coracle_apiserver::StrategyContext;
use serde_json::{Value, json};

use super::{GROUP, PLURAL};
use crate::value::{at, items, object, set, text};

/// Sets `status.acceptedNames` and the conditions NamesAccepted and Established.
pub(super) async fn accept(cx: &StrategyContext<'_>, definition: &mut Value) -> Result<(), Status> {
    let all = cx.objects.list(GROUP, PLURAL, None).await?;
    let wanted = at(definition, "/spec/names").clone();
    match conflict(definition, &all) {
        None => {
            if let Some(status) = object(definition, "status") {
                set(status, "acceptedNames", wanted);
            }
            set_condition(definition, "NamesAccepted", true, "NoConflicts", "no conflicts found");
            let words = "the initial names have been accepted";
            set_condition(definition, "Established", true, "InitialNamesAccepted", words);
        }
        Some((reason, words)) => {
            set_condition(definition, "NamesAccepted", false, reason, &words);
            if !is_established(definition) {
                let words = "not all names are accepted";
                set_condition(definition, "Established", false, "NotAccepted", words);
            }
        }
    }
    Ok(())
}

/// Whether names that were taken are free by now: whoever had them is gone, or has others.
pub(super) fn are_free_now(definition: &Value, all: &[Value]) -> bool {
    let conditions = items(definition, "/status/conditions");
    let refused = |c: &Value| text(c, "/type") == "NamesAccepted" && text(c, "/status") == "False";
    conditions.iter().any(refused) && conflict(definition, all).is_none()
}

/// Whether the kind is served.
pub(super) fn is_established(definition: &Value) -> bool {
    let conditions = items(definition, "/status/conditions");
    conditions.iter().any(|c| text(c, "/type") == "Established" && text(c, "/status") == "True")
}

/// What other definitions of its group have of the names that a definition wants.
fn conflict(definition: &Value, all: &[Value]) -> Option<(&'static str, String)> {
    let wanted = at(definition, "/spec/names");
    let same = |o: &Value, pointer: &str| text(o, pointer) == text(definition, pointer);
    let others = || all.iter().filter(|o| same(o, "/spec/group") && !same(o, "/metadata/name"));
    let resources = |names: &Value| -> Vec<String> {
        let short = items(names, "/shortNames").iter().filter_map(Value::as_str);
        let own = [text(names, "/plural"), text(names, "/singular")];
        own.into_iter().chain(short).filter(|n| !n.is_empty()).map(str::to_owned).collect()
    };
    let kinds = |names: &Value| [text(names, "/kind").to_owned(), text(names, "/listKind").to_owned()];
    let taken = || others().map(|o| at(o, "/status/acceptedNames"));
    let used = |name: &str| taken().any(|names| resources(names).iter().any(|n| n == name));
    let kind_used = |kind: &str| taken().any(|names| kinds(names).iter().any(|k| k == kind));
    let words = |name: &str| format!("{name:?} is already in use");
    let (plural, singular) = (text(wanted, "/plural"), text(wanted, "/singular"));
    if used(plural) {
        return Some(("PluralConflict", words(plural)));
    }
    if used(singular) {
        return Some(("SingularConflict", words(singular)));
    }
    if let Some(name) = items(wanted, "/shortNames").iter().filter_map(Value::as_str).find(|n| used(n)) {
        return Some(("ShortNamesConflict", words(name)));
    }
    for (pointer, reason) in [("/kind", "KindConflict"), ("/listKind", "ListKindConflict")] {
        let kind = text(wanted, pointer);
        if kind_used(kind) {
            return Some((reason, words(kind)));
        }
    }
    None
}

/// Sets a condition; the time of its last transition stays where the status stays.
pub(super) fn set_condition(definition: &mut Value, kind: &str, on: bool, reason: &str, words: &str) {
    let state = if on { "True" } else { "False" };
    let Some(status) = object(definition, "status") else { return };
    let mut conditions = items(status, "/conditions").to_vec();
    let was = conditions.iter().position(|c| text(c, "/type") == kind);
    let since = was.and_then(|i| conditions.get(i)).filter(|c| text(c, "/status") == state);
    let since = since.map(|c| text(c, "/lastTransitionTime").to_owned());
    let condition = json!({
        "type": kind, "status": state, "reason": reason, "message": words,
        "lastTransitionTime": since.unwrap_or_else(|| time::seconds(jiff::Timestamp::now())),
    });
    match was.and_then(|i| conditions.get_mut(i)) {
        Some(place) => *place = condition,
        None => conditions.push(condition),
    }
    set(status, "conditions", conditions);
}
