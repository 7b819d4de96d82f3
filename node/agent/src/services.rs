//! Services as environment variables (`NAME_SERVICE_HOST` ...), as the kubelet gives them to containers.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// The Services of the cluster as this node knows them; cheap to clone.
#[derive(Clone)]
pub struct Services {
    store: Store<Service>,
}

impl Services {
    /// The Services, and the task that follows them, which ends at `shutdown`.
    pub fn new(client: Client, shutdown: CancellationToken) -> (Self, impl Future<Output = ()>) {
        let (store, writer) = reflector::store();
        let follow = async move {
            let stream = watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
            let mut stream = std::pin::pin!(stream.modify(slim).reflect(writer));
            loop {
                tokio::select! {
                    event = stream.next() => match event {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => tracing::debug!(%error, "the watch of Services was interrupted; it goes on"),
                        None => return,
                    },
                    () = shutdown.cancelled() => return,
                }
            }
        };
        (Self { store }, follow)
    }

    /// The variables of a pod's containers: those of `kubernetes`, and unless the pod says otherwise those of its
    /// namespace's Services. They are the first of the environment: whatever the pod sets replaces them.
    pub async fn env(&self, pod: &Pod) -> Vec<(String, String)> {
        // Before the first list there is nothing to tell, and a start does not wait for long.
        let ready = tokio::time::timeout(std::time::Duration::from_secs(5), self.store.wait_until_ready());
        if !matches!(ready.await, Ok(Ok(()))) {
            tracing::warn!(
                pod = pod.metadata.name,
                "starts without the variables of Services: none are known yet"
            );
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let mut services = Vec::new();
        if links {
            let of = self.store.state().into_iter();
            services.extend(of.filter(|s| s.metadata.namespace.as_deref() == Some(namespace)));
        }
        let master = self.store.get(&ObjectRef::new("kubernetes").within("default"));
        if let Some(master) = master.filter(|_| !links || namespace != "default") {
            services.push(master);
        }
        services.sort_by_key(|s| s.metadata.name.clone());
        services.iter().flat_map(|s| variables(s)).collect()
    }
}

/// Keeps what the variables are made from.
fn slim(service: &mut Service) {
    service.metadata.managed_fields = None;
    service.metadata.annotations = None;
    service.metadata.labels = None;
    service.status = None;
}

/// The variables of one Service, in the form of Docker's links too. None without an address.
fn variables(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return Vec::new();
    };
    let upper = |text: &str| text.to_uppercase().replace(['-', '.'], "_");
    let name = upper(service.metadata.name.as_deref().unwrap_or_default());
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return Vec::new() };
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let mut env = vec![
        (format!("{name}_SERVICE_HOST"), ip.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(of) = port.name.as_deref().filter(|n| !n.is_empty()) {
            env.push((format!("{name}_SERVICE_PORT_{}", upper(of)), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            env.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        env.push((prefix.clone(), url));
        env.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        env.push((format!("{prefix}_PORT"), port.port.to_string()));
        env.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_kubelet_writes_them() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-db"},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]},
        }))
        .expect("a Service");
        let lines: Vec<String> = variables(&service).into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        let expected = [
            "MY_DB_SERVICE_HOST=10.0.0.9",
            "MY_DB_SERVICE_PORT=5432",
            "MY_DB_SERVICE_PORT_SQL=5432",
            "MY_DB_PORT=tcp://10.0.0.9:5432",
            "MY_DB_PORT_5432_TCP=tcp://10.0.0.9:5432",
            "MY_DB_PORT_5432_TCP_PROTO=tcp",
            "MY_DB_PORT_5432_TCP_PORT=5432",
            "MY_DB_PORT_5432_TCP_ADDR=10.0.0.9",
        ];
        assert_eq!(lines, expected);
        let headless =
            serde_json::json!({"metadata": {}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}});
        assert!(variables(&serde_json::from_value(headless).expect("a Service")).is_empty());
    }
}
