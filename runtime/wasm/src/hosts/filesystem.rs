//! wasi:filesystem: a container's mounts as preopened directories; nothing else of the host's files.

use std::path::Path;

use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::protocol::Mount;

/// Whether every mount can be granted; the words name the mount that cannot.
pub(crate) fn validate(mounts: &[Mount]) -> Result<(), String> {
    for mount in mounts {
        if !mount.guest_path.starts_with('/') {
            return Err(format!("the mount path {:?} is not absolute", mount.guest_path));
        }
        let found = std::fs::metadata(&mount.host_path).map_err(|error| {
            format!("mounting {} at {}: {error}", mount.host_path.display(), mount.guest_path)
        })?;
        if !found.is_dir() {
            return Err(format!(
                "mounting {} at {}: a wasm container mounts directories only",
                mount.host_path.display(),
                mount.guest_path
            ));
        }
    }
    Ok(())
}

/// What one instance gets.
pub(crate) fn prepare(wasi: &mut WasiCtxBuilder, mounts: &[Mount]) -> wasmtime::Result<()> {
    for mount in mounts {
        let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        let host: &Path = &mount.host_path;
        wasi.preopened_dir(host, &mount.guest_path, perms)
            .map_err(|error| error.context(format!("mounting {} at {}", host.display(), mount.guest_path)))?;
    }
    Ok(())
}
