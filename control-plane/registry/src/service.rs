//! Service.

mod allocation;
mod allocator;
pub mod backends;
mod claim;
pub mod repair;
mod validation;

use std::sync::Arc;

use coracle_api::field::Error;
use coracle_api::status::Status;
use coracle_apiserver::{Column, Objects, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::options::RegistryOptions;
use crate::table::{self, or_none};
use crate::value::{at, items, items_mut, number, object, remove, reset, set, set_default, text};
use allocator::Allocator;

/// Seconds that a client sticks to an endpoint where affinity is asked for and no time is said.
const AFFINITY_SECONDS: i64 = 10_800;

static COLUMNS: [Column; 7] = [
    table::NAME,
    table::string(
        "Type",
        "type determines how the Service is exposed. Defaults to ClusterIP. Valid options are ExternalName, ClusterIP, NodePort, and LoadBalancer. \"ClusterIP\" allocates a cluster-internal IP address for load-balancing to endpoints. Endpoints are determined by the selector or if that is not specified, by manual construction of an Endpoints object or EndpointSlice objects. If clusterIP is \"None\", no virtual IP is allocated and the endpoints are published as a set of endpoints rather than a virtual IP. \"NodePort\" builds on ClusterIP and allocates a port on every node which routes to the same endpoints as the clusterIP. \"LoadBalancer\" builds on NodePort and creates an external load-balancer (if supported in the current cloud) which routes to the same endpoints as the clusterIP. \"ExternalName\" aliases this service to the specified externalName. Several other fields do not apply to ExternalName services. More info: https://kubernetes.io/docs/concepts/services-networking/service/#publishing-services-service-types",
    ),
    table::string(
        "Cluster-IP",
        "clusterIP is the IP address of the service and is usually assigned randomly. If an address is specified manually, is in-range (as per system configuration), and is not in use, it will be allocated to the service; otherwise creation of the service will fail.",
    ),
    table::string(
        "External-IP",
        "loadBalancer contains the current status of the load-balancer, if one is present.",
    ),
    table::string(
        "Port(s)",
        "The list of ports that are exposed by this service. More info: https://kubernetes.io/docs/concepts/services-networking/service/#virtual-ips-and-service-proxies",
    ),
    table::AGE,
    table::wide(
        "Selector",
        "Route service traffic to pods with label keys and values matching this selector. If empty or not present, the service is assumed to have an external process managing its endpoints, which Kubernetes will not modify. Only applies to types ClusterIP, NodePort, and LoadBalancer. Ignored if type is ExternalName. More info: https://kubernetes.io/docs/concepts/services-networking/service/",
    ),
];

/// The resource.
pub fn resource(options: &RegistryOptions) -> ResourceDef {
    let strategy =
        Service { allocator: Allocator::new(options.service_cidr.base.is_ipv6(), options.node_ports) };
    ResourceDef::new("", "v1", "Service", "services", Arc::new(strategy))
        .short_names(&["svc"])
        .categories(&["all"])
        .subresource(crate::streams::of_service(options))
        .subresource(Subresource::status("Service"))
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ClusterIP,
    NodePort,
    LoadBalancer,
    ExternalName,
    /// Something else, which validation refuses.
    Unknown,
}

impl Kind {
    fn of(spec: &Value) -> Self {
        match text(spec, "/type") {
            "ClusterIP" | "" => Kind::ClusterIP,
            "NodePort" => Kind::NodePort,
            "LoadBalancer" => Kind::LoadBalancer,
            "ExternalName" => Kind::ExternalName,
            _ => Kind::Unknown,
        }
    }
}

/// Whether a Service has no address on purpose.
fn is_headless(spec: &Value) -> bool {
    text(spec, "/clusterIP") == "None" || items(spec, "/clusterIPs").first().is_some_and(|ip| ip == "None")
}

struct Service {
    allocator: Allocator,
}

#[async_trait::async_trait]
impl Strategy for Service {
    fn default(&self, obj: &mut Value) {
        if let Some(status) = object(obj, "status") {
            object(status, "loadBalancer");
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "sessionAffinity", "None");
        set_default(spec, "type", "ClusterIP");
        match text(spec, "/sessionAffinity") {
            "ClientIP" => {
                if let Some(client) =
                    object(spec, "sessionAffinityConfig").and_then(|c| object(c, "clientIP"))
                {
                    set_default(client, "timeoutSeconds", AFFINITY_SECONDS);
                }
            }
            "None" => {
                remove(spec, "sessionAffinityConfig");
            }
            _ => {}
        }
        for port in items_mut(spec, "ports") {
            set_default(port, "protocol", "TCP");
            let unset = matches!(at(port, "/targetPort"), Value::Null)
                || number(port, "/targetPort") == 0 && text(port, "/targetPort").is_empty();
            if unset {
                let number = at(port, "/port").clone();
                set(port, "targetPort", number);
            }
        }
        let kind = Kind::of(spec);
        if matches!(kind, Kind::NodePort | Kind::LoadBalancer) {
            set_default(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(kind, Kind::NodePort | Kind::LoadBalancer | Kind::ClusterIP) {
            set_default(spec, "internalTrafficPolicy", "Cluster");
        }
        if kind == Kind::LoadBalancer {
            set_default(spec, "allocateLoadBalancerNodePorts", true);
        }
    }

    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({"loadBalancer": {}}));
        // Not a default: nobody owns what is completed here.
        one_and_many(obj);
        allocation::allocate(&self.allocator, cx, obj, None).await
    }

    async fn abandon_create(&self, cx: &StrategyContext<'_>, obj: &Value) {
        if !cx.request.dry_run {
            self.allocator.release(obj, None, cx.objects).await;
        }
    }

    async fn prepare_update(
        &self,
        cx: &StrategyContext<'_>,
        new: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        one_and_many(new);
        allocation::carry_over(new, old);
        allocation::drop_stale(new, old);
        allocation::allocate(&self.allocator, cx, new, Some(old)).await
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        validation::service(obj)
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        validation::update(new, old)
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        crate::names::label(name, prefix)
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let ip = items(obj, "/spec/clusterIPs")
            .first()
            .and_then(Value::as_str)
            .unwrap_or(text(obj, "/spec/clusterIP"));
        vec![
            table::name(obj),
            text(obj, "/spec/type").into(),
            or_none(ip),
            external(obj),
            ports(obj),
            table::age(obj, now),
            table::labels(obj, "/spec/selector"),
        ]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        match path {
            "spec.clusterIP" => Some(text(obj, "/spec/clusterIP").to_string()),
            "spec.type" => Some(text(obj, "/spec/type").to_string()),
            _ => None,
        }
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    async fn after_delete(&self, objects: &Objects, obj: &Value) {
        self.allocator.release(obj, None, objects).await;
    }
}

/// `clusterIP` is the first of `clusterIPs`; a client may give either.
fn one_and_many(obj: &mut Value) {
    let Some(spec) = obj.get_mut("spec") else { return };
    let one = text(spec, "/clusterIP").to_string();
    let first = items(spec, "/clusterIPs").first().and_then(Value::as_str).unwrap_or_default().to_string();
    if !one.is_empty() && first.is_empty() {
        set(spec, "clusterIPs", vec![one]);
    } else if one.is_empty() && !first.is_empty() {
        set(spec, "clusterIP", first);
    }
}

fn external(obj: &Value) -> Value {
    let mut ips: Vec<&str> = items(obj, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match Kind::of(at(obj, "/spec")) {
        Kind::ExternalName => text(obj, "/spec/externalName").into(),
        Kind::LoadBalancer => {
            let ingress = items(obj, "/status/loadBalancer/ingress").iter().map(|i| match text(i, "/ip") {
                "" => text(i, "/hostname"),
                ip => ip,
            });
            let mut all: Vec<&str> = ingress.filter(|i| !i.is_empty()).collect();
            all.append(&mut ips);
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        Kind::ClusterIP | Kind::NodePort => or_none(&ips.join(",")),
        Kind::Unknown => "<unknown>".into(),
    }
}

fn ports(obj: &Value) -> Value {
    let all: Vec<String> = items(obj, "/spec/ports")
        .iter()
        .map(|p| {
            let (port, protocol) = (number(p, "/port"), text(p, "/protocol"));
            match number(p, "/nodePort") {
                0 => format!("{port}/{protocol}"),
                node => format!("{port}:{node}/{protocol}"),
            }
        })
        .collect();
    or_none(&all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        let def = resource(&RegistryOptions::default());
        let s = json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "NodePort", "clusterIP": "127.96.0.9", "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], "selector": {"a": "b"}}});
        assert_eq!(
            def.strategy.row(&s, now),
            [
                json!("s"),
                json!("NodePort"),
                json!("127.96.0.9"),
                json!("<none>"),
                json!("80:30001/TCP,53/UDP"),
                json!("10s"),
                json!("a=b")
            ]
        );
    }

    #[test]
    fn validation_table() {
        let def = resource(&RegistryOptions::default());
        let words = |mut spec: Value| {
            set(&mut spec, "clusterIP", "127.96.1.1");
            let mut s = json!({"metadata": {"name": "s"}, "spec": spec});
            def.strategy.default(&mut s);
            def.strategy.validate_create(&s).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(words(json!({"ports": [{"port": 80}]})), Vec::<String>::new());
        assert_eq!(words(json!({})), ["spec.ports: Required value"]);
        assert_eq!(
            words(json!({"ports": [{"port": 80, "nodePort": 30123}]})),
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
        );
        assert_eq!(
            words(json!({"ports": [{"port": 80}], "sessionAffinity": "Y"})),
            ["spec.sessionAffinity: Unsupported value: \"Y\": supported values: \"ClientIP\", \"None\""]
        );
    }
}
