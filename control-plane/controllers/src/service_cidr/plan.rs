//! Whether a range may go, and what is said of it.

use std::net::IpAddr;

use super::FINALIZER;
use crate::view::{IpAddress, Meta, ServiceCidr, condition};

/// What is to be done about a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Leave,
    /// It gets its finalizer.
    Hold,
    /// It is said to be ready.
    Ready,
    /// Addresses of it are in use, and it is said so.
    Wait,
    /// Nothing holds it any more, once whoever gives out addresses knows that it goes.
    Release,
}

/// Looks at a range beside all the others, and at all addresses that are in use.
pub(super) fn plan<'a>(
    range: &ServiceCidr,
    all: impl Iterator<Item = &'a ServiceCidr> + Clone,
    addresses: impl Iterator<Item = &'a IpAddress>,
) -> Action {
    let held = range.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    let ready = condition(&range.status.conditions, "Ready").map(|c| c.status == "True");
    if !range.is_terminating() {
        return match (held, ready) {
            (false, _) => Action::Hold,
            (true, Some(true)) => Action::Leave,
            (true, _) => Action::Ready,
        };
    }
    let others = all.filter(|other| other.uid() != range.uid() && !other.is_terminating());
    let has = |range: &ServiceCidr, ip| range.spec.cidrs.iter().any(|cidr| contains(cidr, ip));
    let mut own = addresses.filter_map(|address| address.name().parse().ok()).filter(|ip| has(range, *ip));
    match (held, own.any(|ip| !others.clone().any(|other| has(other, ip))), ready) {
        (false, ..) => Action::Leave,
        (true, true, Some(false)) => Action::Leave,
        (true, true, _) => Action::Wait,
        (true, false, _) => Action::Release,
    }
}

/// Whether an address lies in a range such as `10.0.0.0/24`.
fn contains(cidr: &str, ip: IpAddr) -> bool {
    let Some((base, bits)) = cidr.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse(), bits.parse::<u32>()) else { return false };
    match (base, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= bits,
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= bits,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn range(name: &str, cidr: &str, more: Value) -> ServiceCidr {
        let mut object = json!({"metadata": {"name": name, "uid": name, "finalizers": [FINALIZER]}, "spec": {"cidrs": [cidr]}});
        json_patch::merge(&mut object, &more);
        serde_json::from_value(object).unwrap()
    }

    fn said(status: &str) -> Value {
        json!({"status": {"conditions": [{"type": "Ready", "status": status}]}})
    }

    #[test]
    fn ranges_are_held_while_addresses_are_in_use() {
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let used: IpAddress = serde_json::from_value(json!({"metadata": {"name": "10.1.0.7"}})).unwrap();
        let planned = |one: &ServiceCidr, others: &[ServiceCidr], used: Option<&IpAddress>| {
            plan(one, others.iter().chain([one]), used.into_iter())
        };
        let new = range("a", "10.1.0.0/24", json!({"metadata": {"finalizers": null}}));
        assert_eq!(planned(&new, &[], None), Action::Hold);
        let a = range("a", "10.1.0.0/24", json!({}));
        assert_eq!(planned(&a, &[], None), Action::Ready);
        assert_eq!(planned(&range("a", "10.1.0.0/24", said("True")), &[], None), Action::Leave);

        let mut gone = range("a", "10.1.0.0/24", going.clone());
        assert_eq!(planned(&gone, &[], None), Action::Release);
        assert_eq!(planned(&gone, &[], Some(&used)), Action::Wait);
        let wide = range("wide", "10.1.0.0/16", json!({}));
        assert_eq!(
            planned(&gone, std::slice::from_ref(&wide), Some(&used)),
            Action::Release,
            "another has it"
        );
        let wide = range("wide", "10.1.0.0/16", going.clone());
        assert_eq!(
            planned(&gone, std::slice::from_ref(&wide), Some(&used)),
            Action::Wait,
            "not one that goes too"
        );
        let other = range("other", "10.1.1.0/24", json!({}));
        assert_eq!(planned(&gone, std::slice::from_ref(&other), Some(&used)), Action::Wait);
        gone.status = range("a", "10.1.0.0/24", said("False")).status;
        assert_eq!(planned(&gone, &[], Some(&used)), Action::Leave, "it was said");
        assert_eq!(planned(&range("six", "fd00::/64", going), &[], Some(&used)), Action::Release);
    }
}
