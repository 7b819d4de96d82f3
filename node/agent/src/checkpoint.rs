//! The file of a ledger, by which it outlives the agent: who has which processors, or which memory.

use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// Where it lies, and whose it is.
pub struct Checkpoint<'a> {
    pub path: &'a Path,
    /// `CPU manager`.
    pub manager: &'static str,
    /// The policy that writes it.
    pub policy: &'static str,
}

/// What every such file says.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "policyName")]
    policy: String,
}

impl Checkpoint<'_> {
    /// Why the agent does not go on from it, in the kubelet's words.
    pub fn failed(&self, why: impl std::fmt::Display) -> String {
        format!(
            "could not restore state from checkpoint: {why}, please drain this node and delete the {} checkpoint file {} \
             before restarting the node agent",
            self.manager,
            self.path.display()
        )
    }

    /// What was written last; nothing where nothing ever was.
    ///
    /// # Errors
    /// When the file cannot be read, is too large, or is another policy's.
    pub fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, String> {
        let bytes = match std::fs::metadata(self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(found) if found.len() > MAX_BYTES => return Err(self.failed("the file is too large")),
            _ => std::fs::read(self.path).map_err(|e| self.failed(e))?,
        };
        let File { policy } = serde_json::from_slice(&bytes).map_err(|e| self.failed(e))?;
        if policy != self.policy {
            return Err(self.failed(format!(
                "configured policy {:?} differs from state checkpoint policy {:?}",
                self.policy, policy
            )));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|e| self.failed(e))
    }

    /// On disk when this returns.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, ledger: impl Serialize) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut target = std::fs::File::create(&fresh)?;
        target.write_all(&serde_json::to_vec(&ledger)?)?;
        target.sync_all()?;
        std::fs::rename(&fresh, self.path)
    }
}
