//! Snapshots that are taken by themselves: by whoever leads, to a directory or a bucket, and only so many are kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coracle_store::Store;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::archive::Source;
use super::bucket::Place;
use super::sealed::Sealer;
use crate::data_dir::{create_private, temporary};

/// When, where to and how many.
#[derive(Args, Clone, Debug)]
pub struct Schedule {
    /// Save a snapshot each so many minutes, where --snapshot-to says.
    #[arg(long, requires = "snapshot_to", value_parser = clap::value_parser!(u64).range(1..=525_600))]
    pub snapshot_every: Option<u64>,
    /// A directory, or s3://BUCKET/PREFIX (with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment).
    #[arg(long)]
    pub snapshot_to: Option<String>,
    /// How many scheduled snapshots are kept.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub snapshot_keep: u64,
    /// A file with the passphrase that encrypts scheduled snapshots. Without it they open the cluster to whoever reads them.
    #[arg(long)]
    pub snapshot_passphrase_file: Option<PathBuf>,
    /// Where the bucket is served (https://HOST:PORT); otherwise Amazon's S3.
    #[arg(long)]
    pub snapshot_endpoint: Option<String>,
    /// The bucket's region.
    #[arg(long, default_value = "us-east-1")]
    pub snapshot_region: String,
}

/// What begins the name of each, then when it was taken (UTC), and what ends it.
const NAME: &str = "coracle-";
const TIME: &str = "%Y%m%dT%H%M%S%3fZ";
const SUFFIX: &str = ".snapshot";
/// How often is looked whether a member leads.
const ELECTION: Duration = Duration::from_millis(100);

/// Reads a passphrase; the line's end is no part of it.
pub fn passphrase(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let text = text.trim_end_matches(['\n', '\r']).to_owned();
    ensure!(!text.is_empty(), "{} holds no passphrase", file.display());
    Ok(text)
}

/// What one is called; names are in the order of times, which count by milliseconds.
fn name_of(taken: Timestamp) -> String {
    format!("{NAME}{}{SUFFIX}", taken.strftime(TIME))
}

/// When a scheduled snapshot was taken, by its name; `None`: this is the name of something else.
pub fn taken(name: &str) -> Option<Timestamp> {
    let time = name.strip_prefix(NAME)?.strip_suffix(SUFFIX)?;
    let taken = DateTime::strptime(TIME, time).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    (name_of(taken) == name).then_some(taken)
}

/// Takes them.
pub struct Taker {
    /// Of what.
    pub source: Source,
    /// Where they go.
    pub place: Arc<Place>,
    /// How many are kept.
    pub keep: usize,
    /// What encrypts them.
    pub passphrase: Option<String>,
}

impl Schedule {
    /// Who takes the snapshots; `None`: nobody asked for any.
    pub fn taker(&self, source: &Source) -> Result<Option<Taker>> {
        let (Some(_), Some(to)) = (self.snapshot_every, &self.snapshot_to) else { return Ok(None) };
        let place = Place::open(to, self.snapshot_endpoint.as_deref(), &self.snapshot_region)?;
        Ok(Some(Taker {
            source: source.clone(),
            place: Arc::new(place),
            keep: usize::try_from(self.snapshot_keep)?,
            passphrase: self.snapshot_passphrase_file.as_deref().map(passphrase).transpose()?,
        }))
    }

    /// Takes them until the server stops.
    pub async fn run(&self, taker: Option<Taker>, shutdown: CancellationToken) {
        let (Some(minutes), Some(taker)) = (self.snapshot_every, taker) else { return };
        // The first is taken at once, by whoever was elected by then.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = led(&taker.source.store) => {}
        }
        let mut ticks = tokio::time::interval(Duration::from_secs(minutes * 60));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            // One of the members is enough.
            if taker.source.store.leader().0 != Some(taker.source.membership.member) {
                continue;
            }
            match taker.take().await {
                Ok(name) => tracing::info!(name, "a scheduled snapshot was saved"),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "a scheduled snapshot failed")
                }
            }
        }
    }
}

/// Returns when a member leads.
async fn led(store: &Store) {
    while store.leader().0.is_none() {
        tokio::time::sleep(ELECTION).await;
    }
}

impl Taker {
    /// Takes one now, and removes those that are too many. Returns its name.
    pub async fn take(&self) -> Result<String> {
        let folder = temporary(&self.source.data_dir)?;
        let file = folder.path().join("snapshot");
        self.write(&file).await?;
        // Who may write and not list keeps it all the same.
        let listed = self.place.list().await;
        let mut older: Vec<Timestamp> = listed.iter().flatten().filter_map(|name| taken(name)).collect();
        older.sort();
        // Above the newest: a clock that went back, or another member's, must not make this one the oldest.
        let after = older.last().map(|newest| newest.checked_add(SignedDuration::from_millis(1)));
        let name = name_of(after.transpose()?.into_iter().fold(Timestamp::now(), Timestamp::max));
        self.place.put(&name, &file).await?;
        let doing = || format!("remove snapshots before {name}");
        listed.with_context(doing)?;
        for old in older.iter().take((older.len() + 1).saturating_sub(self.keep)) {
            self.place.remove(&name_of(*old)).await.with_context(doing)?;
        }
        Ok(name)
    }

    async fn write(&self, file: &Path) -> Result<()> {
        use futures::TryStreamExt;
        use std::io::Write;
        let (_, pieces) = self.source.snapshot().await?;
        let mut pieces = std::pin::pin!(pieces);
        let mut out = Output::create(file, self.passphrase.as_deref())?;
        while let Some(piece) = pieces.try_next().await? {
            out.write_all(&piece)?;
        }
        out.finish()
    }
}

/// A snapshot file that is written, encrypted if a passphrase is given.
pub enum Output {
    /// As it is.
    Plain(std::io::BufWriter<std::fs::File>),
    /// Encrypted.
    Sealed(Box<Sealer<std::io::BufWriter<std::fs::File>>>),
}

impl Output {
    /// An empty file that its owner alone may read.
    pub fn create(path: &Path, passphrase: Option<&str>) -> Result<Self> {
        let file = create_private(path).with_context(|| format!("write {}", path.display()))?;
        let file = std::io::BufWriter::new(file);
        Ok(match passphrase {
            None => Self::Plain(file),
            Some(passphrase) => Self::Sealed(Box::new(Sealer::new(file, passphrase)?)),
        })
    }

    /// Brings it to disk.
    pub fn finish(self) -> Result<()> {
        let file = match self {
            Self::Plain(file) => file,
            Self::Sealed(sealer) => sealer.finish()?,
        };
        Ok(file.into_inner().map_err(|error| error.into_error())?.sync_all()?)
    }
}

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(file) => file.write(bytes),
            Self::Sealed(sealer) => sealer.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(file) => file.flush(),
            Self::Sealed(sealer) => sealer.flush(),
        }
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
