//! Where the Service of a webhook is reached: at one of its ready endpoints, as kube-apiserver does with endpoint routing.

use std::sync::OnceLock;

use async_trait::async_trait;
use coracle_api::status::Status;
use coracle_apiserver::Objects;
use coracle_apiserver::webhook::ServiceResolver;
use serde_json::Value;

use crate::value::{at, items, number, text};

/// Finds Services in the cluster's own objects, once those are known.
#[derive(Default)]
pub struct Services(OnceLock<Objects>);

impl Services {
    /// Says where the objects are. Only the first call counts.
    pub fn know(&self, objects: &Objects) {
        if self.0.get().is_none() {
            let _ = self.0.set(objects.clone());
        }
    }
}

#[async_trait]
impl ServiceResolver for Services {
    async fn resolve(&self, namespace: &str, name: &str, port: u16) -> Result<(String, u16), String> {
        let objects = self.0.get().ok_or("Services are not known yet")?;
        let words = |status: Status| status.message;
        let service = objects.get("", "services", Some(namespace), name).await.map_err(words)?;
        let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
        if text(&service, "/spec/type") == "ExternalName" {
            return Ok((text(&service, "/spec/externalName").to_owned(), port));
        }
        let slices =
            objects.list("discovery.k8s.io", "endpointslices", Some(namespace)).await.map_err(words)?;
        let mut found = endpoints(&service, &slices, port)?;
        // Any will do; the clock spreads connections well enough.
        let turn = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() as usize;
        let at = turn.checked_rem(found.len()).ok_or_else(|| none(name))?;
        Ok(found.swap_remove(at))
    }
}

fn none(name: &str) -> String {
    format!("no endpoints available for service {name:?}")
}

/// The ready endpoints behind a port of a Service.
fn endpoints(service: &Value, slices: &[Value], port: u16) -> Result<Vec<(String, u16)>, String> {
    let name = text(service, "/metadata/name");
    let ports = items(service, "/spec/ports");
    let asked = ports.iter().find(|p| number(p, "/port") == i64::from(port));
    let asked = asked.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let mut found = Vec::new();
    for slice in slices {
        if text(slice, "/metadata/labels/kubernetes.io~1service-name") != name {
            continue;
        }
        let ports = items(slice, "/ports").iter();
        let Some(port) = ports.into_iter().find(|p| text(p, "/name") == text(asked, "/name")) else {
            continue;
        };
        let Ok(port) = u16::try_from(number(port, "/port")) else { continue };
        // Ready unless it says that it is not.
        let ready = items(slice, "/endpoints").iter().filter(|e| *at(e, "/conditions/ready") != false);
        for address in ready.filter_map(|e| items(e, "/addresses").first()?.as_str()) {
            found.push((address.to_owned(), port));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "tls", "port": 443}]}});
        let slice = |of: &str, name: &str| {
            json!({"metadata": {"labels": {"kubernetes.io/service-name": of}}, "ports": [{"name": name, "port": 8443}],
            "endpoints": [{"addresses": ["127.64.0.9"]}, {"addresses": ["127.64.0.8"], "conditions": {"ready": false}}]})
        };
        let slices = [slice("s", "tls"), slice("t", "tls"), slice("s", "other")];
        assert_eq!(endpoints(&service, &slices, 443), Ok(vec![("127.64.0.9".to_owned(), 8443)]));
        assert_eq!(
            endpoints(&service, &slices, 80),
            Err("no service port 80 found for service \"s\"".to_owned())
        );
    }
}
