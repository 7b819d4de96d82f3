//! How full volumes of drivers are.

use std::path::Path;

use k8s_openapi::api::core::v1::CSIPersistentVolumeSource;

use super::{v1, volume::staged, words};
use crate::context::Context;

/// How full a volume of a driver is, as the driver says it; nothing where it does not say.
///
/// # Errors
/// When it has left, or fails.
pub async fn read(
    context: &Context,
    source: &CSIPersistentVolumeSource,
    target: &Path,
) -> Result<Vec<v1::VolumeUsage>, String> {
    let mut driver = context.csi.get(&source.driver).await?;
    if !driver.counts {
        return Ok(Vec::new());
    }
    let request = v1::NodeGetVolumeStatsRequest {
        volume_id: source.volume_handle.clone(),
        volume_path: target.display().to_string(),
        staging_target_path: staged(context, &driver, source),
    };
    let answer = driver.client.node_get_volume_stats(request).await;
    Ok(answer.map_err(|e| words(&source.driver, &e))?.into_inner().usage)
}
