//! The controllers that serve authentication and authorization, started together: certificates, bootstrap tokens, aggregated
//! roles.

use tokio_util::sync::CancellationToken;

use crate::certificates::Sign;
use crate::{bootstrap_tokens, certificates, role_aggregation};

/// The identities that they act as.
pub const IDENTITIES: [&str; 4] =
    [certificates::IDENTITY, bootstrap_tokens::SIGNER, bootstrap_tokens::CLEANER, role_aggregation::IDENTITY];

/// Runs them until `shutdown`. Without `sign` nothing is approved or signed. `informers` is the identity that may list.
pub async fn run(
    client_for: impl Fn(&str) -> kube::Client,
    informers: &str,
    sign: Option<Sign>,
    shutdown: CancellationToken,
) {
    let issuing = async {
        if let Some(sign) = sign {
            let (client, nodes) = (client_for(certificates::IDENTITY), client_for(informers));
            certificates::run(client, nodes, sign, shutdown.clone()).await;
        }
    };
    tokio::join!(
        issuing,
        bootstrap_tokens::run(
            client_for(bootstrap_tokens::SIGNER),
            client_for(bootstrap_tokens::CLEANER),
            shutdown.clone()
        ),
        role_aggregation::run(client_for(role_aggregation::IDENTITY), shutdown.clone()),
    );
}
