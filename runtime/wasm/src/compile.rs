//! From wasm bytes to native code on disk, and a description beside it. What compiles never runs the code.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, types::ComponentItem};

#[cfg(not(feature = "nn"))]
use crate::hosts;
use crate::{
    engine::{self, Abi},
    link,
    protocol::Kind,
};

/// What was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub kind: Kind,
    /// The interfaces that the component imports, as `namespace:package/interface@version`.
    pub imports: Vec<String>,
    /// Those of them that this host does not provide: another container of the pod may.
    pub missing: Vec<Missing>,
}

/// An import that the host does not provide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub import: String,
    /// What would provide it, in a sentence.
    pub words: String,
}

/// Why wasm bytes do not become code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Neither a component nor a module that can be adapted.
    #[error("not a wasm component: {0}")]
    Invalid(String),
    /// It asks for something that this host does not have.
    #[error("{0}")]
    MissingImport(String),
    /// It exports neither wasi:http/incoming-handler (or wasi:http/handler) nor wasi:cli/run, nor any other interface.
    #[error("the component exports neither a wasi:http handler nor wasi:cli/run: there is nothing to start")]
    NoEntryPoint,
    #[error("writing the compiled code: {0}")]
    Write(#[from] io::Error),
    /// No engine on this machine.
    #[error("making a wasm engine: {0}")]
    Engine(String),
}

/// What lies beside compiled code, in a file of the same name with [`DESCRIPTION`] appended.
#[derive(Serialize, Deserialize)]
pub(crate) struct Description {
    pub fingerprint: String,
    /// Of the compiled code, in hex.
    pub sha256: String,
    pub abi: Abi,
    pub kind: Kind,
    pub imports: Vec<String>,
    pub missing: Vec<Missing>,
}

const DESCRIPTION: &str = ".json";

/// The path of the description of an artifact: remove both together.
pub fn description_path(artifact: &Path) -> PathBuf {
    let mut path = artifact.as_os_str().to_owned();
    path.push(DESCRIPTION);
    path.into()
}

/// What [`precompile`] answered for an artifact; `None` when there is none that this engine can load.
pub fn describe(artifact: &Path) -> Option<Compiled> {
    let description = read_description(artifact).ok()?;
    let fits = description.fingerprint == engine::engine_fingerprint() && artifact.exists();
    let Description { kind, imports, missing, .. } = description;
    fits.then_some(Compiled { kind, imports, missing })
}

pub(crate) fn read_description(artifact: &Path) -> io::Result<Description> {
    let text = fs::read(description_path(artifact))?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

/// Compiles a component or a preview1 core module into `out` (mode 0600, by rename). Blocking, and uses every core.
pub fn precompile(wasm: &[u8], out: &Path) -> Result<Compiled, CompileError> {
    let adapted;
    let bytes = if wasm.starts_with(b"\0asm\x01\0\0\0") {
        adapted = adapt(wasm)?;
        &adapted
    } else if wasm.starts_with(b"\0asm") {
        wasm
    } else {
        return Err(CompileError::Invalid("it does not start with \\0asm".into()));
    };
    let (abi, component) = compile(bytes)?;
    let engine = component.engine();
    let ty = component.component_type();
    let imports: Vec<String> = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let exports_interface =
        || ty.exports(engine).any(|(_, item)| matches!(item.ty, ComponentItem::ComponentInstance(_)));
    let kind = match kind_of(ty.exports(engine).map(|(name, _)| name)) {
        Some(kind) => kind,
        None if exports_interface() => Kind::Library,
        None => return Err(CompileError::NoEntryPoint),
    };
    let missing = missing_imports(abi, &component, &imports)?;
    let code = component.serialize().map_err(|e| CompileError::Engine(format!("{e:#}")))?;
    let compiled = Compiled { kind, imports, missing };
    write(out, &code, abi, &compiled)?;
    Ok(compiled)
}

/// Compiles a component for the engine that runs such as it is: what is not valid without async functions needs them, and
/// so does what names an interface of WASI 0.3, whichever of its functions it uses.
fn compile(bytes: &[u8]) -> Result<(Abi, Component), CompileError> {
    let with = |abi| {
        let shared = engine::compiling(abi).map_err(|e| CompileError::Engine(format!("{e:#}")))?;
        Component::new(&shared.engine, bytes).map_err(|e| CompileError::Invalid(format!("{e:#}")))
    };
    let is_new = |name: &str| name.starts_with("wasi:") && name.contains("@0.3.");
    if let Ok(component) = with(Abi::Sync) {
        let (ty, engine) = (component.component_type(), component.engine());
        let new = ty.imports(engine).chain(ty.exports(engine)).any(|(name, _)| is_new(name));
        if !new {
            return Ok((Abi::Sync, component));
        }
    }
    Ok((Abi::Async, with(Abi::Async)?))
}

/// A core module, linked with the adapter from preview1 to components.
fn adapt(module: &[u8]) -> Result<Vec<u8>, CompileError> {
    use wasi_preview1_component_adapter_provider as adapter;
    let encode = || {
        wit_component::ComponentEncoder::default()
            .module(module)?
            .validate(true)
            .adapter(
                adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
            )?
            .encode()
    };
    encode().map_err(|error| {
        let error: anyhow::Error = error;
        CompileError::Invalid(format!("adapting a core module (WASI preview1): {error:#}"))
    })
}

/// What a component with these exports is; a handler that can also be run is a handler.
fn kind_of<'a>(exports: impl Iterator<Item = &'a str>) -> Option<Kind> {
    let mut kind = None;
    for name in exports {
        if name.starts_with("wasi:http/incoming-handler@0.2.") || name.starts_with("wasi:http/handler@0.3.") {
            return Some(Kind::HttpHandler);
        }
        if name.starts_with("wasi:cli/run@0.2.") || name.starts_with("wasi:cli/run@0.3.") {
            kind = Some(Kind::Command);
        }
    }
    kind
}

/// Interfaces that a host of Coracle may grant some day, and what would grant them.
const CAPABILITIES: &[(&str, &str)] = &[
    #[cfg(not(feature = "nn"))]
    ("wasi:nn/", hosts::nn::MISSING),
    ("wasi:webgpu/", "compute (wasi:webgpu), granted with a GPU or its stand-in"),
    ("wasi:messaging/", "messaging (wasi:messaging)"),
    ("wasi:blobstore/", "a blob store (wasi:blobstore)"),
    ("wasi:tls/", "TLS inside the guest (wasi:tls)"),
    ("wasi:sql/", "a database (wasi:sql)"),
];

/// The imports that the host's linker lacks. An error is one that nobody could provide.
fn missing_imports(
    abi: Abi,
    component: &Component,
    imports: &[String],
) -> Result<Vec<Missing>, CompileError> {
    let shared = engine::compiling(abi).map_err(|e| CompileError::Engine(format!("{e:#}")))?;
    let (engine, mut linker) = (&shared.engine, shared.linker.clone());
    linker.allow_shadowing(true);
    let mut missing: Vec<Missing> = Vec::new();
    // Each turn finds another import.
    loop {
        let Err(error) = linker.instantiate_pre(component) else { return Ok(missing) };
        let words = format!("{error:#}");
        let unknown = |import: &&String| {
            words.contains(&format!("`{import}`")) && missing.iter().all(|m| m.import != **import)
        };
        let Some(import) = imports.iter().find(unknown) else {
            // What is pretended does not fit to the host's own: nothing could.
            return if missing.is_empty() { Err(CompileError::MissingImport(words)) } else { Ok(missing) };
        };
        let words = explain(import, &words);
        let item = component.component_type().get_import(engine, import).map(|item| item.ty);
        let Some(ComponentItem::ComponentInstance(interface)) = item else {
            return Err(CompileError::MissingImport(words));
        };
        missing.push(Missing { import: import.clone(), words: words.clone() });
        if link::stub(engine, &mut linker, import, &interface).is_err() {
            return Err(CompileError::MissingImport(words));
        }
    }
}

/// What is missing, and what would provide it.
fn explain(import: &str, words: &str) -> String {
    match CAPABILITIES.iter().find(|(prefix, _)| import.starts_with(prefix)) {
        Some((_, capability)) => {
            format!("the component imports {import}, which needs {capability}; this host does not grant it")
        }
        None => format!(
            "the component imports {import}, which this host does not provide \
             (it provides WASI 0.2 and 0.3: cli, clocks, filesystem, http, random, sockets; \
             where they are granted: wasi:config 0.2.0-rc.1, wasi:keyvalue 0.2.0-draft, wasi:nn 0.2.0-rc-2024-10-28); \
             a container of the same pod may export it, with the pod annotation coracle.dev/links: {words}"
        ),
    }
}

fn write(out: &Path, code: &[u8], abi: Abi, compiled: &Compiled) -> io::Result<()> {
    let description = Description {
        fingerprint: engine::engine_fingerprint(),
        sha256: hex::encode(Sha256::digest(code)),
        abi,
        kind: compiled.kind,
        imports: compiled.imports.clone(),
        missing: compiled.missing.clone(),
    };
    if let Some(parent) = out.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    replace(&description_path(out), &serde_json::to_vec(&description)?)?;
    // Last, so that code without its description is never found.
    replace(out, code)
}

/// Writes a file of mode 0600 under another name, and renames it.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&temporary, path)
}
