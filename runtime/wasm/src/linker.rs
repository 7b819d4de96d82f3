//! Everything that a guest can import, linked once a process.

use std::sync::OnceLock;

use wasmtime::component::Linker;

use crate::{engine, guest::Guest, hosts};

/// The linker of this process.
pub(crate) fn shared() -> wasmtime::Result<&'static Linker<Guest>> {
    static LINKER: OnceLock<Linker<Guest>> = OnceLock::new();
    if let Some(linker) = LINKER.get() {
        return Ok(linker);
    }
    let made = make()?;
    Ok(LINKER.get_or_init(|| made))
}

fn make() -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(&engine::shared()?.engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    hosts::config::add_to_linker(&mut linker)?;
    hosts::keyvalue::add_to_linker(&mut linker)?;
    hosts::nn::add_to_linker(&mut linker)?;
    hosts::observe::add_to_linker(&mut linker)?;
    linker.allow_shadowing(true);
    hosts::sockets::add_to_linker(&mut linker)?;
    linker.allow_shadowing(false);
    Ok(linker)
}
