//! ServiceCIDR: a range of Service addresses. Services get addresses of the one called `kubernetes`, which the server makes, and
//! of the others when it is full or when they ask for one.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::check::{self, Cidr};
use crate::table;
use crate::value::{items, reset};

/// The plural.
pub const PLURAL: &str = "servicecidrs";
/// The range that the server was started with.
pub const DEFAULT: &str = "kubernetes";
/// Holds a range while addresses of it are in use: a controller lets go. It is here before the first deletion can come.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const CIDRS: &str = "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") from which to assign service cluster IPs. Max of two CIDRs is allowed, one of each IP family. This field is immutable.";

static COLUMNS: [Column; 3] = [table::NAME, table::string("CIDRs", CIDRS), table::AGE];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "ServiceCIDR", PLURAL, Arc::new(ServiceCidr))
        .cluster_scoped()
        .subresource(Subresource::status("ServiceCIDR"))
}

struct ServiceCidr;

#[async_trait::async_trait]
impl Strategy for ServiceCidr {
    fn has_generation(&self) -> bool {
        true
    }

    fn deletion_finalizer(&self) -> Option<&'static str> {
        Some(FINALIZER)
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("spec").child("cidrs");
        let cidrs = items(obj, "/spec/cidrs");
        if cidrs.is_empty() {
            errors.push(Error::required(&path, "at least one CIDR required"));
        }
        if cidrs.len() > 2 {
            errors.push(Error::invalid(&path, cidrs.to_vec(), "may only hold up to 2 values"));
        }
        let mut families = Vec::new();
        for (i, cidr) in cidrs.iter().enumerate() {
            let text = cidr.as_str().unwrap_or_default();
            let path = path.index(i);
            check::cidr(&mut errors, &path, text);
            if let Some(cidr) = Cidr::parse(text) {
                families.push(cidr.base.is_ipv4());
            }
        }
        if let [first, second] = families.as_slice()
            && first == second
        {
            let words =
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
            errors.push(Error::invalid(&path, cidrs.to_vec(), words));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let (now, before) = (items(new, "/spec/cidrs"), items(old, "/spec/cidrs"));
        let mut errors = self.validate_create(new);
        // The second family may be added.
        if !(now == before || (before.len() == 1 && now.first() == before.first())) {
            errors.push(Error::invalid(&Path::new("spec").child("cidrs"), now.to_vec(), check::IMMUTABLE));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let cidrs: Vec<&str> = items(obj, "/spec/cidrs").iter().filter_map(Value::as_str).collect();
        vec![table::name(obj), cidrs.join(",").into(), table::age(obj, now)]
    }
}
