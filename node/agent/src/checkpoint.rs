//! A ledger that outlives the agent by its file: who has which processors, or which memory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// What each container of each pod has.
pub type Entries<T> = BTreeMap<String, BTreeMap<String, T>>;

/// Who has what of one resource.
pub trait Ledger {
    /// `CPU manager`.
    const MANAGER: &'static str;
    /// What one container has.
    type Share: Clone + PartialEq;

    /// By pod and container.
    fn entries(&self) -> &Entries<Self::Share>;
    /// The same, to be changed.
    fn entries_mut(&mut self) -> &mut Entries<Self::Share>;
    /// What was written last is read into the ledger.
    ///
    /// # Errors
    /// When the file is none of this policy, or of another machine.
    fn read(&mut self, path: &Path) -> Result<(), String>;
    /// On disk when this returns.
    ///
    /// # Errors
    /// The disk's.
    fn write(&self, path: &Path) -> io::Result<()>;
}

/// A ledger and its file; cheap to clone. Without a policy there is none, and nothing to say.
pub struct Kept<L>(Option<Arc<Inner<L>>>);

struct Inner<L> {
    path: PathBuf,
    ledger: Mutex<L>,
    /// Not written down yet.
    dirty: AtomicBool,
    changed: Notify,
}

impl<L> Clone for Kept<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L> Default for Kept<L> {
    fn default() -> Self {
        Self(None)
    }
}

impl<L: Ledger> Kept<L> {
    /// An empty ledger, with what its file says.
    ///
    /// # Errors
    /// See [`Ledger::read`]; when it cannot be written.
    pub fn open(path: PathBuf, mut ledger: L) -> Result<Self, String> {
        ledger.read(&path)?;
        ledger.write(&path).map_err(|e| format!("write {}: {e}", path.display()))?;
        let (ledger, changed) = (Mutex::new(ledger), Notify::new());
        Ok(Self(Some(Arc::new(Inner { path, ledger, dirty: AtomicBool::new(false), changed }))))
    }

    /// Whether there is a policy.
    pub fn is_static(&self) -> bool {
        self.0.is_some()
    }

    /// What the ledger says; `None` without one.
    pub fn ask<T>(&self, question: impl FnOnce(&L) -> T) -> Option<T> {
        self.0.as_ref().map(|inner| question(&inner.ledger.lock()))
    }

    /// Changes the ledger, and says whether that changed anything. It is on disk when [`Self::commit`] returns.
    ///
    /// # Errors
    /// Those of the change.
    pub fn change<E>(&self, change: impl FnOnce(&mut L) -> Result<bool, E>) -> Result<bool, E> {
        let Some(inner) = &self.0 else { return Ok(false) };
        let changed = change(&mut inner.ledger.lock())?;
        inner.dirty.fetch_or(changed, Ordering::Relaxed);
        Ok(changed)
    }

    /// Waits until something else was written down; without a ledger, for ever.
    pub async fn changed(&self) {
        match &self.0 {
            Some(inner) => inner.changed.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Writes down who has what, where that has changed.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn commit(&self) -> Result<(), String> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let ledger = inner.ledger.lock();
        if inner.dirty.load(Ordering::Relaxed) {
            ledger.write(&inner.path).map_err(|e| format!("write {}: {e}", inner.path.display()))?;
            inner.dirty.store(false, Ordering::Relaxed);
            inner.changed.notify_one();
        }
        Ok(())
    }

    /// What a pod has, by container.
    pub fn held(&self, pod: &str) -> Option<BTreeMap<String, L::Share>> {
        self.ask(|ledger| ledger.entries().get(pod).cloned()).flatten()
    }

    /// Whether a container has something of its own.
    pub fn has_own(&self, pod: &str, container: &str) -> bool {
        let has = self.ask(|ledger| ledger.entries().get(pod).is_some_and(|c| c.contains_key(container)));
        has.unwrap_or(false)
    }

    /// Puts back what a pod had.
    pub fn restore(&self, pod: &str, before: Option<BTreeMap<String, L::Share>>) {
        let _: Result<_, ()> = self.change(|ledger| {
            let entries = ledger.entries_mut();
            let has = match before.clone() {
                Some(before) => entries.insert(pod.to_owned(), before),
                None => entries.remove(pod),
            };
            Ok(has != before)
        });
    }

    /// Takes back what pods and containers have that are not to be kept.
    pub fn retain(&self, keep: impl Fn(&str, &str) -> bool) {
        let changed: Result<_, ()> = self.change(|ledger| {
            let entries = ledger.entries_mut();
            let before = entries.values().map(BTreeMap::len).sum::<usize>();
            for (pod, containers) in entries.iter_mut() {
                containers.retain(|name, _| keep(pod, name));
            }
            entries.retain(|_, containers| !containers.is_empty());
            Ok(before != entries.values().map(BTreeMap::len).sum::<usize>())
        });
        // Written late at worst: what is given next is written with it.
        if changed == Ok(true)
            && let Err(error) = self.commit()
        {
            tracing::warn!(error, "the {}'s checkpoint could not be written", L::MANAGER);
        }
    }
}

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
