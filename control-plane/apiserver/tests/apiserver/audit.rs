//! The audit log: levels, stages, bodies, annotations.

use std::sync::Arc;

use coracle_apiserver::audit::{Audit, LogFile};
use coracle_apiserver::{ApiServer, UserInfo};
use coracle_store::{Options, Store};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::fixture::*;

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  nonResourceURLs: ["/livez"]
- level: RequestResponse
  omitManagedFields: true
  verbs: [create, delete]
  resources: [{group: "", resources: [configmaps]}]
- level: Request
  verbs: [patch]
- level: Metadata
"#;

struct Audited {
    server: ApiServer,
    audit: Arc<Audit>,
    dir: tempfile::TempDir,
}

fn start() -> Audited {
    let dir = tempfile::tempdir().expect("dir");
    let policy = dir.path().join("policy.yaml");
    std::fs::write(&policy, POLICY).expect("policy");
    let file =
        LogFile { path: dir.path().join("audit.log"), max_age_days: 0, max_backups: 0, max_size_mib: 0 };
    let audit = Audit::open(&policy, file).expect("audit");
    let server = ApiServer::builder(Arc::new(Store::in_memory(&Options::new("unused"))))
        .resources(resources())
        .audit(audit.clone())
        .build();
    Audited { server, audit, dir }
}

impl Audited {
    async fn events(&self) -> Vec<Value> {
        self.audit.flush().await;
        let text = std::fs::read_to_string(self.dir.path().join("audit.log")).expect("log");
        text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }
}

fn text<'a>(event: &'a Value, pointer: &str) -> &'a str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

#[tokio::test]
async fn calls_are_told_as_the_policy_says() {
    let s = start();
    let obj = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
    assert_eq!(call(&s.server, "POST", CONFIG_MAPS, obj).await.code, 201);
    assert_eq!(
        call(&s.server, "PATCH", &format!("{CONFIG_MAPS}/a"), json!({"data": {"k": "w"}})).await.code,
        200
    );
    assert_eq!(get(&s.server, &format!("{CONFIG_MAPS}/none?x=1")).await.code, 404);
    assert_eq!(get(&s.server, "/livez").await.code, 200);
    assert_eq!(get(&s.server, "/version").await.code, 200);
    let events = s.events().await;
    assert_eq!(events.len(), 4, "{events:#?}");
    let created = &events[0];
    for (pointer, wanted) in [
        ("/kind", "Event"),
        ("/apiVersion", "audit.k8s.io/v1"),
        ("/level", "RequestResponse"),
        ("/stage", "ResponseComplete"),
        ("/verb", "create"),
        ("/requestURI", CONFIG_MAPS),
        ("/user/username", "admin"),
        ("/sourceIPs/0", "127.0.0.1"),
        ("/objectRef/resource", "configmaps"),
        ("/objectRef/namespace", "n"),
        ("/objectRef/name", "a"),
        ("/objectRef/apiVersion", "v1"),
        ("/requestObject/data/k", "v"),
        ("/responseObject/metadata/namespace", "n"),
        ("/annotations/authorization.k8s.io~1decision", "allow"),
    ] {
        assert_eq!(text(created, pointer), wanted, "{pointer}: {created:#}");
    }
    assert_eq!(created.pointer("/responseStatus/code"), Some(&json!(201)));
    assert!(created.pointer("/responseObject/metadata/managedFields").is_none(), "{created:#}");
    assert_eq!(text(created, "/auditID").len(), 36);
    assert!(text(created, "/requestReceivedTimestamp") <= text(created, "/stageTimestamp"));
    let patched = &events[1];
    assert_eq!(text(patched, "/requestObject/data/k"), "w");
    assert!(patched.get("responseObject").is_none());
    let missed = &events[2];
    assert_eq!((text(missed, "/level"), text(missed, "/responseStatus/reason")), ("Metadata", "NotFound"));
    assert!(missed.get("requestObject").is_none() && missed.get("responseObject").is_none());
    assert_eq!(text(&events[3], "/requestURI"), "/version");
    assert!(events[3].get("objectRef").is_none());
}

#[tokio::test]
async fn who_acts_for_others_and_who_may_not_is_told() {
    let s = start();
    let mut asked = request("GET", CONFIG_MAPS, "", axum::body::Body::empty());
    asked.headers_mut().insert("impersonate-user", "jane".parse().expect("header"));
    asked.headers_mut().insert("user-agent", "kubectl/v1.36.2".parse().expect("header"));
    assert_eq!(send(&s.server, asked).await.status(), 403);
    let events = s.events().await;
    let event = events.last().expect("event");
    for (pointer, wanted) in [
        ("/user/username", "admin"),
        ("/impersonatedUser/username", "jane"),
        ("/userAgent", "kubectl/v1.36.2"),
        ("/annotations/authorization.k8s.io~1decision", "forbid"),
        ("/responseStatus/reason", "Forbidden"),
    ] {
        assert_eq!(text(event, pointer), wanted, "{pointer}: {event:#}");
    }
    let jane = s.server.service_as(UserInfo::new("jane", &["devs"]));
    let refused = jane.oneshot(request("GET", CONFIG_MAPS, "", axum::body::Body::empty())).await;
    assert_eq!(refused.expect("infallible").status(), 403);
    let events = s.events().await;
    assert_eq!(text(events.last().expect("event"), "/user/groups/0"), "devs");
}

#[tokio::test]
async fn a_watch_is_told_when_it_begins_and_when_it_ends() {
    let s = start();
    let path = format!("{CONFIG_MAPS}?watch=true&timeoutSeconds=1");
    let watch = send(&s.server, request("GET", &path, "", axum::body::Body::empty())).await;
    let events = s.events().await;
    let stages =
        |events: &[Value]| -> Vec<String> { events.iter().map(|e| text(e, "/stage").to_owned()).collect() };
    assert_eq!(stages(&events), ["ResponseStarted"]);
    drop(watch);
    let events = s.events().await;
    assert_eq!(stages(&events), ["ResponseStarted", "ResponseComplete"]);
    assert_eq!(text(&events[0], "/auditID"), text(&events[1], "/auditID"));
    assert_eq!(text(&events[0], "/verb"), "watch");
}
