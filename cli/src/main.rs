//! The `coracle` binary: every process of a cluster, and a small client.
#![forbid(unsafe_code)]

mod commands;
mod data_dir;
mod failover;
mod kubeconfig;
mod supervise;

use std::process::ExitCode;

use clap::Parser;
use commands::{
    apply, bench, compile_wasm, delete, explain_schedule, get, gpu_plugin, image, logs, member, node,
    oci_shim, runtime, server, snapshot, token, top, ui, up, wasm_host,
};

/// Objects of the API are trees of small pieces: the C library's allocator takes a third of a server's time with them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "coracle", version, about = "Kubernetes rebuilt around WebAssembly")]
enum Command {
    /// Run everything on this machine: a server, a node and a runtime, supervised.
    #[command(next_line_help = true)]
    Up(Box<up::Options>),
    /// Run a control-plane member: store, API server, controllers, scheduler, image registry.
    #[command(next_line_help = true)]
    Server(Box<server::Command>),
    /// List and remove the servers of a cluster.
    #[command(subcommand)]
    Member(member::Command),
    /// Make, list and delete the tokens with which nodes join.
    #[command(subcommand)]
    Token(token::Command),
    /// Save a cluster into a file, or make a new one out of it.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Run a node agent.
    Node(Box<node::Options>),
    /// Run the CRI service.
    Runtime(runtime::Options),
    /// Advertise NVIDIA GPUs to the node agent.
    GpuPlugin(gpu_plugin::Options),
    /// Run pods' sandboxes (the runtime starts this).
    #[command(hide = true)]
    WasmHost(wasm_host::Options),
    /// Hold a Linux container (the runtime starts this).
    #[command(hide = true)]
    OciShim(oci_shim::Options),
    /// Compile a component to native code (the runtime starts this).
    #[command(hide = true)]
    CompileWasm(compile_wasm::Options),
    /// Build and push images.
    #[command(subcommand)]
    Image(image::Command),
    /// Create or change the objects of manifests.
    Apply(apply::Options),
    /// Show objects as tables or YAML.
    Get(get::Options),
    /// Print the logs of a pod.
    Logs(logs::Options),
    /// Delete objects by name or manifest.
    Delete(delete::Options),
    /// Put a load on a cluster's control plane.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Say why each node was or would be chosen for a pod, or not.
    ExplainSchedule(explain_schedule::Options),
    /// Show nodes and pods in the terminal, live.
    Top(top::Options),
    /// Print the address of the web page, with your token.
    Ui(ui::Options),
}

fn main() -> ExitCode {
    let command = Command::parse();
    // Several TLS providers may be linked; this one is ours. An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let done = match command {
        Command::Up(options) => up::run(*options),
        Command::Server(options) => server::run(*options),
        Command::Member(command) => member::run(command),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Token(command) => token::run(command),
        Command::Node(options) => node::run(*options),
        Command::Runtime(options) => runtime::run(options),
        Command::GpuPlugin(options) => gpu_plugin::run(options),
        Command::WasmHost(options) => wasm_host::run(options),
        Command::OciShim(options) => oci_shim::run(&options),
        Command::CompileWasm(options) => return compile_wasm::run(&options),
        Command::Image(command) => image::run(command),
        Command::Apply(options) => apply::run(options),
        Command::Get(options) => get::run(options),
        Command::Logs(options) => logs::run(options),
        Command::Delete(options) => delete::run(options),
        Command::Bench(command) => bench::run(command),
        Command::ExplainSchedule(options) => explain_schedule::run(options),
        Command::Top(options) => top::run(options),
        Command::Ui(options) => ui::run(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A reader such as `head` that has seen enough is no failure.
            if !commands::is_closed_pipe(&error) {
                eprintln!("{}", commands::words(&error));
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_of_every_command_fit_together() {
        super::Command::command().debug_assert();
    }
}
