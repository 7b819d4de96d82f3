//! `coracle delete`: objects by manifest or by name, and waits until they are gone.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject};
use kube::discovery::{Discovery, Scope};

use super::apply;
use super::get::find;
use crate::kubeconfig::Cluster;

#[derive(Args)]
pub struct Options {
    /// A manifest, or a folder of them.
    #[arg(short = 'f', long = "filename")]
    files: Vec<PathBuf>,
    /// The resource and names, such as `pod a b` or `deploy/hello`.
    names: Vec<String>,
    /// How long to wait until they are gone, in seconds; 0 does not wait.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    #[command(flatten)]
    cluster: Cluster,
}

pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let (client, namespace) = options.cluster.client().await?;
        let discovery =
            Discovery::new(client.clone()).run().await.context("discover the server's resources")?;
        let mut targets = Vec::new();
        if options.files.is_empty() {
            targets.extend(by_name(&client, &discovery, &namespace, &options.names)?);
        } else {
            for object in apply::read(&options.files)?.into_iter().rev() {
                let (api, shown, object) = apply::resolve(&client, &discovery, &namespace, object)?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                targets.push((api, name, shown));
            }
        }
        for (api, name, shown) in &targets {
            match api.delete(name, &DeleteParams::default()).await {
                Ok(_) => println!("{shown} deleted"),
                Err(kube::Error::Api(status)) if status.code == 404 => println!("{shown} not found"),
                Err(error) => return Err(error).context(shown.clone()),
            }
        }
        if options.timeout > 0 {
            tokio::time::timeout(Duration::from_secs(options.timeout), gone(&targets))
                .await
                .context("timed out waiting until everything is gone")??;
        }
        Ok(())
    })
}

type Target = (Api<DynamicObject>, String, String);

fn by_name(
    client: &kube::Client,
    discovery: &Discovery,
    namespace: &str,
    words: &[String],
) -> Result<Vec<Target>> {
    let pairs: Vec<(&str, &str)> = match words {
        [first, ..] if first.contains('/') => words.iter().filter_map(|word| word.split_once('/')).collect(),
        [resource, names @ ..] if !names.is_empty() => {
            names.iter().map(|name| (resource.as_str(), name.as_str())).collect()
        }
        _ => bail!("name what to delete: -f FILE, or RESOURCE NAME"),
    };
    pairs
        .into_iter()
        .map(|(word, name)| {
            let (resource, scope) = find(discovery, word)?;
            let api = match scope {
                Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
                Scope::Cluster => Api::all_with(client.clone(), &resource),
            };
            Ok((api, name.to_owned(), format!("{}/{name}", resource.plural)))
        })
        .collect()
}

async fn gone(targets: &[Target]) -> Result<()> {
    for (api, name, _) in targets {
        while api.get_metadata_opt(name).await?.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
