//! How long a call may take, and who may call without saying who he is.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_api::Status;
use coracle_apiserver::authn::Anonymous;
use coracle_apiserver::{Admission, ApiServer, Attributes};
use coracle_store::{Options, Store};
use serde_json::{Value, json};

use crate::fixture::*;

/// Thinks about creates for ever.
struct Undecided;

#[async_trait]
impl Admission for Undecided {
    fn name(&self) -> &'static str {
        "Undecided"
    }

    async fn admit(&self, _: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        if obj.is_some() { std::future::pending().await } else { Ok(()) }
    }
}

#[tokio::test]
async fn a_call_has_the_time_that_it_asks_for() {
    let store = Store::in_memory(&Options::new("unused"));
    let s = ApiServer::builder(Arc::new(store)).resources(resources()).admission(Arc::new(Undecided)).build();
    let object = json!({"metadata": {"name": "a"}});
    let late = call(&s, "POST", &format!("{CONFIG_MAPS}?timeout=50ms"), object.clone()).await;
    assert_eq!((late.code, late.text("/reason")), (504, "Timeout"), "{}", late.body);
    assert!(late.message().contains("request did not complete within the allotted timeout"), "{}", late.body);
    assert_eq!(get(&s, &format!("{CONFIG_MAPS}/a?timeout=5s")).await.code, 404);
    let wrong = call(&s, "POST", &format!("{CONFIG_MAPS}?timeout=soon"), object).await;
    assert_eq!((wrong.code, wrong.text("/reason")), (400, "BadRequest"), "{}", wrong.body);
}

#[test]
fn who_says_nothing_is_nobody_or_anonymous() {
    let some = Anonymous::Paths(vec!["/livez".into(), "/readyz".into()]);
    for (anonymous, livez, below, pods) in [
        (Anonymous::Nobody, false, false, false),
        (Anonymous::Everywhere, true, true, true),
        (some, true, false, false),
    ] {
        assert_eq!(anonymous.may_call("/livez"), livez, "{anonymous:?}");
        assert_eq!(anonymous.may_call("/livez/ping"), below, "{anonymous:?}");
        assert_eq!(anonymous.may_call("/api/v1/pods"), pods, "{anonymous:?}");
    }
}
