//! `coracle gpu-plugin`: advertises GPUs to a node agent (ours, or a kubelet).

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The plugin directory of the node agent.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    pub plugin_dir: PathBuf,
    /// Where runtimes look for CDI specifications.
    #[arg(long, default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,
    /// Advertise so many fake devices instead of hardware, for tests.
    #[arg(long)]
    pub fake: Option<u32>,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| async move {
        let directory = options.plugin_dir.clone();
        let plugin = coracle_devices::gpu::Options {
            directory: options.plugin_dir,
            cdi_directory: options.cdi_dir,
            fake: options.fake,
        };
        coracle_devices::gpu::run(plugin, shutdown)
            .await
            .with_context(|| format!("serve the GPU plugin in {}", directory.display()))
    })
}
