//! APIService of `apiregistration.k8s.io`: who serves a group and version, this server or a Service.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, flag, items, number, present, reset, set_default_number, text};
use crate::{check, table};

/// The group.
pub const GROUP: &str = "apiregistration.k8s.io";
/// The plural.
pub const PLURAL: &str = "apiservices";
const HTTPS: i64 = 443;

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("Service", "The reference to the service that hosts this API endpoint."),
    table::string("Available", "Whether this service is available."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(GROUP, "v1", "APIService", PLURAL, Arc::new(ApiService))
        .cluster_scoped()
        .categories(&["api-extensions"])
        .subresource(Subresource::status("APIService"))
}

struct ApiService;

fn within(errors: &mut Vec<Error>, obj: &Value, field: &'static str, max: i64) {
    let value = number(obj, &format!("/spec/{field}"));
    if !(1..=max).contains(&value) {
        let words = format!("must be positive and less than {max}");
        errors.push(Error::invalid(&Path::new("spec").child(field), value, words));
    }
}

fn service(errors: &mut Vec<Error>, obj: &Value) {
    let spec = Path::new("spec");
    let trusts = flag(obj, "/spec/insecureSkipTLSVerify");
    let bundle = present(obj, "/spec/caBundle");
    if !present(obj, "/spec/service") {
        if trusts {
            let words = "local APIServices may not specify insecureSkipTLSVerify";
            errors.push(Error::invalid(&spec.child("insecureSkipTLSVerify"), true, words));
        }
        if bundle {
            let words = "local APIServices may not specify caBundle";
            errors.push(Error::invalid(&spec.child("caBundle"), at(obj, "/spec/caBundle").clone(), words));
        }
        return;
    }
    let path = spec.child("service");
    for field in ["namespace", "name"] {
        if text(obj, &format!("/spec/service/{field}")).is_empty() {
            errors.push(Error::required(&path.child(field), ""));
        }
    }
    check::port(errors, &path.child("port"), number(obj, "/spec/service/port"));
    if trusts && bundle {
        let words = "may not be true if caBundle is present";
        errors.push(Error::invalid(&spec.child("insecureSkipTLSVerify"), true, words));
    }
}

#[async_trait::async_trait]
impl Strategy for ApiService {
    fn default(&self, obj: &mut Value) {
        if let Some(service) = obj.pointer_mut("/spec/service").filter(|s| s.is_object()) {
            set_default_number(service, "port", HTTPS);
        }
    }

    /// That of the core group is called `v1.`.
    fn validate_name(&self, name: &str, _prefix: bool) -> Vec<String> {
        rules::path_segment(name)
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        let (group, version) = (text(obj, "/spec/group"), text(obj, "/spec/version"));
        let wanted = format!("{version}.{group}");
        let name = text(obj, "/metadata/name");
        if name != wanted {
            let words = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            errors.push(Error::invalid(&Path::new("metadata").child("name"), name, words));
        }
        if !group.is_empty() {
            check::words(&mut errors, &spec.child("group"), group, rules::dns1123_subdomain(group));
        }
        check::words(&mut errors, &spec.child("version"), version, rules::dns1035_label(version));
        within(&mut errors, obj, "groupPriorityMinimum", 20_000);
        within(&mut errors, obj, "versionPriority", 1_000);
        service(&mut errors, obj);
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let service = match present(obj, "/spec/service") {
            true => format!("{}/{}", text(obj, "/spec/service/namespace"), text(obj, "/spec/service/name")),
            false => "Local".into(),
        };
        let found = items(obj, "/status/conditions").iter().find(|c| text(c, "/type") == "Available");
        let available = match found.map(|c| (text(c, "/status"), text(c, "/reason"))) {
            Some(("True", _)) => "True".into(),
            Some((status, reason)) => format!("{status} ({reason})"),
            None => "Unknown".into(),
        };
        vec![table::name(obj), service.into(), available.into(), table::age(obj, now)]
    }
}
