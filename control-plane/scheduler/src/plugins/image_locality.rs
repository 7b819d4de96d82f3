//! ImageLocality: nodes that have a pod's images already, the more the larger they are.

use super::BEST;
use crate::cycle::Cycle;
use crate::snapshot::Room;

const MEGABYTE: i64 = 1024 * 1024;
/// Less is pulled in no time.
const LEAST: i64 = 23 * MEGABYTE;
/// A container's images of this size and more count alike.
const MOST: i64 = 1000 * MEGABYTE;

/// Prefers nodes with the images. An image that few nodes have counts less, so that those do not get everything.
pub fn score(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let images = &cycle.pod.images;
    let holders: Vec<i64> =
        images.iter().map(|image| i64::try_from(cycle.snapshot.holders(image)).unwrap_or(0)).collect();
    if holders.iter().all(|count| *count == 0) {
        return vec![0; rooms.len()];
    }
    let nodes = i64::try_from(cycle.snapshot.len()).unwrap_or(i64::MAX).max(1);
    let most = MOST.saturating_mul(i64::try_from(images.len()).unwrap_or(1));
    let score = |room: &&Room| {
        let there = images.iter().zip(&holders).filter_map(|(image, count)| {
            let size = room.node.images.get(image)?;
            i64::try_from(i128::from(*size) * i128::from(*count) / i128::from(nodes)).ok()
        });
        let sum = there.fold(0, i64::saturating_add).clamp(LEAST, most);
        i64::try_from(i128::from(sum - LEAST) * i128::from(BEST) / i128::from(most - LEAST)).unwrap_or(0)
    };
    rooms.iter().map(score).collect()
}
