//! The program under test, where an unprivileged user can run it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::{binary, succeed};

const PREFIX: &str = "coracle-e2e-program-";
/// A copy that nobody made use of for so long is of a build that is gone.
const FORGOTTEN: Duration = Duration::from_secs(3 * 3600);

/// The path of a copy of the built `coracle`, one for all tests of a build, without what only a debugger reads.
///
/// # Errors
/// When it is not built, or cannot be copied.
pub fn coracle() -> Result<PathBuf> {
    let built = binary("CORACLE_BIN", "target/debug/coracle")?;
    let made = std::fs::metadata(&built)?;
    let shared = std::env::temp_dir();
    let folder = shared.join(format!("{PREFIX}{}-{}-{}", made.len(), made.mtime(), made.mtime_nsec()));
    let program = folder.join("coracle");
    if program.is_file() {
        return Ok(program);
    }
    remove_forgotten(&shared)?;
    let partial = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&shared)?.keep();
    std::fs::set_permissions(&partial, PermissionsExt::from_mode(0o755))?;
    // By a process of its own: a copy made here could be inherited, open for writing, by a child of another test.
    succeed(Command::new("objcopy").arg("--strip-debug").arg(&built).arg(partial.join("coracle")))?;
    if std::fs::rename(&partial, &folder).is_err() {
        // Another test was first; two copies of one build are the same.
        std::fs::remove_dir_all(&partial)?;
    }
    program.is_file().then_some(program).context("the copied program is gone")
}

fn remove_forgotten(shared: &Path) -> Result<()> {
    for entry in std::fs::read_dir(shared)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let Ok(metadata) = entry.metadata() else { continue };
        let age = SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default();
        if age > FORGOTTEN {
            // Another test may be removing it.
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
    Ok(())
}
