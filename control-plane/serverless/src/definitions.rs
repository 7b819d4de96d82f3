//! The CustomResourceDefinitions of Knative Serving and of its seam to gateways.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::{Client, ResourceExt};

use crate::ensure::ensure;

const DEFINITIONS: &str = include_str!("definitions.yaml");
/// Between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// The definitions.
pub fn all() -> anyhow::Result<Vec<CustomResourceDefinition>> {
    DEFINITIONS.split("\n---\n").map(|text| Ok(serde_yaml::from_str(text)?)).collect()
}

/// Creates or updates the definitions, trying until it has succeeded.
pub async fn install(client: &Client) {
    loop {
        match try_install(client).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "cannot install the kinds of Knative Serving yet"
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_install(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in all()? {
        ensure(&api, &definition)
            .await
            .map_err(|error| anyhow::anyhow!("{}: {error}", definition.name_any()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn definitions_are_named_after_their_plural_and_group() {
        let all = super::all().expect("the definitions");
        assert_eq!(all.len(), 5);
        for definition in all {
            let (spec, name) = (definition.spec, definition.metadata.name.unwrap_or_default());
            assert_eq!(name, format!("{}.{}", spec.names.plural, spec.group));
        }
    }
}
