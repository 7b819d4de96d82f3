//! Endpoints: the old form of EndpointSlice, kept for clients that still read it.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::check::{self, Cidr};
use crate::options::RegistryOptions;
use crate::table::{self, or_none};
use crate::value::{items, items_mut, number, set_default, text};

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::string(
        "Endpoints",
        "The set of all endpoints is the union of all subsets. Addresses are placed into subsets according to the IPs they share. A single address with multiple ports, some of which are ready and some of which are not (because they come from different containers) will result in the address being displayed in different subsets for the different ports. No address will appear in both Addresses and NotReadyAddresses in the same subset. Sets of addresses and ports that comprise a service.",
    ),
    table::AGE,
];

/// The resource.
pub fn resource(options: &RegistryOptions) -> ResourceDef {
    let strategy = Endpoints { own: options.loopback_endpoints() };
    ResourceDef::new("", "v1", "Endpoints", "endpoints", Arc::new(strategy)).short_names(&["ep"])
}

struct Endpoints {
    own: Vec<Cidr>,
}

impl Strategy for Endpoints {
    fn default(&self, obj: &mut Value) {
        for subset in items_mut(obj, "subsets") {
            for port in items_mut(subset, "ports") {
                set_default(port, "protocol", "TCP");
            }
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        for (i, subset) in items(obj, "/subsets").iter().enumerate() {
            let path = Path::new("subsets").index(i);
            let (ready, waiting) = (items(subset, "/addresses"), items(subset, "/notReadyAddresses"));
            if ready.is_empty() && waiting.is_empty() {
                errors.push(Error::required(&path, "must specify `addresses` or `notReadyAddresses`"));
            }
            for (list, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
                for (j, address) in addresses.iter().enumerate() {
                    let path = path.child(list).index(j).child("ip");
                    check::non_special_ip(&mut errors, &path, text(address, "/ip"), &self.own);
                }
            }
            for (j, port) in items(subset, "/ports").iter().enumerate() {
                let path = path.child("ports").index(j);
                if items(subset, "/ports").len() > 1 && text(port, "/name").is_empty() {
                    errors.push(Error::required(&path.child("name"), ""));
                }
                check::port(&mut errors, &path.child("port"), number(port, "/port"));
                let protocol = text(port, "/protocol");
                check::one_of(&mut errors, &path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"], true);
            }
        }
        errors
    }

    fn deprecation(&self) -> Option<&str> {
        Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut all = Vec::new();
        for subset in items(obj, "/subsets") {
            for address in items(subset, "/addresses") {
                for port in items(subset, "/ports") {
                    all.push(format!("{}:{}", text(address, "/ip"), number(port, "/port")));
                }
            }
        }
        let more = all.len().saturating_sub(3);
        all.truncate(3);
        let mut words = all.join(",");
        if more > 0 {
            words.push_str(&format!(" + {more} more..."));
        }
        vec![table::name(obj), or_none(&words), table::age(obj, now)]
    }
}
