//! What is left of a cluster and of its pods, told from outside: by what the kernel and the disk show.
//!
//! Every shape of a cluster has [`Traces`] from its start on, and asks them before it ends (what is left of pods that are no
//! more) and afterwards (what is left of it at all). What is found is told by its name, never by a number that another test
//! could have changed: tests run beside each other.

pub mod counts;
mod descriptors;
mod host;
mod place;
mod process;
mod seen;
mod sockets;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

pub use place::{Place, Ranges};
use process::Process;

use crate::SOON;

/// How long the API may take to answer at the end of a test.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A cluster's directory, and its nodes.
#[derive(Default)]
pub struct Traces {
    dir: PathBuf,
    places: Vec<Place>,
}

impl Traces {
    /// Of a cluster that has all its files in a directory.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
        Ok(Self { dir, places: Vec::new() })
    }

    /// One more node. Its runtime has started.
    ///
    /// # Errors
    /// When its folders cannot be watched.
    pub fn add(&mut self, mut place: Place) -> Result<()> {
        place.watch(&process::naming(&self.dir))?;
        self.places.push(place);
        Ok(())
    }

    /// Waits until nothing is left of pods and Services that the API does not have any more, on these nodes, whose agents and
    /// runtimes run. `get` is a request of the API for a path.
    ///
    /// # Errors
    /// What is left.
    pub fn of_gone_pods(&self, nodes: &[usize], get: impl Fn(&str) -> Result<Value>) -> Result<()> {
        let nodes: Vec<_> = nodes.iter().filter_map(|index| self.places.get(*index)).collect();
        if nodes.is_empty() {
            return Ok(());
        }
        settles("of pods and Services that are gone", || {
            let (pods, services) = (get("/api/v1/pods")?, get("/api/v1/services")?);
            let (processes, mounts) = (process::naming(&self.dir), mounts(&self.dir));
            let of = |place: &&Place| place.left(&place.known(&pods, &services), &processes, &mounts);
            Ok(nodes.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
        })
    }

    /// Waits until nothing is left of the cluster, which has been stopped, or killed. Its files stay; when it was stopped,
    /// those of sandboxes and containers do not.
    ///
    /// # Errors
    /// What is left.
    pub fn of_the_cluster(&self, stopped: bool) -> Result<()> {
        settles("of the cluster", || {
            let processes = process::naming(&self.dir).into_iter().map(|process| process.shown());
            let mounts = mounts(&self.dir).into_iter().map(|point| format!("mount {}", point.display()));
            let places = self.places.iter().map(|place| place.after(stopped)).collect::<Result<Vec<_>>>()?;
            Ok(processes.chain(mounts).chain(places.concat()).collect())
        })
    }

    /// Waits until nothing is left of the cluster, of which all has been stopped, these nodes when they had no pods any more.
    /// Of others, that the test ended itself, nothing is asked; and the host of a node's wasm programs outlives its runtime,
    /// for the next one.
    ///
    /// # Errors
    /// What is left.
    pub fn of_empty_nodes(&self, nodes: &[usize]) -> Result<()> {
        let all = self.places.iter().enumerate();
        let (empty, others): (Vec<_>, Vec<_>) = all.partition(|(index, _)| nodes.contains(index));
        settles("of the cluster", || {
            let (mut processes, mut mounts) = (process::naming(&self.dir), mounts(&self.dir));
            processes.retain(|process| !others.iter().any(|(_, place)| place.owns(process)));
            mounts.retain(|point| !others.iter().any(|(_, place)| place.has(point)));
            let (kept, ended): (Vec<_>, Vec<_>) =
                processes.iter().partition(|process| empty.iter().any(|(_, place)| place.keeps(process)));
            let places = empty.iter().map(|(_, place)| place.emptied(&kept)).collect::<Result<Vec<_>>>()?;
            let mounts = mounts.into_iter().map(|point| format!("mount {}", point.display()));
            Ok(ended.into_iter().map(Process::shown).chain(mounts).chain(places.concat()).collect())
        })
    }
}

/// Something is left.
#[derive(Debug)]
struct Left {
    of: &'static str,
    limit: Duration,
    what: Vec<String>,
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "left {} after {:?}:\n  {}", self.of, self.limit, self.what.join("\n  "))
    }
}

impl std::error::Error for Left {}

/// Waits until nothing is found; where it cannot be looked for, not as long.
fn settles(of: &'static str, find: impl FnMut() -> Result<Vec<String>>) -> Result<()> {
    settles_within(SOON, of, find)
}

fn settles_within(
    limit: Duration,
    of: &'static str,
    mut find: impl FnMut() -> Result<Vec<String>>,
) -> Result<()> {
    let began = Instant::now();
    loop {
        match find() {
            Ok(what) if what.is_empty() => return Ok(()),
            Ok(what) if began.elapsed() > limit => return Err(Left { of, limit, what }.into()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error.context(format!("look for what is left {of}")));
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}

/// Mount points below a directory.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(dir)).collect()
}
