//! Which cluster a server belongs to, and as which member: `cluster.json` in its data directory, and the keys that all
//! servers of a cluster share, below `pki`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use coracle_apiserver::ca::ClusterCa;
use coracle_registry::Cidr;
use coracle_store::{PeerTls, Peering, Way};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::kubeconfig::write_secret;

/// Files below `pki` that every server of a cluster has alike: authorities, the key of service account tokens, and fixed
/// tokens. Whoever has them is the cluster.
pub const SHARED_KEYS: [&str; 7] =
    ["ca.key", "ca.crt", "peers/ca.key", "peers/ca.crt", "sa.key", "admin.token", "node.token"];

/// The same that a cluster may lack.
pub const SHARED_IF_THERE: [&str; 1] = [super::encryption::FILE];

/// The names and contents of [`SHARED_KEYS`] and [`SHARED_IF_THERE`].
pub type Keys = BTreeMap<String, String>;

/// What a server knows of its cluster from its first start on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The cluster's id.
    pub cluster: String,
    /// This server's id among the members.
    pub member: u64,
    /// Addresses of Services, fixed when the cluster is made.
    pub service_cidr: String,
    /// Addresses of pods, likewise.
    pub pod_cidr: String,
    /// Members known when this one joined, as id and `host:port`.
    #[serde(default)]
    pub join: Vec<(u64, String)>,
    /// Whether this member has been in: from then on its store is never missing.
    #[serde(default)]
    pub entered: bool,
}

impl Membership {
    /// What lies in a data directory.
    pub fn read(data_dir: &Path) -> Result<Option<Self>> {
        let path = file(data_dir);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).with_context(|| format!("read {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Writes it down; the last thing that a new member does before it starts.
    pub fn write(&self, data_dir: &Path) -> Result<()> {
        write_secret(&file(data_dir), &format!("{}\n", serde_json::to_string_pretty(self)?))
    }

    /// The first member of a new cluster.
    pub fn first(service_cidr: Cidr, pod_cidr: Cidr) -> Self {
        Self {
            cluster: hex::encode(rand::random::<[u8; 16]>()),
            member: 1,
            service_cidr: service_cidr.to_string(),
            pod_cidr: pod_cidr.to_string(),
            join: Vec::new(),
            entered: false,
        }
    }

    /// Refuses a store that was lost. What this member promised the others is lost with it: it may have acknowledged writes
    /// for a majority that would not be one without it.
    pub fn check_store(&self, store: &Path) -> Result<()> {
        let lost = self.entered && !store.join("state.redb").exists() && !store.join("log.redb").exists();
        let (id, store) = (self.member, store.display());
        ensure!(
            !lost,
            "{store} is empty, but this server has been in its cluster before, as member {id}: put it out (`coracle member \
             remove {id}`) and let it join with an empty data directory; a cluster of one is restored from a snapshot"
        );
        Ok(())
    }

    /// Notes that this member is in.
    pub fn enter(&self, data_dir: &Path) -> Result<()> {
        if self.entered { Ok(()) } else { Self { entered: true, ..self.clone() }.write(data_dir) }
    }

    /// What others may take over: of the cluster, not of this member's past.
    pub fn to_share(&self) -> Self {
        Self { entered: false, ..self.clone() }
    }

    /// The cluster's Service range, which a flag may repeat and not change.
    pub fn services(&self, asked: Option<Cidr>) -> Result<Cidr> {
        range("--service-cidr", &self.service_cidr, asked)
    }

    /// The cluster's pod range, likewise.
    pub fn pods(&self, asked: Option<Cidr>) -> Result<Cidr> {
        range("--pod-cidr", &self.pod_cidr, asked)
    }

    /// How this member meets the others. Their certificates come from an authority that signs for nothing else.
    pub fn peering(&self, pki: &Path, listener: TcpListener, address: SocketAddr) -> Result<Peering> {
        let ca = ClusterCa::open(pki.join("peers")).context("the members' certificate authority")?;
        let name = PeerTls::name(self.member);
        let server = ca.ensure_server("member", &name, std::slice::from_ref(&name))?;
        let client = ca.ensure_client("member-client", &name, &[])?;
        Ok(Peering {
            way: Way::Sockets {
                listener,
                tls: PeerTls {
                    ca_pem: ca.cert_pem().to_owned(),
                    server: (server.cert_pem, server.key_pem),
                    client: (client.cert_pem, client.key_pem),
                },
                dial: None,
            },
            address: address.to_string(),
            cluster: self.cluster.clone(),
            join: self.join.clone(),
            routes: axum::Router::new(),
        })
    }
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("cluster.json")
}

fn range(flag: &str, kept: &str, asked: Option<Cidr>) -> Result<Cidr> {
    let kept: Cidr = kept.parse().map_err(|error| anyhow::anyhow!("cluster.json: {error}"))?;
    match asked {
        Some(asked) if asked.to_string() != kept.to_string() => {
            bail!("{flag} {asked}: the cluster was made with {kept}, which cannot be changed")
        }
        _ => Ok(kept),
    }
}

/// Reads the shared keys.
pub fn read_keys(pki: &Path) -> Result<Keys> {
    let there = SHARED_IF_THERE.iter().filter(|name| pki.join(name).exists());
    let read = |name: &&str| {
        let path = pki.join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(((*name).to_owned(), text))
    };
    SHARED_KEYS.iter().chain(there).map(read).collect()
}

/// Writes the shared keys of a cluster into an empty directory.
pub fn write_keys(pki: &Path, keys: &Keys) -> Result<()> {
    for name in SHARED_KEYS {
        ensure!(keys.contains_key(name), "the keys of the cluster are not complete: {name} is missing");
    }
    // The names come from elsewhere: none but these is written.
    let known = |name: &str| SHARED_KEYS.contains(&name) || SHARED_IF_THERE.contains(&name);
    for (name, text) in keys.iter().filter(|(name, _)| known(name)) {
        write_secret(&pki.join(name), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_fixed() {
        let one = Membership::first("127.96.0.0/12".parse().unwrap(), "127.64.0.0/11".parse().unwrap());
        assert_eq!(one.services(None).unwrap().to_string(), "127.96.0.0/12");
        assert!(one.services(Some("127.96.0.0/12".parse().unwrap())).is_ok());
        let error = one.pods(Some("10.0.0.0/8".parse().unwrap())).unwrap_err();
        assert!(error.to_string().contains("the cluster was made with 127.64.0.0/11"), "{error}");
    }

    #[test]
    fn a_store_that_was_lost_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let member = Membership::first("127.96.0.0/12".parse().unwrap(), "127.64.0.0/11".parse().unwrap());
        member.write(dir.path()).unwrap();
        // A first start that did not come far is tried again.
        member.check_store(&store).unwrap();
        member.enter(dir.path()).unwrap();
        let member = Membership::read(dir.path()).unwrap().unwrap();
        member.to_share().check_store(&store).unwrap();
        let error = member.check_store(&store).unwrap_err().to_string();
        assert!(error.contains("coracle member remove 1"), "{error}");
        std::fs::create_dir(&store).unwrap();
        std::fs::write(store.join("log.redb"), "").unwrap();
        member.check_store(&store).unwrap();
    }

    #[test]
    fn only_known_keys_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys: Keys = SHARED_KEYS.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        keys.insert("../evil".into(), "y".into());
        write_keys(&dir.path().join("pki"), &keys).unwrap();
        assert!(!dir.path().join("evil").exists());
        assert_eq!(read_keys(&dir.path().join("pki")).unwrap().len(), SHARED_KEYS.len());
        keys.remove("sa.key");
        assert!(write_keys(&dir.path().join("other"), &keys).is_err());
    }
}
