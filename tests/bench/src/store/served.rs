//! The two as processes: ours is this program itself (`--serve-store`), one process for each member.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_store::PeerTls;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::api::RangeRequest;
use super::api::kv_client::KvClient;
use crate::process;

const START: Duration = Duration::from_secs(120);

#[derive(Clone)]
pub enum Program {
    Ours,
    Etcd(PathBuf),
}

/// One of the two: a member alone, or a cluster.
pub struct Served {
    members: Vec<Member>,
    dir: TempDir,
    program: Program,
}

struct Member {
    child: Child,
    address: SocketAddr,
}

/// Where a member is reached.
#[derive(Clone, Copy)]
struct Place {
    id: usize,
    address: SocketAddr,
    peer: SocketAddr,
}

impl Served {
    /// Starts so many members; returns when each answers a read.
    pub async fn start(program: Program, count: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-bench-store-").tempdir()?;
        let mut served = Self { members: Vec::new(), dir, program };
        let places = places(count)?;
        if count > 1 && matches!(served.program, Program::Ours) {
            certify(served.dir.path(), count)?;
        }
        for place in &places {
            let child = served.spawn(*place, &places)?;
            served.members.push(Member { child, address: place.address });
            // Ours join one after the other; etcd's first answers when there are two.
            if let Program::Ours = served.program {
                served.ready(place.address).await?;
            }
        }
        for place in &places {
            served.ready(place.address).await?;
        }
        Ok(served)
    }

    fn spawn(&self, place: Place, all: &[Place]) -> Result<Child> {
        let dir = self.dir.path();
        let data = dir.join(format!("data-{}", place.id));
        let mut command = match &self.program {
            Program::Ours => ours(place, all, dir)?,
            Program::Etcd(etcd) => beside(etcd, place, all),
        };
        match self.program {
            Program::Ours => command.arg("--serve-store").arg(data),
            Program::Etcd(_) => command.arg("--data-dir").arg(data),
        };
        let log = std::fs::File::create(dir.join(format!("log-{}", place.id)))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("start {command:?}"))
    }

    /// A connection to a member; they are taken in turn.
    pub async fn channel(&self, number: usize) -> Result<Channel> {
        let at = number.checked_rem(self.members.len()).and_then(|at| self.members.get(at));
        connect(at.context("no member runs")?.address).await
    }

    /// Waits until a read is answered.
    async fn ready(&self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            if let Ok(channel) = connect(address).await {
                let asked = RangeRequest { key: b"/ready".to_vec(), ..Default::default() };
                if KvClient::new(channel).range(asked).await.is_ok() {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                let logs = (1..=self.members.len()).map(|id| self.dir.path().join(format!("log-{id}")));
                let logs: String = logs.filter_map(|log| std::fs::read_to_string(log).ok()).collect();
                bail!("it does not start:\n{logs}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// CPU time of all members so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.members.iter().map(|member| process::cpu(member.child.id() as i32)).sum()
    }

    /// Resident memory of all members, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let memory = |member: &Member| Ok(process::memory(member.child.id() as i32)?.rss);
        self.members.iter().map(memory).sum()
    }

    /// Kills the only member and starts it again; how long that takes until it answers.
    pub async fn recover(&mut self) -> Result<Duration> {
        let [member] = &mut self.members[..] else { bail!("one that is alone is killed") };
        member.child.kill()?;
        member.child.wait()?;
        let place = Place { id: 1, address: member.address, peer: free()? };
        let started = Instant::now();
        let child = self.spawn(place, &[place])?;
        self.members = vec![Member { child, address: place.address }];
        self.ready(place.address).await?;
        Ok(started.elapsed())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

async fn connect(address: SocketAddr) -> Result<Channel> {
    Ok(Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?)
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Addresses that nobody has, for so many members.
fn places(count: usize) -> Result<Vec<Place>> {
    // Held until all are chosen, so that none is chosen twice.
    let held: Vec<_> = (0..count * 2).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<_> = held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    let pairs = addresses.chunks_exact(2).zip(1..);
    let place = |(pair, id): (&[SocketAddr], usize)| match pair {
        [address, peer] => Some(Place { id, address: *address, peer: *peer }),
        _ => None,
    };
    Ok(pairs.filter_map(place).collect())
}

fn ours(place: Place, all: &[Place], dir: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--at", &place.address.to_string()]);
    if all.len() > 1 {
        command.arg(format!("--member={}@{}", place.id, place.peer));
        command.arg("--certificates").arg(dir.join(format!("tls-{}", place.id)));
        if let Some(first) = all.first().filter(|first| first.id != place.id) {
            command.arg(format!("--join={}@{}", first.id, first.peer));
        }
    }
    Ok(command)
}

/// Members of a cluster talk over TLS, as ours do and as those of Kubernetes do.
fn beside(etcd: &Path, place: Place, all: &[Place]) -> Command {
    let scheme = if all.len() > 1 { "https" } else { "http" };
    let Place { id, address, peer } = place;
    let cluster: Vec<_> =
        all.iter().map(|place| format!("m{}={scheme}://{}", place.id, place.peer)).collect();
    let mut command = Command::new(etcd);
    command.args([
        format!("--name=m{id}"),
        "--quota-backend-bytes=8589934592".to_owned(),
        format!("--listen-client-urls=http://{address}"),
        format!("--advertise-client-urls=http://{address}"),
        format!("--listen-peer-urls={scheme}://{peer}"),
        format!("--initial-advertise-peer-urls={scheme}://{peer}"),
        format!("--initial-cluster={}", cluster.join(",")),
    ]);
    if all.len() > 1 {
        command.arg("--peer-auto-tls");
    }
    command
}

/// Files of a member's certificates.
const FILES: [&str; 5] = ["ca.pem", "server.pem", "server.key", "client.pem", "client.key"];

/// Writes certificates for members 1 to `count`, each set into a directory of its own.
fn certify(dir: &Path, count: usize) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, "members");
    let ca = params.self_signed(&key)?.pem();
    let issuer = Issuer::from_ca_cert_pem(&ca, key)?;
    for id in 1..=count {
        let issue = || -> Result<(String, String)> {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new(vec![PeerTls::name(id as u64)])?;
            Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
        };
        let ((server, server_key), (client, client_key)) = (issue()?, issue()?);
        let to = dir.join(format!("tls-{id}"));
        std::fs::create_dir(&to)?;
        for (name, text) in FILES.into_iter().zip([&ca, &server, &server_key, &client, &client_key]) {
            std::fs::write(to.join(name), text)?;
        }
    }
    Ok(())
}

/// Reads what [`certify`] wrote for one member.
pub fn certificates(dir: &Path) -> Result<PeerTls> {
    let read = |name| std::fs::read_to_string(dir.join(name)).with_context(|| format!("read {name}"));
    let [ca, server, server_key, client, client_key] = FILES.map(read);
    Ok(PeerTls { ca_pem: ca?, server: (server?, server_key?), client: (client?, client_key?) })
}
