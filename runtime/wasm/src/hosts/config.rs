//! wasi:config: the files of a mounted volume, a ConfigMap's say, as settings. A change of the volume shows at once.

use std::{
    io::{self, Read},
    sync::Arc,
};

use cap_std::fs::Dir;
use wasmtime::component::{HasData, Linker};

use super::Granted;
use crate::{
    guest::Guest,
    protocol::{Capabilities, Mount},
};

/// How it is granted.
pub(super) const GRANTED: Granted = (
    "wasi:config/",
    "configuration (wasi:config) needs the pod annotation coracle.dev/wasi-config: the mount path of a volume whose \
     files are the settings",
    |capabilities| capabilities.config.is_some(),
);

/// The longest value, in bytes.
const MAX_VALUE: u64 = 1 << 20;
/// The most settings that are read at once.
const MAX_SETTINGS: usize = 1000;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit/config",
        world: "imports",
        imports: { default: async | trappable },
        require_store_data_send: true,
    });
}

use generated::wasi::config::store::{self, Error};

/// The directory that a container's settings lie in; `None` where they were not granted.
pub(crate) type Context = Option<Arc<Dir>>;

/// Opens the directory that is mounted at the path.
pub(crate) fn mounted(mounts: &[Mount], path: &str, annotation: &str) -> Result<(Dir, bool), String> {
    let wanted = path.trim_end_matches('/');
    let mount = mounts.iter().find(|mount| mount.guest_path.trim_end_matches('/') == wanted);
    let mount = mount
        .ok_or_else(|| format!("the annotation {annotation} names {path}, where no volume is mounted"))?;
    let dir = super::filesystem::open(&mount.host_path);
    let dir =
        dir.map_err(|error| format!("the annotation {annotation}: opening the volume at {path}: {error}"))?;
    Ok((dir, mount.read_only))
}

/// What the instances of a container share. Blocking.
pub(crate) fn prepare(capabilities: &Capabilities, mounts: &[Mount]) -> Result<Context, String> {
    let Some(path) = &capabilities.config else { return Ok(None) };
    Ok(Some(Arc::new(mounted(mounts, path, "coracle.dev/wasi-config")?.0)))
}

struct HasDir;

impl HasData for HasDir {
    type Data<'a> = View<'a>;
}

pub(crate) struct View<'a>(pub &'a Context);

pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    store::add_to_linker::<Guest, HasDir>(linker, |guest| View(guest.config()))
}

/// A setting; `None` for one that is not there.
fn read(dir: &Dir, key: &str) -> Result<Option<String>, Error> {
    // `..data` and its like are how volumes are changed at once.
    if key.is_empty() || key.starts_with("..") || key.contains('/') {
        return Ok(None);
    }
    let failed = |error: io::Error| Error::Io(format!("the setting {key}: {error}"));
    let file = match dir.open(key) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_VALUE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_VALUE {
        return Err(Error::Upstream(format!("the setting {key} has more than {MAX_VALUE} bytes")));
    }
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::Upstream(format!("the setting {key} is not text")))
}

fn read_all(dir: &Dir) -> Result<Vec<(String, String)>, Error> {
    let failed = |error: io::Error| Error::Io(format!("the settings: {error}"));
    let mut all = Vec::new();
    for entry in dir.entries().map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(value) = read(dir, name)? {
            all.push((name.to_owned(), value));
        }
        if all.len() > MAX_SETTINGS {
            return Err(Error::Upstream(format!(
                "there are more than {MAX_SETTINGS} settings: get them by name"
            )));
        }
    }
    all.sort();
    Ok(all)
}

impl View<'_> {
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Dir) -> Result<T, Error> + Send + 'static,
    ) -> wasmtime::Result<Result<T, Error>> {
        // Containers are refused without it before they start.
        let dir = self.0.clone().ok_or_else(|| wasmtime::Error::msg("wasi:config was not granted"))?;
        let answer = tokio::task::spawn_blocking(move || question(&dir)).await;
        Ok(answer.unwrap_or_else(|error| Err(Error::Io(error.to_string()))))
    }
}

impl store::Host for View<'_> {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        self.ask(move |dir| read(dir, &key)).await
    }

    async fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        self.ask(read_all).await
    }
}
