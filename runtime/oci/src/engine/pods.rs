//! What the containers of a pod share: namespaces, names, shared memory.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use coracle_cri_api::v1;

use super::{Engine, names};
use crate::bundle::Shared;
use crate::{cgroup, namespaces, pause};

/// Size of a pod's shared memory.
const SHM: &str = "mode=1777,size=65536k";

/// A pod to be made.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    pub id: &'a str,
    pub config: &'a v1::PodSandboxConfig,
    pub hostname: &'a str,
    /// `None`: the pod is on the host's network.
    pub address: Option<Ipv4Addr>,
}

impl Engine {
    /// The folder of a pod.
    pub fn pod_dir(&self, id: &str) -> PathBuf {
        self.settings.dir.join("pods").join(id)
    }

    /// The network namespace of a pod that has one.
    pub fn netns(&self, id: &str) -> PathBuf {
        namespaces::network(&self.pod_dir(id))
    }

    /// Makes a pod's namespaces and files. Its network is connected to nothing yet. Again is fine.
    pub async fn make_pod(&self, pod: Pod<'_>) -> anyhow::Result<()> {
        let dir = self.pod_dir(pod.id);
        let hosts = pod.address.map(|address| hosts(address, pod.hostname));
        let resolv = resolv_conf(pod.config.dns_config.as_ref());
        let hostname = pod.hostname.to_owned();
        let security = pod.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.as_ref());
        let processes = options.is_some_and(|o| o.pid() == v1::NamespaceMode::Pod);
        let shim = processes.then(|| self.settings.shim_command.clone());
        self.limit_pod(pod.id, pod.config).await?;
        let made = tokio::task::spawn_blocking(move || -> io::Result<()> {
            std::fs::create_dir_all(dir.join("shm"))?;
            let hosts =
                hosts.map_or_else(|| std::fs::read("/etc/hosts").unwrap_or_default(), String::into_bytes);
            std::fs::write(dir.join("hosts"), hosts)?;
            std::fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
            let resolv = resolv
                .map_or_else(|| std::fs::read("/etc/resolv.conf").unwrap_or_default(), String::into_bytes);
            std::fs::write(dir.join("resolv.conf"), resolv)?;
            if let Some(command) = shim {
                pause::make(&dir, &command).map_err(|e| io::Error::other(format!("{e:#}")))?;
            }
            if namespaces::exist(&dir) {
                return Ok(());
            }
            namespaces::make(&dir, namespaces_name(&dir, &hostname).as_deref())?;
            let flags = nix::mount::MsFlags::MS_NOSUID
                | nix::mount::MsFlags::MS_NODEV
                | nix::mount::MsFlags::MS_NOEXEC;
            nix::mount::mount(Some("shm"), &dir.join("shm"), Some("tmpfs"), flags, Some(SHM))
                .map_err(Into::into)
        });
        // Whether the pod has names of its own is told by a file: namespaces are made again after a reboot.
        if pod.address.is_none() {
            std::fs::create_dir_all(self.pod_dir(pod.id))?;
            std::fs::write(self.pod_dir(pod.id).join("host-network"), "")?;
        }
        made.await?.with_context(|| format!("make the namespaces of pod {}", pod.id))
    }

    /// Gives a pod's group the weight and the limits of its config; a group that the caller named is the caller's.
    ///
    /// # Errors
    /// What the kernel refuses, such as, in version 1 of control groups, less than a container of the pod may use.
    pub async fn limit_pod(&self, id: &str, config: &v1::PodSandboxConfig) -> anyhow::Result<()> {
        let Some(linux) = &config.linux else { return Ok(()) };
        if own_parent(linux).is_some() || (linux.resources.is_none() && linux.overhead.is_none()) {
            return Ok(());
        }
        let (group, limits) = (cgroup_of_pod(id), cgroup::pod::Limits::of(linux));
        tokio::task::spawn_blocking(move || cgroup::pod::limit(&group, &limits))
            .await?
            .with_context(|| format!("limit pod {id}"))
    }

    /// Whether a pod's namespaces are there.
    pub fn has_pod(&self, id: &str) -> bool {
        namespaces::exist(&self.pod_dir(id))
    }

    /// Removes a pod's namespaces and files; its containers have to be gone. Again is fine.
    pub async fn remove_pod(&self, id: &str) -> anyhow::Result<()> {
        let dir = self.pod_dir(id);
        let group = cgroup_of_pod(id);
        tokio::task::spawn_blocking(move || -> io::Result<()> {
            cgroup::remove(&group);
            if !dir.exists() {
                return Ok(());
            }
            pause::remove(&dir)?;
            namespaces::unmount(&dir.join("shm"))?;
            namespaces::remove(&dir)?;
            std::fs::remove_dir_all(&dir)
        })
        .await?
        .with_context(|| format!("remove pod {id}"))
    }

    /// Ends what is left of the processes of a pod that has stopped. Again is fine.
    pub async fn end_processes(&self, id: &str) -> anyhow::Result<()> {
        let dir = self.pod_dir(id);
        tokio::task::spawn_blocking(move || pause::remove(&dir)).await?.context("end the pod's first process")
    }

    pub(super) fn shared(&self, id: &str, config: &v1::PodSandboxConfig) -> Shared {
        let dir = self.pod_dir(id);
        let own_network = !dir.join("host-network").exists();
        let cgroup = config.linux.as_ref().and_then(own_parent).unwrap_or_else(|| cgroup_of_pod(id));
        Shared {
            network: own_network.then(|| namespaces::network(&dir)),
            uts: own_network.then(|| namespaces::uts(&dir)),
            ipc: Some(namespaces::ipc(&dir)),
            pid: None,
            cgroup,
            dir,
        }
    }

    /// Ids of pods that have a folder here.
    pub fn pods(&self) -> Vec<String> {
        names(&self.settings.dir.join("pods"))
    }
}

/// `None` keeps the host's names.
fn namespaces_name(dir: &Path, hostname: &str) -> Option<String> {
    (!dir.join("host-network").exists()).then(|| hostname.to_owned())
}

/// The group that the caller made for the pod. One in systemd's words is for its driver; the folders here are our own.
fn own_parent(linux: &v1::LinuxPodSandboxConfig) -> Option<String> {
    let parent = linux.cgroup_parent.as_str();
    (parent.starts_with('/') && !parent.contains("..")).then(|| parent.trim_end_matches('/').to_owned())
}

fn cgroup_of_pod(id: &str) -> String {
    format!("{}/{id}", coracle_cri_api::PODS_GROUP)
}

fn hosts(address: Ipv4Addr, hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{address}\t{hostname}\n"
    )
}

/// `None`: nothing is asked for, the host's own holds.
fn resolv_conf(dns: Option<&v1::DnsConfig>) -> Option<String> {
    let dns = dns.filter(|d| !d.servers.is_empty() || !d.searches.is_empty() || !d.options.is_empty())?;
    let mut text: String = dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_resolved_as_asked() {
        let dns = v1::DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(Some(&dns)).unwrap(),
            "nameserver 10.96.0.10\nsearch a.b b\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(Some(&v1::DnsConfig::default())), None);
    }
}
