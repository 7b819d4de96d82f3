//! EndpointSlice of `discovery.k8s.io`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::check::{self, Cidr};
use crate::options::RegistryOptions;
use crate::table;
use crate::value::{at, items, items_mut, maybe_number, object, set_default, text};

const ADDRESSES_MAX: usize = 100;
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;

static COLUMNS: [Column; 5] = [
    table::NAME,
    table::string(
        "AddressType",
        "addressType specifies the type of address carried by this EndpointSlice. All addresses in this slice must be the same type. This field is immutable after creation. The following address types are currently supported: * IPv4: Represents an IPv4 Address. * IPv6: Represents an IPv6 Address. * FQDN: Represents a Fully Qualified Domain Name.",
    ),
    table::string(
        "Ports",
        "ports specifies the list of network ports exposed by each endpoint in this slice. Each port must have a unique name. Each slice may include a maximum of 100 ports.",
    ),
    table::string(
        "Endpoints",
        "endpoints is a list of unique endpoints in this slice. Each slice may include a maximum of 1000 endpoints.",
    ),
    table::AGE,
];

/// The resource.
pub fn resource(options: &RegistryOptions) -> ResourceDef {
    let strategy = EndpointSlice { own: options.loopback_endpoints() };
    ResourceDef::new("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", Arc::new(strategy))
}

struct EndpointSlice {
    /// Ranges whose addresses may be loopback.
    own: Vec<Cidr>,
}

impl EndpointSlice {
    fn endpoint(&self, errors: &mut Vec<Error>, endpoint: &Value, kind: &str, path: &Path) {
        let addresses = items(endpoint, "/addresses");
        let at_addresses = path.child("addresses");
        if addresses.is_empty() {
            errors.push(Error::required(&at_addresses, "must contain at least 1 address"));
        } else if addresses.len() > ADDRESSES_MAX {
            errors.push(Error::too_many(&at_addresses, addresses.len(), ADDRESSES_MAX));
        }
        for (i, address) in addresses.iter().enumerate() {
            let address = address.as_str().unwrap_or_default();
            let parsed = address.parse::<std::net::IpAddr>();
            let at_one = at_addresses.index(i);
            match kind {
                "IPv4" | "IPv6" => {
                    if let Ok(ip) = parsed
                        && ip.is_ipv4() != (kind == "IPv4")
                    {
                        errors.push(Error::invalid(
                            &at_addresses,
                            address,
                            format!("must be an {kind} address"),
                        ));
                    }
                    check::non_special_ip(errors, &at_one, address, &self.own);
                }
                "FQDN" => check::words(errors, &at_one, address, rules::dns1123_subdomain(address)),
                _ => {}
            }
        }
        let node = text(endpoint, "/nodeName");
        if !node.is_empty() {
            check::words(errors, &path.child("nodeName"), node, rules::dns1123_subdomain(node));
        }
        let host = text(endpoint, "/hostname");
        if !host.is_empty() {
            check::words(errors, &path.child("hostname"), host, rules::dns1123_label(host));
        }
    }
}

impl Strategy for EndpointSlice {
    fn default(&self, obj: &mut Value) {
        for port in items_mut(obj, "ports") {
            set_default(port, "name", "");
            set_default(port, "protocol", "TCP");
        }
        for endpoint in items_mut(obj, "endpoints") {
            object(endpoint, "conditions");
        }
        // Kubernetes writes an absent list as null.
        set_default(obj, "ports", Value::Null);
        set_default(obj, "endpoints", Value::Array(Vec::new()));
    }

    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let kind = text(obj, "/addressType");
        check::one_of(&mut errors, &Path::new("addressType"), kind, &["FQDN", "IPv4", "IPv6"], true);
        let ports = items(obj, "/ports");
        let path = Path::new("ports");
        if ports.len() > PORTS_MAX {
            errors.push(Error::too_many(&path, ports.len(), PORTS_MAX));
            return errors;
        }
        self::ports(&mut errors, ports, &path);
        let endpoints = items(obj, "/endpoints");
        let path = Path::new("endpoints");
        if endpoints.len() > ENDPOINTS_MAX {
            errors.push(Error::too_many(&path, endpoints.len(), ENDPOINTS_MAX));
            return errors;
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            self.endpoint(&mut errors, endpoint, kind, &path.index(i));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        check::immutable(
            &mut errors,
            &Path::new("addressType"),
            at(new, "/addressType"),
            at(old, "/addressType"),
        );
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = items(obj, "/ports")
            .iter()
            .map(|p| match maybe_number(p, "/port") {
                Some(port) => port.to_string(),
                None => match text(p, "/name") {
                    "" => "*".to_string(),
                    name => name.to_string(),
                },
            })
            .collect();
        let addresses: Vec<&str> = items(obj, "/endpoints")
            .iter()
            .flat_map(|e| items(e, "/addresses"))
            .filter_map(Value::as_str)
            .collect();
        vec![
            table::name(obj),
            text(obj, "/addressType").into(),
            shortened(&ports, "<unset>"),
            shortened(&addresses, "<unset>"),
            table::age(obj, now),
        ]
    }
}

/// The first three and how many more.
fn shortened<S: AsRef<str>>(all: &[S], none: &str) -> Value {
    if all.is_empty() {
        return none.into();
    }
    let first: Vec<&str> = all.iter().take(3).map(AsRef::as_ref).collect();
    let more = all.len().saturating_sub(3);
    if more == 0 { first.join(",").into() } else { format!("{} + {more} more...", first.join(",")).into() }
}

fn ports(errors: &mut Vec<Error>, ports: &[Value], path: &Path) {
    let mut names = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "/name");
        if !name.is_empty() {
            check::words(errors, &path.child("name"), name, rules::dns1123_label(name));
        }
        if names.contains(&name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        names.push(name);
        check::one_of(
            errors,
            &path.child("protocol"),
            text(port, "/protocol"),
            &["SCTP", "TCP", "UDP"],
            true,
        );
        if let Some(number) = maybe_number(port, "/port") {
            check::port(errors, &path.child("port"), number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_may_live_on_loopback() {
        let def = resource(&RegistryOptions::default());
        let slice = |address: &str| json!({"addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": []});
        for (address, good) in [
            ("127.64.0.2", true),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
            ("10.0.0.1", true),
            ("169.254.1.1", false),
            ("x", false),
        ] {
            assert_eq!(def.strategy.validate_create(&slice(address)).is_empty(), good, "{address}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(shortened(&["a", "b", "c", "d"], ""), "a,b,c + 1 more...");
        assert_eq!(shortened::<&str>(&[], "<unset>"), "<unset>");
    }
}
