//! From wasm bytes to native code on disk. What compiles never runs the code.

use std::path::Path;

use crate::protocol::Kind;

/// What was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub kind: Kind,
    /// The interfaces that the component imports, as `namespace:package/interface@version`.
    pub imports: Vec<String>,
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
    /// It exports neither wasi:http/incoming-handler (or wasi:http/handler) nor wasi:cli/run.
    #[error("the component exports neither a wasi:http handler nor wasi:cli/run: there is nothing to start")]
    NoEntryPoint,
    #[error("writing the compiled code: {0}")]
    Write(#[source] std::io::Error),
}

/// Compiles a component or a preview1 core module into `out` (mode 0600, by rename). Blocking, and uses every core.
pub fn precompile(_wasm: &[u8], _out: &Path) -> Result<Compiled, CompileError> {
    Err(CompileError::Invalid("compiling is not built yet".into()))
}
