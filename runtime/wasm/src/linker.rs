//! Everything that a guest can import.

use wasmtime::{Engine, component::Linker};

use crate::{engine::Abi, guest::Guest, hosts};

/// What guests of an engine can import: WASI 0.3 needs async functions, those that know none have WASI 0.2.
pub(crate) fn make(engine: &Engine, abi: Abi) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if abi == Abi::Async {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    hosts::config::add_to_linker(&mut linker)?;
    hosts::keyvalue::add_to_linker(&mut linker)?;
    hosts::nn::add_to_linker(&mut linker)?;
    hosts::observe::add_to_linker(&mut linker)?;
    linker.allow_shadowing(true);
    hosts::sockets::add_to_linker(&mut linker, abi)?;
    linker.allow_shadowing(false);
    Ok(linker)
}
