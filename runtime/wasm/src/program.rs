//! Compiled code, loaded: each artifact once a process, however many containers run it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, InstancePre};

use crate::{
    compile::{self, Description, Missing},
    engine::{self, Abi},
    guest::Guest,
    protocol::Kind,
};

/// A component, linked with the host.
pub(crate) struct Program {
    /// Which engine it is of.
    pub abi: Abi,
    pub kind: Kind,
    pub component: Component,
    /// Ready to be instantiated; `None` while imports are missing.
    pre: Option<InstancePre<Guest>>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// Those of them that the host does not provide.
    pub missing: Vec<Missing>,
}

impl Program {
    /// What is instantiated. An error names what is missing.
    pub fn pre(&self) -> wasmtime::Result<InstancePre<Guest>> {
        let words = || self.missing.first().map_or("imports are missing", |missing| &missing.words);
        self.pre.clone().ok_or_else(|| wasmtime::Error::msg(words().to_owned()))
    }

    /// The same with all of its imports.
    pub fn linked(&self, pre: InstancePre<Guest>) -> Program {
        Program {
            abi: self.abi,
            kind: self.kind,
            component: self.component.clone(),
            pre: Some(pre),
            imports: self.imports.clone(),
            missing: Vec::new(),
        }
    }
}

type Loaded = Mutex<HashMap<(PathBuf, u64, i64), Weak<Program>>>;

/// Loads an artifact that [`compile::precompile`] wrote. Blocking. The words of the error name the path.
pub(crate) fn load(path: &Path) -> Result<Arc<Program>, String> {
    static LOADED: OnceLock<Loaded> = OnceLock::new();
    let loaded = LOADED.get_or_init(Loaded::default);
    let words = |error: &dyn std::fmt::Display| format!("loading {}: {error}", path.display());
    let found = fs::symlink_metadata(path).map_err(|e| words(&e))?;
    let key = (path.to_owned(), found.ino(), found.mtime_nsec() ^ found.mtime());
    if let Some(program) = loaded.lock().get(&key).and_then(Weak::upgrade) {
        return Ok(program);
    }
    let program = Arc::new(read(path, &found).map_err(|e| words(&e))?);
    let mut loaded = loaded.lock();
    loaded.retain(|_, program| program.strong_count() > 0);
    loaded.insert(key, Arc::downgrade(&program));
    Ok(program)
}

fn read(path: &Path, found: &fs::Metadata) -> Result<Program, String> {
    // SAFETY: geteuid has no preconditions.
    let us = unsafe { libc::geteuid() };
    if !found.is_file() || found.uid() != us || found.mode() & 0o022 != 0 {
        return Err("it is not a plain file that only this user can write".into());
    }
    let description = compile::read_description(path).map_err(|e| format!("its description: {e}"))?;
    if description.fingerprint != engine::engine_fingerprint() {
        return Err("it was compiled by another version or for another machine".into());
    }
    if digest(path).map_err(|e| e.to_string())? != description.sha256 {
        return Err("its digest is not the one that was written with it".into());
    }
    let shared = engine::running(description.abi).map_err(|e| format!("{e:#}"))?;
    // SAFETY: deserialising trusts its input to be what `Component::serialize` wrote. Only this user can write the
    // file (checked above, in a directory of mode 0700), `precompile` is the only writer and replaces by rename, so that
    // a mapped file never changes; its digest and the engine's fingerprint have just been compared. Whoever could
    // forge all of that already runs code as this user.
    let component = unsafe { Component::deserialize_file(&shared.engine, path) };
    let component = component.map_err(|e| format!("{e:#}"))?;
    let missing = description.missing;
    let pre = match missing.is_empty() {
        true => Some(shared.linker.instantiate_pre(&component).map_err(|e| format!("{e:#}"))?),
        false => None,
    };
    let Description { abi, kind, imports, .. } = description;
    Ok(Program { abi, kind, component, pre, imports, missing })
}

fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        let read = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|b| !b.is_empty()) else { break };
        hasher.update(bytes);
    }
    Ok(hex::encode(hasher.finalize()))
}
