//! Components become native code once, in a niced and limited child process; the result is kept by digest.
//!
//! `<dir>/<engine fingerprint>/<layer hex>.cwasm` is the code and `.json` beside it what is known of it; the second is
//! written last, so that it vouches for the first. Other fingerprints are of another engine and are removed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use coracle_wasm::compile::{CompileError, Missing, precompile};
use coracle_wasm::protocol::Kind;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

/// A compilation may take this long, by the clock.
const WALL: Duration = Duration::from_secs(300);
/// And this much CPU time, in seconds.
const CPU_SECONDS: u64 = 600;
/// And this much memory, in bytes. (Address space is not limited: an engine reserves far more than it uses.)
const DATA_BYTES: u64 = 6 << 30;
/// From this size on, in bytes, a component is one that takes many seconds: languages that bring an engine of their own.
const LARGE: u64 = 4 << 20;
/// What a child may say, in bytes.
const OUTPUT_BYTES: u64 = 1 << 20;

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The component is at fault: compiling it again would end the same.
    #[error("{0}")]
    Refused(String),
    /// The child failed for another reason: killed, out of memory, out of time.
    #[error("compiling failed: {0}")]
    Failed(String),
    #[error("{doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
}

/// Native code, ready to be loaded by an engine of this version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub path: PathBuf,
    pub kind: Kind,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// Those of them that the host does not provide.
    pub missing: Vec<Missing>,
}

/// What the child says on stdout, in one line of JSON, when it has written the code.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    kind: Kind,
    #[serde(default)]
    imports: Vec<String>,
    #[serde(default)]
    missing: Vec<Missing>,
}

/// The exit status of a child that says, on stderr, why the component is at fault.
const REFUSED: u8 = 1;
/// The exit status of a child that failed otherwise.
const FAILED: u8 = 2;

/// The whole of the child process, `compile-wasm <component> <code>`: one line of JSON on stdout, or the reason on stderr
/// and status 1 (the component is at fault) or 2.
pub fn child_main(input: &Path, output: &Path) -> ExitCode {
    let compiled = match std::fs::read(input) {
        Ok(wasm) => precompile(&wasm, output),
        Err(error) => {
            eprintln!("reading {}: {error}", input.display());
            return ExitCode::from(FAILED);
        }
    };
    match compiled {
        Ok(compiled) => {
            let report = Report { kind: compiled.kind, imports: compiled.imports, missing: compiled.missing };
            match serde_json::to_string(&report) {
                Ok(line) => println!("{line}"),
                Err(error) => {
                    eprintln!("saying what was compiled: {error}");
                    return ExitCode::from(FAILED);
                }
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if matches!(error, CompileError::Write(_) | CompileError::Engine(_)) {
                FAILED
            } else {
                REFUSED
            })
        }
    }
}

/// Compiles and remembers. Clones share one cache.
#[derive(Clone)]
pub struct Compiler {
    dir: PathBuf,
    command: Arc<[OsString]>,
    /// One at a time for a layer, so that two pods of one image compile it once.
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    slots: Arc<Slots>,
}

/// One compilation uses every core already. A large one may take a minute, so that small ones do not queue behind it.
struct Slots {
    small: tokio::sync::Semaphore,
    large: tokio::sync::Semaphore,
}

impl Slots {
    fn of_size(&self, bytes: u64) -> &tokio::sync::Semaphore {
        if bytes < LARGE { &self.small } else { &self.large }
    }
}

impl Compiler {
    /// A cache below `dir` for an engine of this fingerprint; `command` is what `<component> <code>` is appended to.
    pub fn open(dir: &Path, fingerprint: &str, command: &[OsString]) -> Result<Self, Error> {
        let own: String =
            fingerprint.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let own = if own.is_empty() { "unnamed".to_owned() } else { own };
        let path = dir.join(&own);
        let io = |doing, path: &Path, source| Error::Io { doing, path: path.to_owned(), source };
        std::fs::create_dir_all(&path).map_err(|e| io("creating", &path, e))?;
        for entry in std::fs::read_dir(dir).map_err(|e| io("reading", dir, e))?.flatten() {
            if entry.file_name() != *own {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self {
            dir: path,
            command: command.into(),
            turns: Arc::default(),
            slots: Arc::new(Slots {
                small: tokio::sync::Semaphore::new(1),
                large: tokio::sync::Semaphore::new(1),
            }),
        })
    }

    /// The code of the component that lies at `wasm`, from the cache or compiled now. `layer` is its digest.
    pub async fn ensure(&self, layer: &str, wasm: &Path) -> Result<Artifact, Error> {
        let key = layer.strip_prefix("sha256:").unwrap_or(layer);
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(key.to_owned()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let (code, facts) = (self.dir.join(format!("{key}.cwasm")), self.dir.join(format!("{key}.json")));
        if let Some(artifact) = cached(&code, &facts) {
            return Ok(artifact);
        }
        let size = std::fs::metadata(wasm)
            .map_err(|source| Error::Io { doing: "reading", path: wasm.to_owned(), source })?
            .len();
        let _slot = self.slots.of_size(size).acquire().await;
        let started = std::time::Instant::now();
        let line = self.run_child(wasm, &code).await?;
        if let Err(error) = serde_json::from_str::<Report>(line.trim()) {
            return Err(Error::Failed(format!("its answer {line:?} cannot be read: {error}")));
        }
        let beside = facts.with_extension("new");
        let io = |source| Error::Io { doing: "writing", path: facts.clone(), source };
        std::fs::write(&beside, &line).map_err(io)?;
        std::fs::rename(&beside, &facts).map_err(io)?;
        tracing::info!(layer, ms = started.elapsed().as_millis() as u64, "compiled a component");
        cached(&code, &facts).ok_or_else(|| Error::Failed("the compiler left no code".into()))
    }

    /// Removes the code of every layer that is not in `keep` (digests).
    pub fn retain(&self, keep: &HashSet<String>) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            // `<hex>.cwasm`, its description `<hex>.cwasm.json`, and `<hex>.json`.
            let layer = name.split_once('.').map(|(hex, _)| format!("sha256:{hex}"));
            if layer.is_some_and(|l| !keep.contains(&l)) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    async fn run_child(&self, wasm: &Path, code: &Path) -> Result<String, Error> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |e: std::io::Error| Error::Failed(format!("{what}: {e}"))
        };
        let (program, first) =
            self.command.split_first().ok_or_else(|| Error::Failed("no compile command is set".into()))?;
        let mut command = tokio::process::Command::new(program);
        command.args(first).arg(wasm).arg(code);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // SAFETY: between fork and exec only async-signal-safe system calls are made: setpriority and setrlimit.
        unsafe {
            command.pre_exec(limit_self);
        }
        let mut child = command.spawn().map_err(failed("starting the compiler"))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (out, err) = tokio::join!(read_bounded(out), read_bounded(err));
            let status = child.wait().await;
            (out, err, status)
        };
        let Ok((out, err, status)) = tokio::time::timeout(WALL, work).await else {
            return Err(Error::Failed(format!("it took longer than {} s", WALL.as_secs())));
        };
        let status = status.map_err(failed("waiting for the compiler"))?;
        if status.success() {
            return Ok(out);
        }
        let reason: String = err.trim().trim_start_matches("Error: ").chars().take(4000).collect();
        match status.code() {
            Some(code) if code == i32::from(REFUSED) && !reason.is_empty() => Err(Error::Refused(reason)),
            _ => Err(Error::Failed(format!("the compiler ended with {status}: {reason}"))),
        }
    }
}

fn cached(code: &Path, facts: &Path) -> Option<Artifact> {
    let line = std::fs::read(facts).ok()?;
    match serde_json::from_slice(&line) {
        Ok(Report { kind, imports, missing }) if code.is_file() => {
            Some(Artifact { path: code.to_owned(), kind, imports, missing })
        }
        _ => None,
    }
}

async fn read_bounded(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What could not be read is missing from the message; the exit status still tells.
        let _ = stream.take(OUTPUT_BYTES).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn limit_self() -> std::io::Result<()> {
    let set = |resource, limit: u64| {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: `limit` outlives the call. Where the hard limit is lower already, that one stands.
        unsafe { libc::setrlimit(resource, &limit) };
    };
    set(libc::RLIMIT_CPU, CPU_SECONDS);
    set(libc::RLIMIT_DATA, DATA_BYTES);
    set(libc::RLIMIT_CORE, 0);
    // SAFETY: plain system call on this process.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(dir: &Path, script: &str) -> Compiler {
        let command = ["/bin/sh", "-c", script, "sh"].map(OsString::from);
        Compiler::open(dir, "engine 1", &command).unwrap()
    }

    #[tokio::test]
    async fn code_is_compiled_once_and_kept_for_its_engine() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("engine-0")).unwrap();
        let count = dir.path().join("count");
        let script = format!(
            "echo x >> {}; cp $1 $2; echo '{{\"kind\":\"Command\",\"imports\":[]}}'",
            count.display()
        );
        let wasm = dir.path().join("wasm");
        std::fs::write(&wasm, "code").unwrap();
        let cache = dir.path().join("cache");
        let compiler = shell(&cache, &script);
        let (a, b) = tokio::join!(compiler.ensure("sha256:aa", &wasm), compiler.ensure("sha256:aa", &wasm));
        assert_eq!(a.unwrap(), b.unwrap());
        let artifact = shell(&cache, &script).ensure("sha256:aa", &wasm).await.unwrap();
        assert_eq!(artifact.kind, Kind::Command);
        assert_eq!(std::fs::read_to_string(count).unwrap(), "x\n");
        compiler.retain(&HashSet::new());
        assert!(!artifact.path.exists());
    }

    #[tokio::test]
    async fn a_small_component_does_not_wait_for_a_large_one() {
        let dir = tempfile::tempdir().unwrap();
        let (small, large) = (dir.path().join("small"), dir.path().join("large"));
        std::fs::write(&small, "code").unwrap();
        std::fs::File::create(&large).unwrap().set_len(LARGE).unwrap();
        // The large one ends when the small one has been compiled.
        let script = format!(
            "[ $1 = {} ] && while ! [ -e {}/cache/engine-1/aa.json ]; do sleep 0.01; done
             : > $2; echo '{{\"kind\":\"Command\"}}'",
            large.display(),
            dir.path().display()
        );
        let compiler = shell(&dir.path().join("cache"), &script);
        let both = async {
            tokio::join!(compiler.ensure("sha256:bb", &large), compiler.ensure("sha256:aa", &small))
        };
        let (large, small) = tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
        assert_eq!((large.unwrap().kind, small.unwrap().kind), (Kind::Command, Kind::Command));
    }

    #[tokio::test]
    async fn a_refusal_a_crash_and_nonsense_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let refused = shell(dir.path(), "echo Error: it imports a:b/c >&2; exit 1");
        let error = refused.ensure("sha256:bb", dir.path()).await.unwrap_err();
        assert!(matches!(&error, Error::Refused(m) if m.contains("a:b/c")), "{error}");
        for (script, words) in
            [("echo boom >&2; exit 3", "boom"), ("kill -9 $$", "signal: 9"), ("echo nonsense", "nonsense")]
        {
            let error = shell(dir.path(), script).ensure("sha256:bb", dir.path()).await.unwrap_err();
            assert!(matches!(&error, Error::Failed(m) if m.contains(words)), "{script}: {error}");
        }
    }
}
