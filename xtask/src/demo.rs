//! `cargo xtask demo`: Coracle on this machine, with examples/hello deployed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::guests;
use crate::process::{cargo, output, root, shown};

#[derive(Args)]
pub struct Options {
    /// Check the answer, shut down cleanly and exit.
    #[arg(long)]
    once: bool,
    /// Arguments for `coracle up`, such as --node-ip.
    #[arg(last = true)]
    up: Vec<String>,
}

/// How long the example may take until it answers.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn run(options: &Options) -> Result<()> {
    say("building the example's wasm component");
    guests::build_all()?;
    say("building coracle");
    // The whole workspace, so that the tests find the same dependencies built.
    shown(cargo().args(["build", "--workspace", "--bins"]).current_dir(root()))?;
    // From here on a signal is taken by a thread, so that the directory is removed in any case. Children get theirs back.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("block signals")?;
    let dir = tempfile::Builder::new().prefix("coracle-demo-").tempdir()?;
    let mut up = Up::start(dir.path(), &options.up)?;
    let child = Pid::from_raw(i32::try_from(up.child.id())?);
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            // It stops the pods in order and ends; told twice, it hurries.
            let _ = kill(child, Signal::SIGTERM);
        }
    });
    let shown = deploy(dir.path());
    match &shown {
        Ok(()) if !options.once => {
            println!("\nCtrl-C ends it.");
            let status = up.child.wait()?;
            if !status.success() {
                bail!("coracle up ended with {status}");
            }
            Ok(())
        }
        _ => up.stop().and(shown),
    }
}

/// Whether a signal has asked for the end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

struct Up {
    child: Child,
}

impl Up {
    fn start(dir: &Path, arguments: &[String]) -> Result<Self> {
        say("starting coracle up");
        let mut child = Command::new(binary())
            .arg("up")
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            // A group of its own: Ctrl-C reaches us alone, and we tell it.
            .process_group(0)
            .spawn()
            .context("start coracle up")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout of coracle up")?).read_line(&mut line)?;
        if line.is_empty() {
            bail!("coracle up ended before it was ready: {}", child.wait()?);
        }
        print!("   {line}");
        Ok(Self { child })
    }

    fn stop(&mut self) -> Result<()> {
        say("stopping");
        if !INTERRUPTED.load(Ordering::SeqCst) && self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("coracle up ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.stop();
        }
    }
}

fn binary() -> std::path::PathBuf {
    root().join("target/debug/coracle")
}

fn deploy(dir: &Path) -> Result<()> {
    let kubeconfig = dir.join("data/kubeconfig");
    let coracle = |arguments: &[&str]| {
        output(Command::new(binary()).args(arguments).env("KUBECONFIG", &kubeconfig).current_dir(root()))
    };
    say("pushing hello:v1 to the built-in registry");
    coracle(&["image", "push", &guests::folder().join("hello.wasm").display().to_string(), "hello:v1"])?;
    say("applying examples/hello/manifests");
    print!("{}", indent(&coracle(&["apply", "-f", "examples/hello/manifests"])?));
    say("waiting until three pods are ready and the Service answers");
    let url = eventually(|| {
        let deployment = coracle(&["get", "deploy", "hello", "-n", "hello", "-o", "json"])?;
        let deployment: serde_json::Value = serde_json::from_str(&deployment)?;
        if deployment["status"]["readyReplicas"] != 3 {
            bail!("{} of 3 pods are ready", deployment["status"]["readyReplicas"]);
        }
        let service: serde_json::Value =
            serde_json::from_str(&coracle(&["get", "svc", "hello", "-n", "hello", "-o", "json"])?)?;
        let ip = service["spec"]["clusterIP"].as_str().context("the Service has no address")?.to_owned();
        fetch(&ip)?;
        Ok(ip)
    })?;
    let answer = fetch(&url)?;
    if !answer.starts_with("Hello from hello-") {
        bail!("the Service answered {answer:?}");
    }
    print!("{}", indent(&coracle(&["get", "deploy,pods,svc", "-n", "hello", "-o", "wide"])?));
    println!("\n{}", answer.trim_end());
    println!("\n  URL         http://{url}:8080/");
    println!("  KUBECONFIG  {}", kubeconfig.display());
    println!("\nTry:\n  export KUBECONFIG={}", kubeconfig.display());
    println!("  curl http://{url}:8080/");
    println!("  kubectl -n hello scale deploy/hello --replicas=10");
    println!("  kubectl -n hello get pods --watch");
    println!("  {} logs -n hello deploy/hello", binary().display());
    Ok(())
}

/// One request over a plain socket: the demo needs no other HTTP client.
fn fetch(ip: &str) -> Result<String> {
    use std::io::{Read, Write};
    let address = format!("{ip}:8080").parse()?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer that is not HTTP")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    // The body may be chunked: its text is the line that greets.
    Ok(body.lines().find(|line| line.starts_with("Hello")).unwrap_or(body).to_owned())
}

fn eventually<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(_) if INTERRUPTED.load(Ordering::SeqCst) => bail!("interrupted"),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("the example does not answer after {PATIENCE:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn say(text: &str) {
    println!("== {text}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}
