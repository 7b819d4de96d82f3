//! Running a component that exports wasi:cli/run.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use super::{Exit, Stop};
use crate::{
    cpu::Metered,
    guest::{Grants, Guest},
    hosts::cli::Streams,
    memory::OverLimit,
    program::Program,
};

/// Runs it to its end, or until it is stopped. There are no signals in a guest: asked to end, it ends at once.
pub(super) async fn run(
    grants: &Arc<Grants>,
    program: &Program,
    stdin: Option<mpsc::Receiver<Bytes>>,
    stop: &Stop,
) -> Exit {
    let streams = stdin.map_or(Streams::Log, Streams::LogAndInput);
    let guest = Metered { future: Box::pin(call(grants, program, streams)), meter: grants.meter.clone() };
    tokio::select! {
        biased;
        () = stop.kill.cancelled() => Exit::killed(),
        () = stop.term.cancelled() => Exit::terminated(),
        result = guest => exit_of(grants, result),
    }
}

/// Runs a new instance of the program.
pub(super) async fn call(
    grants: &Grants,
    program: &Program,
    streams: Streams,
) -> wasmtime::Result<Result<(), ()>> {
    let pre = program.pre()?;
    let mut store = Guest::store_for(pre.engine(), grants, streams)?;
    if let Ok(pre) = wasmtime_wasi::p3::bindings::CommandPre::new(pre.clone()) {
        let command = pre.instantiate_async(&mut store).await?;
        let run = async |accessor: &wasmtime::component::Accessor<Guest>| {
            command.wasi_cli_run().call_run(accessor).await
        };
        return store.run_concurrent(run).await?;
    }
    let pre = wasmtime_wasi::p2::bindings::CommandPre::new(pre)?;
    let command = pre.instantiate_async(&mut store).await?;
    command.wasi_cli_run().call_run(&mut store).await
}

pub(super) fn exit_of(grants: &Grants, result: wasmtime::Result<Result<(), ()>>) -> Exit {
    let error = match result {
        Ok(Ok(())) => return Exit::code(0),
        Ok(Err(())) => return Exit::code(1),
        Err(error) => error,
    };
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return Exit::code(exit.0);
    }
    grants.log.note(&format!("{error:?}"));
    if error.downcast_ref::<OverLimit>().is_some() || grants.memory.exceeded() {
        return Exit::out_of_memory(grants.memory.limit());
    }
    let message = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => format!("{error:#}"),
    };
    Exit::trap(message)
}
