//! `coracle snapshot`: the whole state of a cluster in one file, and a new cluster out of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use coracle_store::Store;
use futures::AsyncReadExt;

use super::server::{archive, membership, schedule};
use crate::data_dir::{begin_restore, clear_temporary, end_restore, make_private, rename_durably, temporary};
use crate::kubeconfig::Cluster;

#[derive(Subcommand)]
pub enum Command {
    /// Save the cluster's objects and keys while it runs. The file opens the cluster: keep it as you keep keys.
    Save(Save),
    /// Check a saved cluster and say what it holds.
    Status(Status),
    /// Make the data directory of a new server out of a saved cluster. Other servers join it anew.
    Restore(Restore),
}

#[derive(Args)]
pub struct Save {
    /// Where to write it.
    file: PathBuf,
    /// A file whose first line encrypts the snapshot; whoever restores it needs the same.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
}

#[derive(Args)]
pub struct Status {
    /// What `save` wrote, or a server by its schedule.
    file: PathBuf,
    /// A file with the passphrase that it was encrypted with.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Restore {
    /// What `save` wrote.
    file: PathBuf,
    /// A file with the passphrase that it was encrypted with.
    #[arg(long)]
    passphrase_file: Option<PathBuf>,
    /// The data directory of `coracle server` (of `coracle up`: its folder `server`); it must not exist, or be empty.
    #[arg(long)]
    data_dir: PathBuf,
}

pub fn run(command: Command) -> Result<()> {
    super::run_client(async {
        match command {
            Command::Save(options) => save(&options).await,
            Command::Status(options) => status(&options),
            Command::Restore(options) => restore(&options).await,
        }
    })
}

async fn save(options: &Save) -> Result<()> {
    let (client, _) = options.cluster.client().await?;
    let mut part = options.file.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let passphrase = options.passphrase_file.as_deref().map(schedule::passphrase).transpose()?;
    let saved = download(&client, &part, passphrase.as_deref()).await;
    let kept = saved.and_then(|()| {
        // What cannot be read back is no snapshot.
        archive::check(&part, passphrase.as_deref())?;
        rename_durably(&part, &options.file).with_context(|| format!("write {}", options.file.display()))
    });
    if kept.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    kept?;
    super::print(format!("saved to {}\n", options.file.display()))
}

async fn download(client: &kube::Client, part: &Path, passphrase: Option<&str>) -> Result<()> {
    let request = http::Request::get("/coracle/snapshot").body(Vec::new())?;
    let body = client.request_stream(request).await?;
    let mut body = std::pin::pin!(body);
    let mut out = schedule::Output::create(part, passphrase)?;
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = body.read(&mut piece).await.context("read the snapshot")?;
        if read == 0 {
            break;
        }
        out.write_all(piece.get(..read).unwrap_or_default())?;
    }
    out.finish()
}

fn status(options: &Status) -> Result<()> {
    let passphrase = options.passphrase_file.as_deref().map(schedule::passphrase).transpose()?;
    let (head, found) = archive::inspect(&options.file, passphrase.as_deref())?;
    let sealed = if archive::is_sealed(&options.file)? { "with a passphrase" } else { "no" };
    let members: Vec<String> = found.members.iter().map(u64::to_string).collect();
    super::print(format!(
        "cluster:    {}\nrevision:   {} (history from {})\nkeys:       {}\nmembers:    {}\nsize:       {} bytes\n\
         format:     {}\nencrypted:  {sealed}\nService IPs: {}\npod IPs:    {}\n",
        head.membership.cluster,
        found.revision,
        found.compacted_revision,
        found.keys,
        members.join(", "),
        std::fs::metadata(&options.file)?.len(),
        found.format,
        head.membership.service_cidr,
        head.membership.pod_cidr,
    ))
}

async fn restore(options: &Restore) -> Result<()> {
    let dir = &options.data_dir;
    match std::fs::read_dir(dir) {
        Ok(mut entries) => ensure!(entries.next().is_none(), "{} is not empty", dir.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => bail!("{}: {error}", dir.display()),
    }
    make_private(dir).with_context(|| format!("create {}", dir.display()))?;
    begin_restore(dir).with_context(|| format!("write to {}", dir.display()))?;
    let restored = restore_into(dir, options).await;
    let cleared = clear_temporary(dir).and(if restored.is_ok() { Ok(()) } else { empty(dir) });
    // What cannot be cleared away stays marked.
    let ended = cleared.and_then(|()| end_restore(dir));
    let revision = restored?;
    ended.with_context(|| format!("clear {}", dir.display()))?;
    super::print(format!(
        "restored to {}, at revision {revision}; start `coracle server --data-dir {}`\n",
        dir.display(),
        dir.display()
    ))
}

/// Takes away what [`restore_into`] made, for the next attempt.
fn empty(dir: &Path) -> std::io::Result<()> {
    ["pki", "store"].iter().try_for_each(|made| match std::fs::remove_dir_all(dir.join(made)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

/// Fills the directory; returns the revision that the store goes on from.
async fn restore_into(dir: &Path, options: &Restore) -> Result<u64> {
    let folder = temporary(dir)?;
    let state = folder.path().join("state");
    let passphrase = options.passphrase_file.as_deref().map(schedule::passphrase).transpose()?;
    let head = archive::unpack(&options.file, &state, passphrase.as_deref())?;
    // A cluster of its own: members of the lost one that may still live are strangers to it.
    let restored = membership::Membership {
        cluster: hex::encode(rand::random::<[u8; 16]>()),
        member: 1,
        join: Vec::new(),
        ..head.membership
    };
    membership::write_keys(&dir.join("pki"), &head.keys)?;
    let revision =
        Store::restore(&dir.join("store"), &state, restored.member).await.context("restore the store")?;
    // Last: without it the directory is none of a server.
    restored.write(dir)?;
    Ok(revision)
}
