//! The checks that every kind passes, in the order in which an object lives.

use serde_json::Value;

use super::client::{Answer, Client};
use super::kind::{Kind, lacks};
use super::{deletion, reading, writing};

/// What was found wrong with a kind.
#[derive(Default)]
pub struct Findings(Vec<String>);

impl Findings {
    /// Notes what is wrong unless something holds.
    pub fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) -> bool {
        if !holds {
            self.0.push(what());
        }
        holds
    }

    /// Notes an answer with another code; the body, where the code is right.
    pub fn code(&mut self, what: &str, wanted: u16, answer: Answer) -> Option<Value> {
        let (code, body) = answer;
        let fits = self.expect(code == wanted, || {
            format!("{what}: {code} instead of {wanted}: {}", body["message"].as_str().unwrap_or(""))
        });
        fits.then_some(body)
    }

    /// Notes what of `wanted` is not in `found`.
    pub fn contains(&mut self, what: &str, wanted: &Value, found: &Value) {
        let mut lacking = Vec::new();
        lacks("", wanted, found, &mut lacking);
        self.0.extend(lacking.into_iter().map(|l| format!("{what}: {l}")));
    }
}

/// Everything that is wrong with a kind.
pub async fn all(client: &Client, kind: &Kind) -> Vec<String> {
    let mut found = Findings::default();
    if kind.has("get") {
        let before = reading::revision(client, kind).await;
        if let Some(made) = writing::create(client, kind, &mut found).await {
            reading::one(client, kind, &made, &mut found).await;
            writing::update(client, kind, &mut found).await;
            writing::patch(client, kind, &mut found).await;
            writing::status(client, kind, &mut found).await;
            reading::lists(client, kind, &mut found).await;
            reading::tables(client, kind, &mut found).await;
            deletion::one(client, kind, &mut found).await;
            reading::watches(client, kind, &before, &mut found).await;
            deletion::many(client, kind, &mut found).await;
        }
        reading::documents(client, kind, &mut found).await;
    } else if kind.resource == "v1/bindings" {
        // Needs a pod that is not bound; tests/lifecycle.rs has one.
        found.code("create", 404, client.post(&kind.path, &kind.object).await);
    } else {
        found.code("create", 201, client.post(&kind.path, &kind.object).await);
        found.code("list", 405, client.get(&kind.path).await);
    }
    found.0
}
