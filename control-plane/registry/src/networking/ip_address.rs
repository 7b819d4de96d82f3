//! IPAddress: that an address is in use, and by whom. Those of Services are written with the claim of the address.

use std::net::IpAddr;
use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, text};
use crate::{check, table};

/// The plural.
pub const PLURAL: &str = "ipaddresses";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const PARENT: &str = "IPAddress references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.";

static COLUMNS: [Column; 2] = [table::NAME, table::string("ParentRef", PARENT)];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "IPAddress", PLURAL, Arc::new(IpAddress))
        .cluster_scoped()
        .short_names(&["ip"])
}

/// The object that says that a Service holds an address, as it is new.
pub fn of_service(ip: IpAddr, namespace: &str, name: &str, now: Timestamp) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": ip.to_string(), "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": coracle_api::time::seconds(now), "generation": 1,
            "labels": {MANAGED_BY: ALLOCATOR, FAMILY: if ip.is_ipv4() { "IPv4" } else { "IPv6" }},
        },
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}},
    })
}

/// Whether it was written with a Service's claim, so that the claim says whose it is.
pub fn is_of_services(obj: &Value) -> bool {
    coracle_api::meta::labels(obj).any(|(key, value)| key == MANAGED_BY && value == ALLOCATOR)
}

struct IpAddress;

impl Strategy for IpAddress {
    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        match name.parse::<IpAddr>() {
            _ if prefix => vec!["an address has no prefix: set metadata.name".into()],
            Ok(ip) if ip.to_string() == name => Vec::new(),
            Ok(ip) => vec![format!("must be in canonical form ({:?})", ip.to_string())],
            Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
        }
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("spec").child("parentRef");
        let parent = at(obj, "/spec/parentRef");
        if parent.is_null() {
            errors.push(Error::required(&path, ""));
            return errors;
        }
        for field in ["resource", "name"] {
            if text(parent, &format!("/{field}")).is_empty() {
                errors.push(Error::required(&path.child(field), ""));
            }
        }
        let group = text(parent, "/group");
        if !group.is_empty() {
            let wrong = coracle_api::meta::validation::dns1123_subdomain(group);
            check::words(&mut errors, &path.child("group"), group, wrong);
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let pointer = "/spec/parentRef";
        check::immutable(
            &mut errors,
            &Path::new("spec").child("parentRef"),
            at(new, pointer),
            at(old, pointer),
        );
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, _now: Timestamp) -> Vec<Value> {
        let parent = at(obj, "/spec/parentRef");
        let (group, resource) = (text(parent, "/group"), text(parent, "/resource"));
        let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
        let parts = [resource.as_str(), text(parent, "/namespace"), text(parent, "/name")];
        let parts: Vec<&str> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        vec![table::name(obj), table::or_none(&parts.join("/"))]
    }
}
