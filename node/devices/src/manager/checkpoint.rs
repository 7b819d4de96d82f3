//! Who has which devices, on disk: a JSON file that is replaced as a whole.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ledger::{Entry, Ledger};

/// The largest checkpoint that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    entries: Vec<Entry>,
    #[serde(default)]
    resources: BTreeSet<String>,
}

/// What was written last; nothing, when nothing ever was.
pub fn read(path: &Path) -> io::Result<Ledger> {
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
        other => other?,
    };
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other("the file is too large"));
    }
    let file: File = serde_json::from_slice(&std::fs::read(path)?)?;
    if file.version != 1 {
        return Err(io::Error::other(format!("version {} is not known", file.version)));
    }
    Ok(Ledger::read(file.entries, file.resources))
}

/// On disk when this returns.
pub fn write(path: &Path, ledger: &Ledger) -> io::Result<()> {
    let file =
        File { version: 1, entries: ledger.entries().to_vec(), resources: ledger.registered().clone() };
    let fresh = path.with_extension("new");
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut target = std::fs::File::create(&fresh)?;
    target.write_all(&serde_json::to_vec_pretty(&file)?)?;
    target.sync_all()?;
    std::fs::rename(&fresh, path)
}
