//! The last words of a container: the file that its `terminationMessagePath` names, or the end of its log.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container as Spec;

use super::state::Container;
use crate::logs;
use crate::volumes::PodDir;
use crate::volumes::mounts::Mount;

/// The most of a message that counts, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// The most of a log that stands in for a message: bytes and lines.
const MAX_LOG: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// Where the container has it.
pub fn path(spec: &Spec) -> &Path {
    Path::new(spec.termination_message_path.as_deref().unwrap_or("/dev/termination-log"))
}

/// Where the message of one attempt lies on this node: a directory of its own, and the file in it.
fn place(dir: &PodDir, spec: &Spec, attempt: u32) -> Option<(PathBuf, PathBuf)> {
    let name = path(spec).file_name()?;
    let own = dir.path.join("containers").join(&spec.name).join(attempt.to_string());
    let file = own.join(name);
    Some((own, file))
}

/// Makes the file and says how the container gets to it. A Linux container has the file itself mounted. A wasm container
/// mounts directories only: it gets the one around the file. Whether it is a handler, which leaves no last words, is known to
/// the runtime alone.
///
/// # Errors
/// When the file cannot be made.
pub fn mount(dir: &PodDir, spec: &Spec, attempt: u32, linux: bool) -> Result<Option<Mount>, String> {
    let Some((own, file)) = place(dir, spec, attempt) else { return Ok(None) };
    let around = path(spec).parent().unwrap_or(Path::new("/"));
    let mounted = |at: &Path| spec.volume_mounts.iter().flatten().any(|m| Path::new(&m.mount_path) == at);
    let whole = mounted(around) || around == Path::new("/");
    if !path(spec).is_absolute() || mounted(path(spec)) || !linux && whole {
        return Ok(None);
    }
    let failed = |e: std::io::Error| format!("make the termination log {}: {e}", file.display());
    std::fs::create_dir_all(&own).map_err(failed)?;
    let made = OpenOptions::new().create(true).write(true).truncate(true).mode(0o666).open(&file);
    made.map_err(failed)?.set_permissions(PermissionsExt::from_mode(0o666)).map_err(failed)?;
    let (inside, outside) = if linux { (path(spec), &file) } else { (around, &own) };
    Ok(Some(Mount {
        container_path: inside.to_string_lossy().into_owned(),
        host_path: outside.to_string_lossy().into_owned(),
        ..Mount::default()
    }))
}

/// The message of a container that ended; `None` when it left none.
pub fn message(dir: &PodDir, spec: &Spec, ended: &Container, log: &Path) -> Option<String> {
    let (_, file) = place(dir, spec, ended.attempt)?;
    let mut text = Vec::new();
    // What a container made of its file is not trusted to be one: a link would name a file of this node.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&file);
    if let Ok(open) = open
        && open.metadata().is_ok_and(|m| m.is_file())
    {
        let _ = open.take(MAX_MESSAGE).read_to_end(&mut text);
    }
    let fallback = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if text.is_empty() && fallback && ended.exit_code != 0 {
        return tail(log).filter(|t| !t.is_empty());
    }
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The last lines of a log, as its writer wrote them.
fn tail(log: &Path) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    // The times before the lines are not counted.
    let from = file.metadata().ok()?.len().saturating_sub(MAX_LOG * 4);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut raw = Vec::new();
    file.take(MAX_LOG * 4).read_to_end(&mut raw).ok()?;
    let lines: Vec<String> = raw
        .split_inclusive(|b| *b == b'\n')
        .skip(usize::from(from > 0))
        .map(|line| String::from_utf8_lossy(&logs::text(line)).into_owned())
        .collect();
    let mut text = lines.get(lines.len().saturating_sub(MAX_LOG_LINES)..)?.concat();
    while u64::try_from(text.len()).unwrap_or(0) > MAX_LOG {
        text.remove(0);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(more: serde_json::Value) -> Spec {
        let mut all = json!({"name": "a"});
        if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        serde_json::from_value(all).expect("a container")
    }

    #[test]
    fn a_file_or_the_end_of_the_log() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = PodDir::new(root.path(), "u").expect("a pod directory");
        let spec_a = spec(json!({"terminationMessagePolicy": "FallbackToLogsOnError"}));
        let mount = mount(&dir, &spec_a, 0, true).expect("made").expect("a mount");
        assert_eq!(mount.container_path, "/dev/termination-log");
        let log = root.path().join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr F two\n")
            .expect("log");
        let ended = |exit_code| Container { exit_code, ..Default::default() };
        assert_eq!(message(&dir, &spec_a, &ended(0), &log), None);
        assert_eq!(message(&dir, &spec_a, &ended(1), &log).as_deref(), Some("one\ntwo\n"));
        std::fs::write(&mount.host_path, "my last words").expect("written");
        assert_eq!(message(&dir, &spec_a, &ended(1), &log).as_deref(), Some("my last words"));
        std::fs::remove_file(&mount.host_path).expect("removed");
        std::os::unix::fs::symlink("/etc/hostname", &mount.host_path).expect("a link");
        assert_eq!(message(&dir, &spec(json!({})), &ended(1), &log), None);
    }

    #[test]
    fn wasm_gets_the_directory() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = PodDir::new(root.path(), "u").expect("a pod directory");
        let made = mount(&dir, &spec(json!({})), 3, false).expect("made").expect("a mount");
        assert_eq!(made.container_path, "/dev");
        assert!(Path::new(&made.host_path).join("termination-log").is_file());
        // A command may serve too.
        let server = spec(json!({"ports": [{"containerPort": 80}]}));
        assert!(mount(&dir, &server, 0, false).expect("made").is_some());
        let own = spec(json!({"volumeMounts": [{"name": "v", "mountPath": "/dev"}]}));
        assert_eq!(mount(&dir, &own, 0, false).expect("fine"), None);
    }
}
