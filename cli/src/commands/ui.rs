//! `coracle ui`: the address of the web page, with the user's token.

use anyhow::Result;
use clap::Args;

use crate::kubeconfig::Cluster;

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    cluster: Cluster,
}

/// The token is in the fragment, which browsers send to nobody.
pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let server = options.cluster.server().await?;
        let access = options.cluster.registry().await?;
        super::print(format!("{server}/ui/#token={}\n", access.token))
    })
}
