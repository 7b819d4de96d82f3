//! Addresses and node ports of a Service that is written: what it keeps, what it gets, what it gives up.

use std::net::IpAddr;

use coracle_api::field::{Error, Path};
use coracle_api::meta::Gvk;
use coracle_api::status::Status;
use coracle_apiserver::StrategyContext;
use serde_json::{Value, json};

use super::allocator::{Allocator, Refusal, holder};
use super::{Kind, is_headless};
use crate::value::{at, items, items_mut, number, object, present, remove, set, set_default, text};

fn refuse(obj: &Value, error: Error) -> Status {
    Status::invalid(&Gvk::new("", "v1", "Service"), text(obj, "/metadata/name"), vec![error])
}

/// Gives a Service what its type needs and what it does not have yet.
pub async fn allocate(
    allocator: &Allocator,
    cx: &StrategyContext<'_>,
    obj: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let keep = !cx.request.dry_run;
    if Kind::of(at(obj, "/spec")) == Kind::ExternalName {
        return Ok(());
    }
    families(allocator, obj)?;
    let done = match address(allocator, cx, obj, keep).await {
        Ok(()) => ports(allocator, cx, obj, keep).await,
        error => error,
    };
    if done.is_err() && keep {
        allocator.release(obj, old, cx.objects).await;
    }
    done
}

/// Family fields of a cluster of one family.
fn families(allocator: &Allocator, obj: &mut Value) -> Result<(), Status> {
    let own = if allocator.is_v6() { "IPv6" } else { "IPv4" };
    let (path, ips) = (Path::new("spec"), items(obj, "/spec/clusterIPs").to_vec());
    for (i, ip) in ips.iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if ip != "None" && ip.parse::<IpAddr>().is_err() {
            let words = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            return Err(refuse(obj, Error::invalid(&path.child("clusterIPs").index(i), ip, words)));
        }
    }
    let policy = text(obj, "/spec/ipFamilyPolicy");
    if !matches!(policy, "" | "SingleStack" | "PreferDualStack" | "RequireDualStack") {
        let supported = ["SingleStack", "PreferDualStack", "RequireDualStack"];
        return Err(refuse(
            obj,
            Error::invalid(
                &path.child("ipFamilyPolicy"),
                policy,
                format!("must be one of {}", supported.join(", ")),
            ),
        ));
    }
    if policy == "RequireDualStack" {
        let words = "this cluster is not configured for dual-stack services";
        return Err(refuse(obj, Error::invalid(&path.child("ipFamilyPolicy"), policy, words)));
    }
    for (i, family) in items(obj, "/spec/ipFamilies").iter().enumerate() {
        if family != own {
            let words = "not configured on this cluster";
            return Err(refuse(
                obj,
                Error::invalid(&path.child("ipFamilies").index(i), family.clone(), words),
            ));
        }
    }
    if let Some(spec) = object(obj, "spec") {
        set_default(spec, "ipFamilyPolicy", "SingleStack");
        if items(spec, "/ipFamilies").is_empty() {
            set(spec, "ipFamilies", json!([own]));
        }
    }
    Ok(())
}

async fn address(
    allocator: &Allocator,
    cx: &StrategyContext<'_>,
    obj: &mut Value,
    keep: bool,
) -> Result<(), Status> {
    if is_headless(at(obj, "/spec")) {
        return Ok(());
    }
    let who = holder(obj);
    let path = Path::new("spec").child("clusterIPs");
    let wanted =
        items(obj, "/spec/clusterIPs").first().and_then(Value::as_str).unwrap_or_default().to_string();
    if let Ok(ip) = wanted.parse::<IpAddr>() {
        let refusal = match allocator.take_address(ip, &who, cx.objects, keep).await {
            Ok(()) => return Ok(()),
            Err(refusal) => refusal,
        };
        let why = match refusal {
            Refusal::Taken => "provided IP is already allocated",
            Refusal::OutOfRange => "the provided network does not match the current range",
            Refusal::Full => "range is full",
            Refusal::Failed(status) => return Err(status),
        };
        let words = format!("failed to allocate IP {ip}: {why}");
        return Err(refuse(obj, Error::invalid(&path, vec![wanted], words)));
    }
    match allocator.any_address(&who, cx.objects, keep).await {
        Ok(ip) => {
            if let Some(spec) = object(obj, "spec") {
                set(spec, "clusterIP", ip.to_string());
                set(spec, "clusterIPs", vec![ip.to_string()]);
            }
            Ok(())
        }
        Err(Refusal::Failed(status)) => Err(status),
        Err(_) => Err(Status::internal("failed to allocate a serviceIP: range is full")),
    }
}

async fn ports(
    allocator: &Allocator,
    cx: &StrategyContext<'_>,
    obj: &mut Value,
    keep: bool,
) -> Result<(), Status> {
    let spec = at(obj, "/spec");
    let wants = match Kind::of(spec) {
        Kind::NodePort => true,
        Kind::LoadBalancer => at(spec, "/allocateLoadBalancerNodePorts").as_bool() != Some(false),
        _ => false,
    };
    if !matches!(Kind::of(spec), Kind::NodePort | Kind::LoadBalancer) {
        return Ok(());
    }
    let who = holder(obj);
    let list = items(spec, "/ports").to_vec();
    let mut used: Vec<i64> = list.iter().map(|p| number(p, "/nodePort")).filter(|n| *n != 0).collect();
    let path = Path::new("spec").child("ports");
    for (i, port) in used_ports(&list) {
        if let Err(refusal) = allocator.take_port(port, &who, cx.objects, keep).await {
            return Err(port_refused(allocator, obj, &path.index(i).child("nodePort"), port, refusal));
        }
    }
    if wants {
        for (i, port) in list.iter().enumerate().filter(|(_, p)| number(p, "/nodePort") == 0) {
            let _ = port;
            let got =
                allocator.any_port(&who, cx.objects, keep, &used).await.map_err(|refusal| match refusal {
                    Refusal::Failed(status) => status,
                    _ => Status::internal("failed to allocate a nodePort: range is full"),
                })?;
            used.push(i64::from(got));
            if let Some(port) = object(obj, "spec").and_then(|s| items_mut(s, "ports").nth(i)) {
                set(port, "nodePort", got);
            }
        }
    }
    health_check(allocator, cx, obj, keep, &used).await
}

fn used_ports(list: &[Value]) -> Vec<(usize, i64)> {
    let all = list.iter().enumerate().map(|(i, p)| (i, number(p, "/nodePort")));
    all.filter(|(_, n)| *n != 0).collect()
}

/// A load balancer that keeps to local endpoints has a node port of its own for health checks.
async fn health_check(
    allocator: &Allocator,
    cx: &StrategyContext<'_>,
    obj: &mut Value,
    keep: bool,
    used: &[i64],
) -> Result<(), Status> {
    let spec = at(obj, "/spec");
    if Kind::of(spec) != Kind::LoadBalancer || text(spec, "/externalTrafficPolicy") != "Local" {
        return Ok(());
    }
    let who = holder(obj);
    let path = Path::new("spec").child("healthCheckNodePort");
    match number(spec, "/healthCheckNodePort") {
        0 => {
            let got = allocator.any_port(&who, cx.objects, keep, used).await;
            let got = got
                .map_err(|_| Status::internal("failed to allocate a HealthCheck NodePort: range is full"))?;
            if let Some(spec) = object(obj, "spec") {
                set(spec, "healthCheckNodePort", got);
            }
            Ok(())
        }
        port => allocator
            .take_port(port, &who, cx.objects, keep)
            .await
            .map_err(|refusal| port_refused(allocator, obj, &path, port, refusal)),
    }
}

fn port_refused(allocator: &Allocator, obj: &Value, path: &Path, port: i64, refusal: Refusal) -> Status {
    let (first, last) = allocator.port_range();
    let words = match refusal {
        Refusal::Failed(status) => return status,
        Refusal::OutOfRange => {
            format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")
        }
        Refusal::Taken | Refusal::Full => "provided port is already allocated".to_string(),
    };
    refuse(obj, Error::invalid(path, port, words))
}

/// On an update: a client that leaves out what the server chose keeps it.
pub fn carry_over(new: &mut Value, old: &Value) {
    let (before, after) = (Kind::of(at(old, "/spec")), Kind::of(at(new, "/spec")));
    let Some(spec) = object(new, "spec") else { return };
    if before != Kind::ExternalName && after != Kind::ExternalName {
        if text(spec, "/clusterIP").is_empty() && items(spec, "/clusterIPs").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old.pointer(&format!("/spec/{field}")) {
                    set(spec, field, value.clone());
                }
            }
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if let Some(value) = old.pointer(&format!("/spec/{field}")) {
                set_default(spec, field, value.clone());
            }
        }
    }
    let open = |kind| matches!(kind, Kind::NodePort | Kind::LoadBalancer);
    if open(before) && open(after) {
        for port in items_mut(spec, "ports").filter(|p| number(p, "/nodePort") == 0) {
            let same = |p: &&Value| {
                text(p, "/protocol") == text(port, "/protocol") && number(p, "/port") == number(port, "/port")
            };
            let found = items(old, "/spec/ports").iter().find(same).map_or(0, |p| number(p, "/nodePort"));
            if found != 0 {
                set(port, "nodePort", found);
            }
        }
        let check = number(old, "/spec/healthCheckNodePort");
        if after == Kind::LoadBalancer && text(spec, "/externalTrafficPolicy") == "Local" && check != 0 {
            crate::value::set_default_number(spec, "healthCheckNodePort", check);
        }
    }
}

/// On an update that changes the type: fields of the old type go, unless the client has just changed them.
pub fn drop_stale(new: &mut Value, old: &Value) {
    let (before, after) = (Kind::of(at(old, "/spec")), Kind::of(at(new, "/spec")));
    let Some(spec) = object(new, "spec") else { return };
    let was = at(old, "/spec");
    let drop = |spec: &mut Value, fields: &[&str]| {
        for field in fields {
            if spec.get(*field) == was.get(*field) {
                remove(spec, field);
            }
        }
    };
    if before != Kind::ExternalName && after == Kind::ExternalName {
        drop(spec, &["clusterIPs", "clusterIP", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    let open = |kind| matches!(kind, Kind::NodePort | Kind::LoadBalancer);
    if open(before) && !open(after) {
        drop(spec, &["externalTrafficPolicy"]);
        for port in items_mut(spec, "ports") {
            let held = number(port, "/nodePort");
            if items(was, "/ports").iter().any(|p| number(p, "/nodePort") == held) {
                remove(port, "nodePort");
            }
        }
    }
    if before == Kind::LoadBalancer && after != Kind::LoadBalancer {
        drop(spec, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    let local = after == Kind::LoadBalancer && text(spec, "/externalTrafficPolicy") == "Local";
    if !local && present(was, "/healthCheckNodePort") {
        drop(spec, &["healthCheckNodePort"]);
    }
    if before == Kind::ExternalName && after != Kind::ExternalName {
        drop(spec, &["externalName"]);
    }
}
