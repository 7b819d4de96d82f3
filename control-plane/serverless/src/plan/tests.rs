use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::*;
use crate::types::{Configuration, KnativeService, Revision, Route};

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a test's object")
}

fn hello(traffic: Value) -> KnativeService {
    object(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "shop", "uid": "1", "generation": 2,
                     "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "a"}},
        "spec": {
            "template": {
                "metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "0"}},
                "spec": {"containerConcurrency": 5, "containers": [{"image": "hello:v1", "env": [{"name": "A", "value": "b"}]}]}
            },
            "traffic": traffic
        }
    }))
}

fn now() -> Time {
    Time(jiff::Timestamp::UNIX_EPOCH)
}

fn configuration(generation: i64) -> Configuration {
    let mut configuration = service::configuration(&hello(json!([])));
    configuration.metadata.generation = Some(generation);
    configuration.metadata.uid = Some("2".into());
    configuration
}

fn revision() -> Revision {
    let mut revision = configuration::revision(&configuration(3));
    revision.metadata.uid = Some("3".into());
    revision
}

#[test]
fn a_service_makes_a_configuration_and_a_route() {
    let service = hello(json!([]));
    let configuration = service::configuration(&service);
    assert_eq!(configuration.spec.template, service.spec.template);
    assert_eq!(configuration.annotations().keys().collect::<Vec<_>>(), ["team"]);
    assert_eq!(configuration.owner_references().first().map(|owner| owner.kind.as_str()), Some("Service"));
    let route = service::route(&service);
    let all = serde_json::to_value(&route.spec.traffic).expect("traffic");
    assert_eq!(all, json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}]));
}

#[test]
fn a_revision_is_named_after_its_generation_or_as_the_template_says() {
    let revision = revision();
    assert_eq!(revision.name_any(), "hello-00003");
    assert_eq!(configuration::generation(&revision), 3);
    assert_eq!(revision.spec.container_concurrency, Some(5));
    let mut named = configuration(4);
    named.spec.template.metadata.name = Some("hello-blue".into());
    assert_eq!(configuration::revision(&named).name_any(), "hello-blue");
}

#[test]
fn a_deployment_tells_the_container_its_port_and_names() {
    let deployment = serde_json::to_value(revision::deployment(&revision())).expect("a Deployment");
    assert_eq!(deployment["metadata"]["name"], "hello-00003-deployment");
    assert_eq!(deployment["spec"]["replicas"], 1);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["name"], "user-container");
    assert_eq!(container["ports"], json!([{"containerPort": 8080}]));
    let env: HashMap<&str, &str> = container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?)))
        .collect();
    let wanted = [
        ("A", "b"),
        ("PORT", "8080"),
        ("K_REVISION", "hello-00003"),
        ("K_SERVICE", "hello"),
        ("K_CONFIGURATION", "hello"),
    ];
    assert_eq!(env, wanted.into());
    let service = serde_json::to_value(revision::service(&revision())).expect("a Service");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 8080);
    assert_eq!(service["metadata"]["annotations"]["serving.knative.dev/containerConcurrency"], "5");
}

#[test]
fn a_revision_stays_ready_without_pods() {
    let mut revision = revision();
    let mut deployment = revision::deployment(&revision);
    let waiting = revision::status(&revision, &deployment, &now());
    assert!(matches!(Standing::read(&waiting.conditions, "Ready"), Standing::Unknown(..)));
    deployment.status = Some(object(json!({"availableReplicas": 1})));
    let ready = revision::status(&revision, &deployment, &now());
    assert_eq!(Standing::read(&ready.conditions, "Ready"), Standing::True);
    revision.status = Some(ready);
    deployment.status = None;
    deployment.spec.as_mut().expect("a spec").replicas = Some(0);
    let idle = revision::status(&revision, &deployment, &now());
    assert_eq!(Standing::read(&idle.conditions, "Ready"), Standing::True);
    assert!(
        matches!(Standing::read(&idle.conditions, "Active"), Standing::False(reason, _) if reason == "NoTraffic")
    );
}

fn domains() -> route::Domains {
    route::Domains { outside: "example.com".into(), cluster: "cluster.local".into() }
}

#[test]
fn shares_lead_to_revisions_and_tags_to_names_of_their_own() {
    let service = hello(json!([
        {"revisionName": "hello-00001", "percent": 10, "tag": "old"},
        {"latestRevision": true, "percent": 90}
    ]));
    let route: Route = service::route(&service);
    let latest = [("hello".to_owned(), Some("hello-00002".to_owned()))].into();
    let resolved = route::resolve(&route, &latest, |name| name == "hello-00001");
    let ingress = route::ingress(&route, resolved.as_deref().expect("revisions"), &domains());
    let rules = serde_json::to_value(&ingress.spec.rules).expect("rules");
    assert_eq!(
        rules[0]["hosts"],
        json!(["hello.shop", "hello.shop.svc", "hello.shop.svc.cluster.local", "hello.shop.example.com"])
    );
    let splits = &rules[0]["http"]["paths"][0]["splits"];
    assert_eq!((&splits[0]["serviceName"], &splits[0]["percent"]), (&json!("hello-00001"), &json!(10)));
    assert_eq!((&splits[1]["serviceName"], &splits[1]["percent"]), (&json!("hello-00002"), &json!(90)));
    assert_eq!(rules[1]["hosts"][3], "old-hello.shop.example.com");
    let status = route::status(&route, &resolved, &domains(), &now());
    assert_eq!(status.url.as_deref(), Some("http://hello.shop.example.com"));
    assert_eq!(status.traffic[0].url.as_deref(), Some("http://old-hello.shop.example.com"));
    assert_eq!(status.traffic[1].revision_name.as_deref(), Some("hello-00002"));
}

#[test]
fn a_route_says_why_it_leads_nowhere() {
    let resolve = |traffic: Value, latest: Option<&str>| {
        let route = service::route(&hello(traffic));
        let latest = [("hello".to_owned(), latest.map(str::to_owned))].into();
        route::resolve(&route, &latest, |_| false)
    };
    assert!(matches!(resolve(json!([]), None), Err(Standing::Unknown("RevisionMissing", _))));
    let half = json!([{"latestRevision": true, "percent": 50}]);
    assert!(
        matches!(resolve(half, Some("a")), Err(Standing::False(reason, _)) if reason == "InvalidTraffic")
    );
    let unknown = json!([{"revisionName": "gone", "percent": 100}]);
    assert!(
        matches!(resolve(unknown, Some("a")), Err(Standing::False(reason, _)) if reason == "RevisionMissing")
    );
}

#[test]
fn gateways_of_one_port_share_a_slice() {
    let route = service::route(&hello(json!([])));
    let gateways =
        ["127.0.1.1:80", "127.0.2.1:80", "127.0.3.1:8080"].map(|text| text.parse().expect("an address"));
    let slices = route::slices(&route, &gateways);
    let names: Vec<_> = slices.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["hello-gateway-80", "hello-gateway-8080"]);
    assert_eq!(slices[0].endpoints.as_ref().map(Vec::len), Some(2));
}
