//! Nodes that joined servers with tokens, each with a runtime of its own and an address of its own. Profile `loopback`.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ended::Ended;
use crate::left::{Place, Ranges};
use crate::servers::Servers;
use crate::{SOON, eventually};

/// The processes of one node.
struct Node {
    agent: Option<Child>,
    runtime: Option<Child>,
}

/// Servers and the nodes of their cluster.
pub struct Nodes {
    /// The control plane.
    pub servers: Servers,
    nodes: Vec<Node>,
    /// By [`Self::end`].
    finished: bool,
}

impl Nodes {
    /// Joins so many nodes to the first of these servers, and waits until they are ready.
    pub fn join(servers: Servers, count: usize) -> Result<Self> {
        let mut nodes = Self { servers, nodes: Vec::new(), finished: false };
        for index in 0..count {
            let join = nodes.servers.coracle(0, &["token", "create"])?;
            let flags: Vec<&str> = join.split_whitespace().skip(2).collect();
            nodes.nodes.push(Node { agent: None, runtime: None });
            nodes.start(index, &flags)?;
        }
        for index in 0..count {
            nodes.wait_ready(index)?;
            let (root, state) = (nodes.root_dir(index), nodes.path(index, "runtime"));
            let ranges = Ranges::of(nodes.servers.slot());
            nodes.servers.traces.add(Place::new(
                root.canonicalize()?,
                state.canonicalize()?,
                ranges,
                None,
            )?)?;
        }
        Ok(nodes)
    }

    /// Asks for what is left of pods of the nodes that run, by a server that runs, if the test has left one.
    fn nothing_is_left_of_pods(&self) -> Result<()> {
        let runs = |node: &Node| node.agent.is_some() && node.runtime.is_some();
        let nodes = self.nodes.iter().enumerate().filter(|(_, node)| runs(node));
        let nodes: Vec<_> = nodes.map(|(index, _)| index).collect();
        let Some(live) = self.servers.live().first().copied() else { return Ok(()) };
        self.servers.traces.of_gone_pods(&nodes, |path| {
            Ok(serde_json::from_str(
                &self.servers.kubectl(live, &["get", "--request-timeout=10s", "--raw", path])?,
            )?)
        })
    }

    /// A node's name; they are counted from 0.
    pub fn name(index: usize) -> String {
        format!("node-{}", index + 1)
    }

    fn path(&self, index: usize, file: &str) -> PathBuf {
        self.servers.dir().join(Self::name(index)).join(file)
    }

    fn spawn(&self, index: usize, name: &str, command: &mut Command) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.path(index, &format!("{name}.log")))?;
        command.stdout(Stdio::null()).stderr(log).spawn().with_context(|| format!("start the {name}"))
    }

    /// Starts agent and runtime of a node; with flags to join, or without them.
    pub fn start(&mut self, index: usize, flags: &[&str]) -> Result<()> {
        let (root, socket) = (self.path(index, "agent"), self.socket(index));
        let made = self.servers.command("mkdir").arg("-p").arg(&root).status()?;
        anyhow::ensure!(made.success(), "mkdir {}", root.display());
        let agent = self.agent(index, flags)?;
        let mut runtime = self.servers.command(self.servers.binary());
        runtime.arg("runtime").arg("--socket").arg(&socket);
        runtime.arg("--state-dir").arg(self.path(index, "runtime")).args(self.servers.slot().ranges());
        runtime.arg("--registries").arg(root.join("registries.json"));
        let registries = root.join("registries.json");
        if let Some(node) = self.nodes.get_mut(index) {
            node.agent = Some(agent);
        }
        eventually("the node has joined", SOON, || Ok(registries.is_file()))
            .with_context(|| self.logs(index))?;
        let runtime = self.spawn(index, "runtime", &mut runtime)?;
        if let Some(node) = self.nodes.get_mut(index) {
            node.runtime = Some(runtime);
        }
        Ok(())
    }

    /// Where the runtime of a node serves CRI.
    pub fn socket(&self, index: usize) -> PathBuf {
        self.path(index, "cri.sock")
    }

    /// The directory of a node's agent.
    pub fn root_dir(&self, index: usize) -> PathBuf {
        self.path(index, "agent")
    }

    fn agent(&self, index: usize, flags: &[&str]) -> Result<Child> {
        let mut agent = self.servers.command(self.servers.binary());
        agent.arg("node").args(flags).arg(format!("--name={}", Self::name(index)));
        agent.arg(format!("--node-ip={}", self.servers.slot().node(index)));
        agent.arg(format!("--runtime-endpoint=unix://{}", self.socket(index).display()));
        agent.arg("--root-dir").arg(self.root_dir(index));
        // The disk of a test machine may be nearly full, which is not what is tried.
        agent.arg("--eviction-hard=memory.available<100Mi");
        self.spawn(index, "agent", &mut agent)
    }

    /// SIGKILL to the agent of a node, and another one in its place.
    pub fn crash_agent(&mut self, index: usize) -> Result<()> {
        let node = self.nodes.get_mut(index).context("no such node")?;
        if let Some(mut child) = node.agent.take() {
            child.kill()?;
            child.wait()?;
        }
        let agent = self.agent(index, &[])?;
        self.nodes.get_mut(index).context("no such node")?.agent = Some(agent);
        Ok(())
    }

    /// Waits until a node is ready.
    pub fn wait_ready(&self, index: usize) -> Result<()> {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        eventually("the node is ready", SOON, || {
            let live = self.servers.live().first().copied().context("no server runs")?;
            Ok(self.servers.kubectl(live, &["get", "node", &Self::name(index), "-o", path])? == "True")
        })
        .with_context(|| self.logs(index))
    }

    /// SIGKILL to everything of a node: agent, runtime and what runs pods.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        let state = self.path(index, "runtime");
        let node = self.nodes.get_mut(index).context("no such node")?;
        for mut child in [node.agent.take(), node.runtime.take()].into_iter().flatten() {
            child.kill()?;
            child.wait()?;
        }
        // One that is just being started has no command line yet: it is looked for twice.
        let mut seen_none = 0;
        eventually("nothing of the node runs", SOON, || {
            let left = below(&state)?;
            seen_none = if left.is_empty() { seen_none + 1 } else { 0 };
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            Ok(seen_none == 2)
        })
    }

    /// Kills everything. Nothing is left then, and nothing was left before of pods that were gone.
    pub fn end(&mut self) -> Result<Ended> {
        self.nothing_is_left_of_pods()?;
        (0..self.nodes.len()).try_for_each(|index| self.kill(index))?;
        let ended = self.servers.end()?;
        self.finished = true;
        Ok(ended)
    }

    /// The end of a node's logs, for a failure.
    pub fn logs(&self, index: usize) -> String {
        let mut text = String::new();
        for name in ["agent", "runtime"] {
            let log = std::fs::read_to_string(self.path(index, &format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(15).collect();
            text += &format!("\n--- {} {name}\n", Self::name(index));
            for line in lines.into_iter().rev() {
                text += line;
                text.push('\n');
            }
        }
        text
    }
}

/// Processes whose command line names a directory: those that the runtime started.
fn below(directory: &std::path::Path) -> Result<Vec<Pid>> {
    let wanted = directory.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&wanted) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.finished {
                eprintln!("{}", self.logs(index));
            }
            if let Err(error) = self.kill(index) {
                eprintln!("end {}: {error:#}", Self::name(index));
            }
        }
    }
}
