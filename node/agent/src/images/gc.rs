//! Image collection: when the filesystem of images is nearly full, those that no container uses are removed, the ones
//! unused for longest first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::v1 as cri;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::eviction::signals;

/// When images are removed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Percent of the filesystem in use at which images are removed; 100: never.
    pub high: u8,
    /// Percent that is to be reached then.
    pub low: u8,
    /// Images stay for so long after they were first seen.
    pub min_age: Duration,
    /// Images unused for so long are removed whatever room there is; zero: never.
    pub max_age: Duration,
    /// How often it is looked at.
    pub period: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            high: 85,
            low: 80,
            min_age: Duration::from_secs(120),
            max_age: Duration::ZERO,
            period: Duration::from_secs(300),
        }
    }
}

/// What is known of an image.
#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Instant,
    used: Instant,
}

/// Looks until `shutdown`.
pub async fn run(context: Arc<Context>, limits: Limits, shutdown: CancellationToken) {
    let mut seen = BTreeMap::new();
    loop {
        look(&context, &limits, &mut seen).await;
        tokio::select! {
            () = tokio::time::sleep(limits.period) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn look(context: &Context, limits: &Limits, seen: &mut BTreeMap<String, Seen>) {
    let Ok((images, used)) = read(context).await else { return };
    let now = Instant::now();
    seen.retain(|id, _| images.iter().any(|i| i.id == *id));
    for image in &images {
        let known = seen.entry(image.id.clone()).or_insert(Seen { first: now, used: now });
        if used.contains(&image.id) {
            known.used = now;
        }
    }
    let sizes: Vec<(String, u64)> = images
        .iter()
        .filter(|i| !i.pinned && !used.contains(&i.id))
        .map(|i| (i.id.clone(), i.size))
        .collect();
    let wanted = match context.runtime.image_filesystem().await {
        Ok(Some((path, _))) => surplus(path.as_ref(), limits),
        _ => 0,
    };
    let chosen = choose(&sizes, seen, limits, wanted, now);
    let freed = remove(context, &chosen).await;
    if wanted > freed {
        let words = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        context.recorder.own_node(&context.node_name, true, "FreeDiskSpaceFailed", words);
    }
}

/// Bytes to be freed.
fn surplus(path: &std::path::Path, limits: &Limits) -> u64 {
    let Some((space, _)) = signals::filesystem(path).filter(|(space, _)| space.capacity > 0) else {
        return 0;
    };
    let used = space.capacity.saturating_sub(space.available);
    let share = |percent: u8| (u128::from(space.capacity) * u128::from(percent) / 100) as u64;
    if limits.high < 100 && used >= share(limits.high) { used.saturating_sub(share(limits.low)) } else { 0 }
}

/// Pure: the images to remove and their bytes, the ones unused for longest first.
fn choose(
    unused: &[(String, u64)],
    seen: &BTreeMap<String, Seen>,
    limits: &Limits,
    wanted: u64,
    now: Instant,
) -> Vec<(String, u64)> {
    let mut all: Vec<(&(String, u64), Seen)> =
        unused.iter().filter_map(|one| Some((one, *seen.get(&one.0)?))).collect();
    all.sort_by_key(|(_, seen)| (seen.used, seen.first));
    let (mut chosen, mut freed) = (Vec::new(), 0_u64);
    for (image, seen) in all {
        let old = !limits.max_age.is_zero() && now.duration_since(seen.used) > limits.max_age;
        let young = now.duration_since(seen.first) < limits.min_age;
        if old || freed < wanted && !young {
            freed = freed.saturating_add(image.1);
            chosen.push(image.clone());
        }
    }
    chosen
}

/// Images, and the ids of those that containers use, dead ones too.
async fn read(context: &Context) -> Result<(Vec<cri::Image>, HashSet<String>), tonic::Status> {
    let runtime = &context.runtime;
    let (images, containers) = tokio::try_join!(runtime.list_images(), runtime.containers(HashMap::new()))?;
    let mut named: HashSet<String> = HashSet::new();
    for container in containers {
        named.insert(container.image_ref);
        named.extend(container.image.map(|i| i.image));
    }
    let is_used = |image: &&cri::Image| {
        named.contains(&image.id)
            || image.repo_tags.iter().chain(&image.repo_digests).any(|n| named.contains(n))
    };
    let used = images.iter().filter(is_used).map(|i| i.id.clone()).collect();
    Ok((images, used))
}

async fn remove(context: &Context, chosen: &[(String, u64)]) -> u64 {
    let mut freed = 0_u64;
    for (id, size) in chosen {
        match context.runtime.remove_image(id).await {
            Ok(()) => {
                tracing::info!(image = id, size, "an unused image is removed");
                freed = freed.saturating_add(*size);
            }
            Err(status) => {
                tracing::warn!(image = id, message = status.message(), "an image could not be removed")
            }
        }
    }
    freed
}

/// Removes every image that no container uses: the disk is full.
pub async fn remove_all_unused(context: &Context) {
    let Ok((images, used)) = read(context).await else { return };
    let unused = images.into_iter().filter(|i| !i.pinned && !used.contains(&i.id)).map(|i| (i.id, i.size));
    remove(context, &unused.collect::<Vec<_>>()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_first() {
        let now = Instant::now() + Duration::from_secs(10_000);
        let ago = |seconds| now - Duration::from_secs(seconds);
        let seen = BTreeMap::from([
            ("old".to_owned(), Seen { first: ago(900), used: ago(800) }),
            ("older".to_owned(), Seen { first: ago(950), used: ago(900) }),
            ("young".to_owned(), Seen { first: ago(10), used: ago(10) }),
        ]);
        let unused: Vec<_> = ["old", "older", "young"].map(|id| (id.to_owned(), 10)).to_vec();
        let ids = |limits: &Limits, wanted| -> Vec<String> {
            choose(&unused, &seen, limits, wanted, now).into_iter().map(|(id, _)| id).collect()
        };
        let limits = Limits::default();
        assert_eq!(ids(&limits, 0), [""; 0]);
        assert_eq!(ids(&limits, 5), ["older"]);
        assert_eq!(ids(&limits, 11), ["older", "old"]);
        assert_eq!(ids(&limits, 99), ["older", "old"]);
        let aged = Limits { max_age: Duration::from_secs(850), ..limits };
        assert_eq!(ids(&aged, 0), ["older"]);
    }
}
