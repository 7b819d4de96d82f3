//! PriorityLevelConfiguration: the seats and queues of a level.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_api::Status;
use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{GROUP, defaults};
use crate::table;
use crate::value::{at, maybe_number, number, object, present, reset, same, set_default_number, text};

const MOST_QUEUES: i64 = 10_000_000;

static COLUMNS: [Column; 7] = [
    table::NAME,
    table::string("Type", "Whether the level has limits."),
    table::string("NominalConcurrencyShares", "The level's part of all seats."),
    table::string("Queues", "How many queues it has."),
    table::string("HandSize", "How many of them a flow is dealt."),
    table::string("QueueLengthLimit", "How many calls wait in one."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(PriorityLevel);
    ResourceDef::new(GROUP, "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations", strategy)
        .cluster_scoped()
        .subresource(Subresource::status("PriorityLevelConfiguration"))
}

struct PriorityLevel;

#[async_trait]
impl Strategy for PriorityLevel {
    async fn prepare_for_create(&self, _: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = obj.get_mut("spec").filter(|s| s.is_object()) else { return };
        if text(spec, "/type") == "Exempt"
            && let Some(exempt) = object(spec, "exempt")
        {
            set_default_number(exempt, "nominalConcurrencyShares", 0);
            set_default_number(exempt, "lendablePercent", 0);
        }
        if let Some(limited) = spec.get_mut("limited").filter(|l| l.is_object()) {
            set_default_number(limited, "nominalConcurrencyShares", 30);
            set_default_number(limited, "lendablePercent", 0);
            if let Some(queuing) = limited.pointer_mut("/limitResponse/queuing").filter(|q| q.is_object()) {
                for (field, default) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    if number(queuing, &format!("/{field}")) == 0 {
                        crate::value::remove(queuing, field);
                        set_default_number(queuing, field, default);
                    }
                }
            }
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let (spec, path, mut errors) = (at(obj, "/spec"), Path::new("spec"), Vec::new());
        let (name, kind) = (text(obj, "/metadata/name"), text(spec, "/type"));
        if (name == "exempt") != (kind == "Exempt") {
            let words = "type must be 'Exempt' if and only if `name` is 'exempt'";
            errors.push(Error::invalid(&path.child("type"), kind, words));
        }
        match kind {
            "Exempt" => {
                if present(spec, "/limited") {
                    let words = "must be nil if the type is not Limited";
                    errors.push(Error::forbidden(&path.child("limited"), words));
                }
                percent(&mut errors, at(spec, "/exempt"), &path.child("exempt"));
            }
            "Limited" => {
                if present(spec, "/exempt") {
                    errors
                        .push(Error::forbidden(&path.child("exempt"), "must be nil if the type is Limited"));
                }
                if present(spec, "/limited") {
                    limited(&mut errors, at(spec, "/limited"), &path.child("limited"));
                } else {
                    let words = "must not be empty when type is Limited";
                    errors.push(Error::required(&path.child("limited"), words));
                }
            }
            other => errors.push(Error::not_supported(&path.child("type"), other, &["Exempt", "Limited"])),
        }
        if name == "catch-all"
            && errors.is_empty()
            && !defaults::level(name).is_some_and(|fixed| same(&fixed, spec))
        {
            let words = format!("spec of '{name}' must equal the fixed value");
            errors.push(Error::invalid(&path, spec.clone(), words));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let shares = maybe_number(obj, "/spec/limited/nominalConcurrencyShares")
            .or_else(|| maybe_number(obj, "/spec/exempt/nominalConcurrencyShares"));
        let cell = |n: Option<i64>| n.map_or_else(|| Value::from("<none>"), Value::from);
        let queuing =
            |field: &str| cell(maybe_number(obj, &format!("/spec/limited/limitResponse/queuing/{field}")));
        vec![
            table::name(obj),
            text(obj, "/spec/type").into(),
            cell(shares),
            queuing("queues"),
            queuing("handSize"),
            queuing("queueLengthLimit"),
            table::age(obj, now),
        ]
    }
}

fn percent(errors: &mut Vec<Error>, of: &Value, path: &Path) {
    let shares = number(of, "/nominalConcurrencyShares");
    if shares < 0 {
        let words = "must be a non-negative integer";
        errors.push(Error::invalid(&path.child("nominalConcurrencyShares"), shares, words));
    }
    let lent = number(of, "/lendablePercent");
    if !(0..=100).contains(&lent) {
        let words = "must be between 0 and 100, inclusive";
        errors.push(Error::invalid(&path.child("lendablePercent"), lent, words));
    }
}

fn limited(errors: &mut Vec<Error>, limited: &Value, path: &Path) {
    percent(errors, limited, path);
    if let Some(borrowed) = maybe_number(limited, "/borrowingLimitPercent").filter(|n| *n < 0) {
        let words = "if specified, must be a non-negative integer";
        errors.push(Error::invalid(&path.child("borrowingLimitPercent"), borrowed, words));
    }
    let (response, path) = (at(limited, "/limitResponse"), path.child("limitResponse"));
    let queuing = path.child("queuing");
    match (text(response, "/type"), present(response, "/queuing")) {
        ("Reject", true) => errors
            .push(Error::forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited")),
        ("Reject", false) => {}
        ("Queue", true) => shape(errors, at(response, "/queuing"), &queuing),
        ("Queue", false) => errors
            .push(Error::required(&queuing, "must not be empty if limited.limitResponse.type is Limited")),
        (other, _) => {
            errors.push(Error::not_supported(&path.child("type"), other, &["Queue", "Reject"]));
        }
    }
}

fn shape(errors: &mut Vec<Error>, queuing: &Value, path: &Path) {
    for field in ["queueLengthLimit", "queues", "handSize"] {
        let n = number(queuing, &format!("/{field}"));
        if n <= 0 {
            errors.push(Error::invalid(&path.child(field), n, "must be positive"));
        }
    }
    let (queues, hand) = (number(queuing, "/queues"), number(queuing, "/handSize"));
    if queues > MOST_QUEUES {
        let words = format!("must not be greater than {MOST_QUEUES}");
        errors.push(Error::invalid(&path.child("queues"), queues, words));
    }
    if hand > queues {
        let words = format!("should not be greater than queues ({queues})");
        errors.push(Error::invalid(&path.child("handSize"), hand, words));
    }
}
