//! The first process of a pod whose containers share their processes (`shareProcessNamespace`): it does nothing but take
//! in those whose parents have ended. It sees nothing of the host but itself, and is nobody.
//!
//! The shim's program is started as `--pause FOLDER`; it enters a new process namespace, whose first process is itself
//! again, as `--pause-init FOLDER`, and leaves.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, pivot_root, setgroups, setresgid, setresuid};

/// The word by which the namespace's first process says that it is there.
const READY: &str = "ready";
/// Nobody: the number that images of such processes use elsewhere too.
const NOBODY: u32 = 65_535;

/// The file of a pod's process namespace; `None` when its containers share none.
pub fn namespace(dir: &Path) -> Option<PathBuf> {
    let path = dir.join("processes");
    path.exists().then_some(path)
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("pause.pid")
}

/// Makes the process namespace of the pod whose folder is `dir`. Again is fine. Blocking.
///
/// # Errors
/// When a process of the shim's program cannot be started or cannot enter a namespace.
pub fn make(dir: &Path, shim_command: &[OsString]) -> anyhow::Result<()> {
    if alive(dir).is_some() {
        return Ok(());
    }
    remove(dir)?;
    let (program, first) = shim_command.split_first().context("no command for shims is set")?;
    let out = Command::new(program)
        .args(first)
        .arg("--pause")
        .arg(dir)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program:?}"))?;
    if !out.status.success() {
        bail!("make a process namespace: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// The first process, if it lives.
fn alive(dir: &Path) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(pid_file(dir)).ok()?.trim().parse().ok()?;
    // The number may be another's by now: its namespace tells.
    let now = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    let kept = std::fs::metadata(dir.join("processes")).ok()?;
    (pid > 1 && (now.ino(), now.dev()) == (kept.ino(), kept.dev())).then(|| Pid::from_raw(pid))
}

/// Ends a pod's process namespace, with whatever is left in it; again is fine. Blocking.
pub fn remove(dir: &Path) -> std::io::Result<()> {
    if let Some(pid) = alive(dir) {
        kill(pid, Signal::SIGKILL)?;
    }
    let path = dir.join("processes");
    crate::namespaces::unmount(&path)?;
    for path in [path, pid_file(dir)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What the shim's program does with these arguments, when they are of a pause; `None` when they are a container's folder.
pub fn from_arguments(pause: bool, init: bool, dir: &Path) -> Option<anyhow::Result<()>> {
    if init {
        return Some(first_process(dir));
    }
    pause.then(|| start(dir))
}

/// Starts the first process of a new namespace, keeps the namespace by a file, and leaves it to itself.
fn start(dir: &Path) -> anyhow::Result<()> {
    nix::unistd::setsid().context("leave the session")?;
    unshare(CloneFlags::CLONE_NEWPID).context("enter a new process namespace")?;
    let me = std::env::current_exe().context("find this program")?;
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    for word in words.iter_mut().filter(|w| *w == "--pause") {
        *word = "--pause-init".into();
    }
    let log = File::create(dir.join("pause.log"))?;
    let mut child = Command::new(me)
        .args(words)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("start the first process")?;
    let mut line = String::new();
    let out = child.stdout.take().context("the first process has no output")?;
    BufReader::new(out.take(64)).read_line(&mut line)?;
    if line.trim() != READY {
        let _ = child.kill();
        let _ = child.wait();
        bail!("the first process: {}", std::fs::read_to_string(dir.join("pause.log"))?.trim());
    }
    let path = dir.join("processes");
    let kept = File::create(&path).map_err(anyhow::Error::from).and_then(|_| {
        let own = format!("/proc/{}/ns/pid", child.id());
        mount(Some(own.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(std::fs::write(pid_file(dir), child.id().to_string())?)
    });
    if kept.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    kept.context("keep the process namespace")
}

/// The first process itself: never returns but with an error.
fn first_process(dir: &Path) -> anyhow::Result<()> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&children), None)?;
    forget_the_host(dir)?;
    nix::sys::prctl::set_dumpable(false)?;
    let _ = nix::sys::prctl::set_name(c"pause");
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    // Its ends of pipes and files would keep others from seeing their end.
    for fd in 0..3 {
        let _ = nix::unistd::close(fd);
    }
    loop {
        while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        let _ = children.wait();
    }
}

/// An empty root, no rights: a container that reaches into its pod's first process finds nothing there.
fn forget_the_host(dir: &Path) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("enter a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("keep mounts to itself")?;
    let locked = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let root = dir.join("empty");
    std::fs::create_dir_all(&root)?;
    mount(Some("none"), &root, Some("tmpfs"), locked, Some("size=4k,mode=555")).context("an empty root")?;
    std::env::set_current_dir(&root)?;
    pivot_root(".", ".").context("enter the empty root")?;
    umount2(".", MntFlags::MNT_DETACH).context("leave the host's root")?;
    std::env::set_current_dir("/")?;
    setgroups(&[])?;
    setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
    setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
    Ok(())
}
