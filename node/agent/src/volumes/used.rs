//! How much of the disk a directory takes.

use std::path::Path;

/// Files that are counted in one look: more is more than any limit is meant for.
const MAX_FILES: u64 = 1_000_000;
const MAX_DEPTH: u32 = 64;

/// Bytes on disk below a directory. Links are not followed, and other filesystems are not entered.
pub fn below(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(device) = std::fs::symlink_metadata(path).map(|m| m.dev()) else { return 0 };
    count(path, device, &mut 0, 0)
}

fn count(path: &Path, device: u64, files: &mut u64, depth: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let mut sum = 0_u64;
    for entry in entries.flatten() {
        *files += 1;
        if *files > MAX_FILES || depth > MAX_DEPTH {
            break;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.dev() != device {
            continue;
        }
        sum = sum.saturating_add(metadata.blocks().saturating_mul(512));
        if metadata.is_dir() {
            sum = sum.saturating_add(count(&entry.path(), device, files, depth + 1));
        }
    }
    sum
}
