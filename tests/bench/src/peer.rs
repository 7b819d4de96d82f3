//! Servers that run beside ours for a comparison, and `wrk`, which asks both alike.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coracle_e2e::eventually;

/// How long a peer may take until it accepts connections.
const START: Duration = Duration::from_secs(10);

/// A running peer; ends with this value.
pub struct Peer {
    process: Child,
    address: SocketAddr,
    /// Its name and version, as a row shows it.
    pub version: String,
    _folder: Option<tempfile::TempDir>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked first: nginx ends its workers then. It may have ended by itself; either way nothing is left of it.
        let id = self.process.id().try_into().map(nix::unistd::Pid::from_raw);
        if id.is_ok_and(|id| nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).is_ok()) {
            // One that does not is killed.
            let ended = || Ok(!matches!(self.process.try_wait(), Ok(None)));
            eventually("the peer ends", START, ended).ok();
        }
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Peer {
    fn start(mut command: Command, address: SocketAddr, version: String) -> Result<Self> {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {version}"))?;
        let mut peer = Self { process, address, version, _folder: None };
        let mut ended = None;
        eventually(&format!("{} listens on {address}", peer.version), START, || {
            ended = peer.process.try_wait()?;
            Ok(ended.is_some() || TcpStream::connect(address).is_ok())
        })?;
        if let Some(status) = ended {
            bail!("{} ended at once: {status}", peer.version);
        }
        Ok(peer)
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// `wasmtime serve` with a component; `reuse` lets an instance serve many requests.
    pub fn wasmtime(component: &Path, reuse: bool) -> Result<Self> {
        let program = installed("CORACLE_WASMTIME")?;
        let address = free_address()?;
        let mut command = Command::new(&program);
        command.args(["serve", "-S", "cli", "--env", "POD=bench", "--addr", &address.to_string()]);
        let most = if reuse { "1000000" } else { "1" };
        command.arg(format!("--max-instance-reuse-count={most}"));
        command.arg(component);
        Self::start(command, address, version(Command::new(&program).arg("--version"))?)
    }

    /// nginx that answers every request with `body`, one worker a core.
    pub fn nginx(body: &str) -> Result<Self> {
        let address = free_address()?;
        let folder = tempfile::tempdir()?;
        let configuration = folder.path().join("nginx.conf");
        std::fs::write(
            &configuration,
            format!(
                "worker_processes auto; daemon off; pid {0}/pid; error_log /dev/null;
                events {{ worker_connections 1024; }}
                http {{ access_log off; keepalive_requests 1000000;
                  client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};
                  server {{ listen {address}; location / {{ return 200 \"{body}\"; }} }} }}",
                folder.path().display()
            ),
        )?;
        let program = installed("CORACLE_NGINX")?;
        let mut command = Command::new(&program);
        command.arg("-p").arg(folder.path()).arg("-c").arg(&configuration);
        let mut peer = Self::start(command, address, version(Command::new(&program).arg("-v"))?)?;
        peer._folder = Some(folder);
        Ok(peer)
    }
}

/// What a program says of its version, on either stream, in one line.
fn version(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("start {command:?}"))?;
    let said = [out.stdout, out.stderr].concat();
    let line = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    ensure!(!line.is_empty(), "{command:?} tells no version");
    Ok(line.trim_start_matches("nginx version: ").split(" (").next().unwrap_or_default().to_owned())
}

fn free_address() -> Result<SocketAddr> {
    // Released at once: whoever takes it in between makes the peer fail to start, which is told.
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What `wrk` measured.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// Answers a second.
    pub rate: f64,
    /// Half of the answers came within this, in milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Answers that are no success, and connections that broke.
    pub errors: u64,
}

/// Asks `url` over `connections` for `duration`, with one thread: the other core is the server's.
pub fn ask(url: &str, connections: usize, duration: Duration) -> Result<Asked> {
    let seconds = format!("-d{}s", duration.as_secs().max(1));
    let connections = format!("-c{connections}");
    let out = Command::new("wrk").args(["-t1", &connections, &seconds, "--latency", url]).output();
    let out = out.context("start wrk")?;
    let text = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "wrk failed: {text} {}", String::from_utf8_lossy(&out.stderr));
    parse(&text).with_context(|| format!("wrk said something else than expected: {text}"))
}

fn parse(text: &str) -> Option<Asked> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let failed = after("Non-2xx or 3xx responses:").map_or(Some(0), |count| count.parse().ok())?;
    let broken = after("Socket errors:").map_or(0, |line| {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok()).sum()
    });
    Some(Asked {
        rate: after("Requests/sec:")?.parse().ok()?,
        p50: millis(after("50%")?)?,
        p99: millis(after("99%")?)?,
        errors: failed + broken,
    })
}

/// `1.23ms`, `456.00us`, `1.20s`, `1.00m`.
fn millis(text: &str) -> Option<f64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    let factor = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        "m" => 60_000.0,
        _ => return None,
    };
    Some(number * factor)
}

/// A program that `cargo xtask bench` installed and names in the environment.
fn installed(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable);
    Ok(path.with_context(|| format!("{variable} is not set: run `cargo xtask bench`"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let text = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Thread Stats   Avg      Stdev\n    \
            Latency   400.00us  1.00ms\n  Latency Distribution\n     50%  456.00us\n     75%  1.00ms\n     90%  2.00ms\n     \
            99%    1.20s \n  100 requests in 1.00s, 1.00MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  \
            Non-2xx or 3xx responses: 7\nRequests/sec:   1234.50\nTransfer/sec:      1.00MB\n";
        let expected = Asked { rate: 1234.5, p50: 0.456, p99: 1200.0, errors: 11 };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("nothing"), None);
    }
}
