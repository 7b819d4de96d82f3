//! NetworkPolicy.

use std::net::IpAddr;
use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::check::{self, Cidr};
use crate::table;
use crate::value::{at, items, items_mut, maybe_number, number, object, present, set, set_default, text};

const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

static COLUMNS: [Column; 3] =
    [table::NAME, table::string("Pod-Selector", "The pods to which this policy applies."), table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "NetworkPolicy", "networkpolicies", Arc::new(NetworkPolicy))
        .short_names(&["netpol"])
}

struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        object(spec, "podSelector");
        for direction in ["ingress", "egress"] {
            for rule in items_mut(spec, direction) {
                for port in items_mut(rule, "ports") {
                    set_default(port, "protocol", "TCP");
                }
            }
        }
        if items(spec, "/policyTypes").is_empty() {
            let egress = !items(spec, "/egress").is_empty();
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            set(spec, "policyTypes", types);
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        check::label_selector(&mut errors, &path.child("podSelector"), at(spec, "/podSelector"));
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in items(spec, &format!("/{direction}")).iter().enumerate() {
                let path = path.child(direction).index(i);
                for (i, p) in items(rule, "/ports").iter().enumerate() {
                    port(&mut errors, p, &path.child("ports").index(i));
                }
                for (i, p) in items(rule, &format!("/{peers}")).iter().enumerate() {
                    peer(&mut errors, p, &path.child(peers).index(i));
                }
            }
        }
        let types = items(spec, "/policyTypes");
        let at_types = path.child("policyTypes");
        if types.len() > 2 {
            let words = "may not specify more than two policyTypes";
            errors.push(Error::invalid(&at_types, types.to_vec(), words));
        } else {
            for (i, kind) in types.iter().enumerate() {
                if kind != "Ingress" && kind != "Egress" {
                    let supported = ["Ingress", "Egress"];
                    errors.push(Error::not_supported(&at_types.index(i), kind.clone(), &supported));
                }
            }
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), table::selector(at(obj, "/spec/podSelector")).into(), table::age(obj, now)]
    }
}

fn port(errors: &mut Vec<Error>, port: &Value, path: &Path) {
    let protocol = text(port, "/protocol");
    if !PROTOCOLS.contains(&protocol) {
        errors.push(Error::not_supported(&path.child("protocol"), protocol, &PROTOCOLS));
    }
    let end = maybe_number(port, "/endPort");
    let at_end = path.child("endPort");
    match at(port, "/port") {
        Value::Null if end.is_some() => {
            errors
                .push(Error::required(&path.child("port"), "must be specified when `endPort` is specified"));
        }
        Value::Null => {}
        Value::String(name) => {
            check::words(errors, &path.child("port"), name, check::port_name(name));
            if let Some(end) = end {
                let words = "may not be specified when `port` is non-numeric";
                errors.push(Error::invalid(&at_end, end, words));
            }
        }
        _ => {
            let first = number(port, "/port");
            check::port(errors, &path.child("port"), first);
            if let Some(end) = end {
                if end < first {
                    // Kubernetes shows the first port here.
                    let words = "must be greater than or equal to `port`";
                    errors.push(Error::invalid(&at_end, first, words));
                } else {
                    check::port(errors, &at_end, end);
                }
            }
        }
    }
}

fn peer(errors: &mut Vec<Error>, peer: &Value, path: &Path) {
    let mut kinds = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if present(peer, &format!("/{field}")) {
            kinds += 1;
            check::label_selector(errors, &path.child(field), at(peer, &format!("/{field}")));
        }
    }
    if present(peer, "/ipBlock") {
        block(errors, at(peer, "/ipBlock"), &path.child("ipBlock"));
        if kinds > 0 {
            errors.push(Error::forbidden(path, "may not specify both ipBlock and another peer"));
        }
        kinds += 1;
    }
    if kinds == 0 {
        errors.push(Error::required(path, "must specify a peer"));
    }
}

fn block(errors: &mut Vec<Error>, block: &Value, path: &Path) {
    let range = text(block, "/cidr");
    if range.is_empty() {
        errors.push(Error::required(&path.child("cidr"), ""));
        return;
    }
    check::cidr(errors, &path.child("cidr"), range);
    let Some(range) = Cidr::parse(range) else { return };
    for (i, except) in items(block, "/except").iter().enumerate() {
        let except = except.as_str().unwrap_or_default();
        let path = path.child("except").index(i);
        check::cidr(errors, &path, except);
        let Some(inner) = Cidr::parse(except) else { continue };
        let inside = |address: IpAddr| range.contains(address);
        if !inside(inner.base) || inner.bits <= range.bits {
            errors.push(Error::invalid(&path, except, "must be a strict subset of `cidr`"));
        }
    }
}
