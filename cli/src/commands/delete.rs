//! `coracle delete`: objects by manifest or by name, and waits until they are gone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject};
use kube::discovery::{Discovery, Scope};

use super::get::find;
use super::{Failures, apply};
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
    /// What is not there is no failure.
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    cluster: Cluster,
}

pub fn run(options: Options) -> Result<()> {
    super::run_client(async move {
        let end = Instant::now() + Duration::from_secs(options.timeout);
        let (client, namespace) = options.cluster.client().await?;
        let discovery = options.cluster.discover(&client).await?;
        let mut targets = Vec::new();
        if !options.files.is_empty() && !options.names.is_empty() {
            bail!("name what to delete by -f FILE or by RESOURCE NAME, not both");
        }
        if options.files.is_empty() {
            targets.extend(by_name(&client, &discovery, &namespace, &options.names)?);
        } else {
            for object in apply::read(&options.files)?.into_iter().rev() {
                let (api, shown, object) = apply::resolve(&client, &discovery, &namespace, object)?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                targets.push((api, name, shown));
            }
        }
        let mut deleted = Vec::new();
        let mut failures = Failures::default();
        for target in &targets {
            match target.0.delete(&target.1, &DeleteParams::default()).await {
                Ok(answer) => {
                    super::print(format!("{} deleted\n", target.2))?;
                    let uid = answer.either(|object| object.metadata.uid, |status| Some(status.details?.uid));
                    deleted.push((target, uid));
                }
                Err(kube::Error::Api(status)) if status.code == 404 && options.ignore_not_found => {}
                Err(error) => failures.add(error.into()),
            }
        }
        for (target, uid) in deleted.iter().filter(|_| options.timeout > 0) {
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::timeout(left, gone(target, uid.as_deref()))
                .await
                .with_context(|| format!("timed out waiting until {} is gone", target.2))??;
        }
        failures.end()
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
        [first, ..] if first.contains('/') => {
            let pair =
                |word| str::split_once(word, '/').with_context(|| format!("{word} is not RESOURCE/NAME"));
            words.iter().map(|word| pair(word.as_str())).collect::<Result<_>>()?
        }
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

/// Waits until an object is gone, or another one has its name.
async fn gone((api, name, _): &Target, uid: Option<&str>) -> Result<()> {
    while let Some(object) = api.get_metadata_opt(name).await? {
        if uid.is_some_and(|uid| !uid.is_empty() && object.metadata.uid.as_deref() != Some(uid)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
