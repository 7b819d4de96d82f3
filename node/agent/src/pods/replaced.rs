//! Which containers of a pod were ended to be started anew, on disk: an agent that is restarted in between starts them.

use std::io;
use std::path::PathBuf;

use crate::volumes::{PodDir, is_component};

fn folder(dir: &PodDir) -> PathBuf {
    dir.path.join("replaced")
}

/// Notes a container, by its id. Those that `known` has not are forgotten.
///
/// # Errors
/// The disk's.
pub fn note(dir: &PodDir, id: &str, known: impl Fn(&str) -> bool) -> io::Result<()> {
    if !is_component(id) {
        return Err(io::Error::other(format!("container id {id:?} cannot be the name of a file")));
    }
    let folder = folder(dir);
    std::fs::create_dir_all(&folder)?;
    for other in std::fs::read_dir(&folder)? {
        let other = other?;
        if !other.file_name().to_str().is_some_and(&known) {
            std::fs::remove_file(other.path())?;
        }
    }
    std::fs::write(folder.join(id), "")
}

/// Whether a container was noted.
pub fn is_noted(dir: &PodDir, id: &str) -> bool {
    is_component(id) && folder(dir).join(id).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_is_known_to_the_next_agent() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = PodDir::new(root.path(), "u").expect("a pod directory");
        assert!(!is_noted(&dir, "a"));
        note(&dir, "a", |_| true).expect("noted");
        assert!(is_noted(&dir, "a") && !is_noted(&dir, "b"));
        note(&dir, "b", |id| id == "b").expect("noted");
        assert!(is_noted(&dir, "b") && !is_noted(&dir, "a"), "a is gone");
        assert!(note(&dir, "../x", |_| true).is_err() && !is_noted(&dir, ""));
    }
}
