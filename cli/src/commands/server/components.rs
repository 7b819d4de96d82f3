//! Controllers and scheduler, each run by the one server that holds its Lease.

use std::sync::Arc;

use coracle_apiserver::ApiServer;
use coracle_apiserver::ca::ClusterCa;
use coracle_controllers::election;
use coracle_registry::authz::component;
use tokio_util::sync::CancellationToken;

use super::tuning;

/// Signs certificates with the cluster's authority.
fn signer(ca: &Arc<ClusterCa>) -> coracle_controllers::certificates::Sign {
    let ca = ca.clone();
    Arc::new(move |request, usages, seconds| Ok(ca.sign_request(request, usages, seconds)?))
}

/// Runs controllers and scheduler while this server holds their Leases.
pub async fn run(
    server: &ApiServer,
    member: u64,
    pod_cidr: String,
    tuning: &tuning::Tuning,
    ca: Arc<ClusterCa>,
    shutdown: CancellationToken,
) {
    let client = |user| kube::Client::new(server.service_as(user), "default");
    let candidate =
        |name, user| election::Candidate { client: client(user), name, identity: format!("server-{member}") };
    let controllers = candidate("kube-controller-manager", component::controller(component::INFORMERS)).run(
        shutdown.clone(),
        |term| {
            let server = server.clone();
            let client_for = Arc::new(move |name: &str| {
                kube::Client::new(server.service_as(component::controller(name)), "default")
            });
            let options = tuning.controllers(coracle_controllers::Options {
                pod_cidr: Some(pod_cidr.clone()),
                root_ca_pem: Some(ca.cert_pem().to_owned()),
                sign: Some(signer(&ca)),
                ..coracle_controllers::Options::new(client_for)
            });
            let serverless = coracle_serverless::Options {
                client: client(component::controller(coracle_serverless::IDENTITY)),
                domain: "example.com".into(),
                cluster_domain: "cluster.local".into(),
            };
            async move {
                let serverless = coracle_serverless::run(serverless, term.clone());
                let controllers = async {
                    let ended = coracle_controllers::run(options, term.clone()).await;
                    term.cancel();
                    ended
                };
                tokio::join!(controllers, serverless).0
            }
        },
    );
    let scheduler = candidate("kube-scheduler", component::scheduler()).run(shutdown.clone(), |term| {
        coracle_scheduler::run(client(component::scheduler()), tuning.scheduler(), term)
    });
    tokio::join!(controllers, scheduler);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What runs here without a role would be refused everything.
    #[test]
    fn every_identity_has_a_default_role() {
        let ours = [coracle_serverless::IDENTITY, coracle_metrics::IDENTITY];
        for identity in coracle_controllers::IDENTITIES.into_iter().chain(ours) {
            assert!(!component::roles(identity).is_empty(), "no default role is bound to {identity}");
        }
    }
}
