//! A cluster of several machines: a server and nodes, each on a host of its own. Profile `routed`.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::ended::Ended;
use crate::left::{Place, Ranges, Traces};
use crate::netns::{Host, Network};
use crate::program;
use crate::{SOON, eventually, guest_file, kubectl, succeed};

const PODS: &str = "10.244.0.0/16";
const SERVICES: &str = "10.96.0.0/16";
const DNS: &str = "10.96.0.10";

/// One server on the first host, and a node on each of the others; more servers on the hosts behind them.
pub struct Machines {
    /// How many nodes there are; the host of server N (from 0) is N + this, the one of the first server is 0.
    nodes: usize,
    /// What runs, with the name of its log.
    processes: Vec<(String, Child)>,
    dir: TempDir,
    bin: PathBuf,
    cni: Option<PathBuf>,
    /// Further flags of nodes.
    flags: Vec<String>,
    /// In order.
    stopped: bool,
    traces: Traces,
    /// The hosts: 0 is the server's, N is the one of node N.
    pub network: Network,
}

impl Machines {
    /// Starts a server and so many nodes; `server` are further flags of the server.
    pub fn start(nodes: usize, server: &[&str]) -> Result<Self> {
        Self::start_with_cni(nodes, server, None)
    }

    /// Starts so many servers, of which all but the first join it, and so many nodes.
    pub fn start_servers(servers: usize, nodes: usize, flags: &[&str]) -> Result<Self> {
        Self::start_all(servers, nodes, flags, None)
    }

    /// As [`Self::start`], with a CNI configuration on each node.
    pub fn start_with_cni(nodes: usize, server: &[&str], cni: Option<&str>) -> Result<Self> {
        Self::start_all(1, nodes, server, cni)
    }

    /// A server, and one node with further flags over a runtime that is not ours: `runtime` starts it in a folder and on a
    /// host, and answers the socket that it serves CRI on.
    pub fn start_over<T>(
        node: &[&str],
        runtime: impl FnOnce(&std::path::Path, &Host) -> Result<(PathBuf, T)>,
    ) -> Result<(Self, T)> {
        let dir = tempfile::Builder::new().prefix("coracle-e2e-").tempdir()?;
        let (bin, network) = (program::coracle()?, Network::new(2)?);
        let flags = node.iter().map(|flag| (*flag).to_owned()).collect();
        let traces = Traces::new(dir.path())?;
        let processes = Vec::new();
        let mut machines =
            Self { nodes: 1, processes, dir, bin, cni: None, flags, stopped: false, traces, network };
        let folder = machines.path("peer");
        std::fs::create_dir(&folder)?;
        let (socket, peer) = runtime(&folder, machines.network.host(1)?)?;
        std::os::unix::fs::symlink(socket, machines.path("cri-1.sock"))?;
        machines.serve(0, &[])?;
        machines.node(1)?;
        eventually("the node is ready", SOON, || {
            let nodes = machines.get(&["nodes"])?;
            Ok(nodes["items"].as_array().is_some_and(|items| items.len() == 1 && items.iter().all(is_ready)))
        })
        .with_context(|| machines.logs())?;
        machines.follow()?;
        Ok((machines, peer))
    }

    fn start_all(servers: usize, nodes: usize, server: &[&str], cni: Option<&str>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-e2e-").tempdir()?;
        let bin = program::coracle()?;
        let network = Network::new(nodes + servers)?;
        let (processes, flags, traces) = (Vec::new(), Vec::new(), Traces::new(dir.path())?);
        let mut machines =
            Self { nodes, processes, dir, bin, cni: None, flags, stopped: false, traces, network };
        if let Some(configuration) = cni {
            let folder = machines.path("cni");
            std::fs::create_dir(&folder)?;
            std::fs::write(folder.join("10-net.conf"), configuration)?;
            machines.cni = Some(folder);
        }
        for index in 0..servers {
            machines.serve(index, server)?;
        }
        for index in 1..=nodes {
            machines.runtime(index)?;
            machines.node(index)?;
        }
        eventually("every node is ready", SOON, || {
            let nodes_ready = machines.get(&["nodes"])?;
            let items = nodes_ready["items"].as_array().context("no items")?;
            Ok(items.len() == nodes && items.iter().all(is_ready))
        })
        .with_context(|| machines.logs())?;
        machines.follow()?;
        Ok(machines)
    }

    fn follow(&mut self) -> Result<()> {
        let dir = self.dir.path().canonicalize()?;
        for index in 1..=self.nodes {
            let host = Some(self.network.host(index)?.clone());
            let (root, state) = (dir.join(format!("node-{index}")), dir.join(format!("runtime-{index}")));
            self.traces.add(Place::new(root, state, Ranges::routed(), host)?)?;
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.processes.iter().any(|(log, _)| log == name)
    }

    /// The nodes, counted from 1, of which the test has ended neither the agent nor the runtime.
    fn whole_nodes(&self) -> Vec<usize> {
        let is_whole = |n: &usize| self.has(&format!("node-{n}")) && self.has(&format!("runtime-{n}"));
        (1..=self.nodes).filter(is_whole).collect()
    }

    /// A server that the test has not ended.
    fn any_server(&self) -> Option<usize> {
        let servers = self.network.hosts.len().saturating_sub(self.nodes);
        (0..servers).find(|index| self.has(&Self::server(*index)))
    }

    fn nothing_is_left_of_pods(&self, server: usize, nodes: &[usize]) -> Result<()> {
        self.traces.of_gone_pods(nodes, |path| {
            Ok(serde_json::from_str(
                &self.kubectl_at(server, &["get", "--request-timeout=10s", "--raw", path])?,
            )?)
        })
    }

    /// Deletes all that runs: pods outlive their node's agent and runtime. Waits until these nodes have none.
    fn empty(&self, server: usize, nodes: &[usize]) -> Result<()> {
        let kinds = "cronjobs,jobs,daemonsets,deployments,statefulsets,replicasets,pods";
        self.kubectl_at(server, &["delete", kinds, "--all", "--all-namespaces", "--now", "--wait=false"])?;
        let names: Vec<_> = nodes.iter().map(|n| format!("node-{n}")).collect();
        eventually("the nodes have no pods", SOON, || {
            let path = "jsonpath={range .items[*]}{.spec.nodeName}/{.metadata.name} {end}";
            let pods = self.kubectl_at(server, &["get", "pods", "--all-namespaces", "-o", path])?;
            let on = |pod: &&str| pod.split('/').next().is_some_and(|node| names.iter().any(|n| n == node));
            let left: Vec<_> = pods.split_whitespace().filter(on).collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(true)
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn spawn(&mut self, host: usize, log: &str, args: &[String]) -> Result<()> {
        let mut command = self.network.host(host)?.command(&self.bin);
        let file = File::options().create(true).append(true).open(self.path(&format!("{log}.log")))?;
        command.args(args).current_dir(self.dir.path()).env("HOME", self.dir.path());
        command.env_remove("RUST_BACKTRACE");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("start {log}"))?;
        self.processes.push((log.to_owned(), child));
        Ok(())
    }

    /// The name of a server's log and directory, counted from 0.
    pub fn server(index: usize) -> String {
        if index == 0 { "server".into() } else { format!("server-{index}") }
    }

    /// The host of a server, counted from 0.
    pub fn server_host(&self, index: usize) -> usize {
        if index == 0 { 0 } else { self.nodes + index }
    }

    /// The administrator's kubeconfig that points at a server.
    pub fn kubeconfig(&self, index: usize) -> PathBuf {
        self.path(&if index == 0 { "kubeconfig".into() } else { format!("kubeconfig-{index}") })
    }

    /// Starts a server, for the first time or again.
    pub fn serve(&mut self, index: usize, more: &[&str]) -> Result<()> {
        let (name, host) = (Self::server(index), self.server_host(index));
        let address = self.network.host(host)?.address.clone();
        let mut args: Vec<String> = ["server", "--data-dir"].map(String::from).into();
        args.push(self.shown(&name));
        args.push(format!("--listen={address}:6443"));
        args.push(format!("--pod-cidr={PODS}"));
        args.push(format!("--service-cidr={SERVICES}"));
        args.push(format!("--write-kubeconfig={}", self.kubeconfig(index).display()));
        // Only for the registries' credentials: nodes join with tokens.
        args.push(format!("--local-node=nobody={address}"));
        if index > 0 && !self.path(&name).is_dir() {
            let token = succeed(self.client(&self.bin)?.args(["member", "token"]))?;
            args.push(format!("--join=https://{}:6443", self.network.host(0)?.address));
            args.push(format!("--token={}", token.trim()));
        }
        args.extend(more.iter().map(|flag| (*flag).to_owned()));
        let file = self.path(&name).join("node/kubeconfig");
        // The last thing that a server writes before it is ready.
        let _ = std::fs::remove_file(&file);
        self.spawn(host, &name, &args)?;
        eventually("the server is ready", SOON, || Ok(file.is_file())).with_context(|| self.logs())
    }

    /// Whether a process still runs.
    pub fn runs(&mut self, name: &str) -> Result<bool> {
        let found = self.processes.iter_mut().find(|(log, _)| log == name);
        Ok(match found {
            Some((_, child)) => child.try_wait()?.is_none(),
            None => false,
        })
    }

    /// Runs the exact kubectl against a server, on that server's host; its standard output.
    pub fn kubectl_at(&self, server: usize, args: &[&str]) -> Result<String> {
        let mut command = self.client_on(self.server_host(server), kubectl()?)?;
        succeed(command.env("KUBECONFIG", self.kubeconfig(server)).args(args))
    }

    /// Starts the runtime of a node.
    pub fn runtime(&mut self, index: usize) -> Result<()> {
        let mut args = vec![
            "runtime".into(),
            format!("--socket={}", self.shown(&format!("cri-{index}.sock"))),
            format!("--state-dir={}", self.shown(&format!("runtime-{index}"))),
            format!("--registries={}", self.shown("server/node/registries.json")),
            format!("--pod-cidr={PODS}"),
            format!("--service-cidr={SERVICES}"),
            "--network=routed".into(),
        ];
        if let Some(folder) = &self.cni {
            args.push(format!("--cni-conf-dir={}", folder.display()));
        }
        self.spawn(index, &format!("runtime-{index}"), &args)?;
        let socket = self.path(&format!("cri-{index}.sock"));
        eventually("the runtime is ready", SOON, || Ok(socket.exists())).with_context(|| self.logs())
    }

    /// Starts the agent of a node.
    pub fn node(&mut self, index: usize) -> Result<()> {
        let address = self.network.host(index)?.address.clone();
        let server = self.network.host(0)?.address.clone();
        let mut args = vec![
            "node".into(),
            format!("--name=node-{index}"),
            format!("--node-ip={address}"),
            format!("--runtime-endpoint=unix://{}", self.shown(&format!("cri-{index}.sock"))),
            format!("--root-dir={}", self.shown(&format!("node-{index}"))),
            format!("--cluster-dns={DNS}"),
            // The disk that the test runs on may be fuller than a node's should be.
            "--eviction-hard=memory.available<100Mi".into(),
            format!("--service-cidr={SERVICES}"),
            "--network=routed".into(),
        ];
        args.extend(self.flags.iter().cloned());
        // (Its first start alone names the server that it joins.)
        if !self.path(&format!("node-{index}")).is_dir() {
            let token = succeed(self.client(&self.bin)?.args(["token", "create", "--token-only"]))?;
            args.push(format!("--join=https://{server}:6443"));
            args.push(format!("--token={}", token.trim()));
        }
        self.spawn(index, &format!("node-{index}"), &args)
    }

    /// Ends a process by its log's name (`server`, `node-1`, `runtime-2`) with this signal, and waits for its end.
    pub fn end(&mut self, name: &str, signal: Signal) -> Result<()> {
        let at = self.processes.iter().position(|(log, _)| log == name).context("no such process")?;
        let (_, child) = self.processes.remove(at);
        end(name, child, signal).map(drop)
    }

    fn client(&self, program: impl AsRef<std::path::Path>) -> Result<Command> {
        self.client_on(0, program)
    }

    fn client_on(&self, host: usize, program: impl AsRef<std::path::Path>) -> Result<Command> {
        let mut command = self.network.host(host)?.command(program.as_ref());
        command
            .current_dir(self.dir.path())
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.path("kubeconfig"))
            .env("KUBECACHEDIR", self.path("kubecache"))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs the exact kubectl on the server's host; its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        succeed(self.client(kubectl()?)?.args(args))
    }

    /// An object or list as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Applies objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let path = self.path("objects.json");
        std::fs::write(&path, list.to_string())?;
        self.kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
    }

    /// Pushes a guest under a name.
    pub fn push(&self, guest: &str, tag: &str) -> Result<()> {
        let built = guest_file(guest)?;
        succeed(self.client(&self.bin)?.args(["image", "push", &built.display().to_string(), tag])).map(drop)
    }

    /// Pushes an image of busybox.
    pub fn push_busybox(&self, tag: &str) -> Result<()> {
        let folder = self.path("busybox");
        let config =
            serde_json::json!({"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin"], "StopSignal": "SIGKILL"});
        crate::layout::busybox(&folder, config)?;
        succeed(self.client(&self.bin)?.args(["image", "push", &folder.display().to_string(), tag])).map(drop)
    }

    /// A host: 0 is the server's, N the one of node N.
    pub fn host(&self, index: usize) -> Result<&Host> {
        self.network.host(index)
    }

    /// The end of each process's log, for a failure; of those that have ended too.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        let entries = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten().map(|e| e.path());
        let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
        files.sort();
        for file in files {
            let name = file.file_stem().unwrap_or_default().display();
            let log = std::fs::read_to_string(&file).unwrap_or_default();
            let mut lines: Vec<_> = log.lines().rev().take(12).collect();
            lines.reverse();
            text += &format!("\n--- {name}\n{}\n", lines.join("\n"));
        }
        text
    }

    /// Ends everything in order, pods first, of which nothing is left then; each process must end by itself, successfully.
    /// Nothing is left in the end of nodes that the test has not ended itself.
    pub fn stop(mut self) -> Result<Ended> {
        let nodes: Vec<_> = self.whole_nodes();
        let places: Vec<_> = nodes.iter().map(|n| n - 1).collect();
        if let Some(server) = self.any_server() {
            self.empty(server, &nodes)?;
            self.nothing_is_left_of_pods(server, &places)?;
        }
        while let Some((name, child)) = self.processes.pop() {
            let status = end(&name, child, Signal::SIGTERM)?;
            ensure!(status.success(), "{name} ended with {status}");
        }
        self.traces.of_empty_nodes(&places)?;
        self.stopped = true;
        Ok(Ended::well())
    }
}

fn end(name: &str, mut child: Child, signal: Signal) -> Result<ExitStatus> {
    kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
    let mut status = None;
    eventually(&format!("{name} ends"), Duration::from_secs(20), || {
        status = child.try_wait()?;
        Ok(status.is_some())
    })?;
    status.with_context(|| format!("{name} has no status"))
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

impl Drop for Machines {
    fn drop(&mut self) {
        if !self.stopped {
            eprintln!("{}", self.logs());
        }
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What they started in turn.
        self.network.end();
        crate::netns::clear_containers(self.dir.path());
    }
}
