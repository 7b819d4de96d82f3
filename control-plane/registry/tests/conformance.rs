//! What every kind that is served must do, in the words of Kubernetes' conformance tests: one list of checks, one valid object of
//! each kind (`conformance/manifests.yaml`). And that every resource of Kubernetes is served (`conformance/missing.txt`).

mod conformance {
    pub mod checks;
    pub mod client;
    pub mod deletion;
    pub mod kind;
    pub mod missing;
    pub mod reading;
    pub mod writing;
}

use conformance::{checks, client::Client, kind::Kind, missing};

#[tokio::test]
async fn every_kind_that_is_served_does_what_kinds_do() {
    let client = Client::new().await;
    let kinds = Kind::served(&client).await;
    let only = std::env::var("CONFORMANCE_ONLY").unwrap_or_default();
    let mut wrong = Vec::new();
    for kind in kinds.iter().filter(|kind| kind.resource.contains(&only)) {
        match kind {
            Kind { object: serde_json::Value::Null, .. } => {
                wrong.push(format!("{}: no manifest in conformance/manifests.yaml", kind.resource));
            }
            kind => {
                let found = checks::all(&client, kind).await;
                wrong.extend(found.into_iter().map(|w| format!("{}: {w}", kind.resource)));
            }
        }
    }
    assert!(kinds.len() > 50, "{} kinds", kinds.len());
    assert!(wrong.is_empty(), "{} of {} kinds:\n{}", wrong.len(), kinds.len(), wrong.join("\n"));
}

#[tokio::test]
async fn what_is_served_here_has_an_apiservice() {
    let client = Client::new().await;
    for name in ["v1.", "v1.apps", "v1.resource.k8s.io"] {
        let path = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}");
        client.until(&path, 200).await;
        let available = async {
            loop {
                let (_, service) = client.get(&path).await;
                if service["status"]["conditions"][0]["reason"] == "Local" {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        let done = tokio::time::timeout(std::time::Duration::from_secs(5), available).await;
        assert!(done.is_ok(), "{name} is not available");
    }
}

#[tokio::test]
async fn every_resource_of_kubernetes_is_served() {
    let wrong = missing::differences(&Client::new().await).await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
