//! The runtime by itself, for a kubelet, crictl and the tests: `serve`, and the two children that it starts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use coracle_cri::Options;
use coracle_images::{Mirror, RegistryConfig};

const USAGE: &str = "usage:
  coracle-runtime serve --socket S --state-dir D [--pod-cidr C] [--mirror URL]... [--otlp-endpoint URL] [--host-mappings N]
  coracle-runtime wasm-host --socket S --state-dir D [--isolated | --further]
  coracle-runtime compile-wasm COMPONENT CODE
  coracle-runtime oci-shim [--pause | --pause-init] FOLDER
serve takes --cluster-cidr C for profile routed, and then --cni-conf-dir D, --cdi-spec-dir D";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next().unwrap_or_default();
    let rest: Vec<OsString> = args.collect();
    if verb == "compile-wasm" {
        return match rest.as_slice() {
            [component, code] => coracle_cri::compile::child_main(component.as_ref(), code.as_ref()),
            _ => usage("two paths are needed"),
        };
    }
    if verb == "oci-shim" {
        let said = |word: &str| rest.iter().any(|w| w == word);
        let Some(dir) = rest.last() else { return usage("a folder is needed") };
        let pause = coracle_oci::pause::from_arguments(said("--pause"), said("--pause-init"), dir.as_ref());
        return match pause.unwrap_or_else(|| coracle_oci::shim::main(dir.as_ref())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("coracle-runtime: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let flags = match Flags::parse(rest) {
        Ok(flags) => flags,
        Err(problem) => return usage(&problem),
    };
    let result = match verb.to_str() {
        Some("serve") => run(serve(flags)),
        Some("wasm-host") => {
            let mut host = coracle_wasm::host::HostOptions::new(flags.socket, flags.state_dir);
            host.isolated = flags.isolated;
            host.further = flags.further;
            host.otlp_endpoint = flags.otlp_endpoint;
            if let Some(pods) = flags.cluster_cidr.and_then(|c| c.parse().ok()) {
                host.ranges.pods = pods;
            }
            run(coracle_wasm::host::serve(host))
        }
        _ => return usage("no such command"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-runtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("coracle-runtime: {problem}\n{USAGE}");
    ExitCode::from(2)
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

#[derive(Default)]
struct Flags {
    socket: PathBuf,
    state_dir: PathBuf,
    pod_cidr: String,
    mirrors: Vec<Mirror>,
    cluster_cidr: Option<String>,
    otlp_endpoint: Option<String>,
    cni_conf_dir: Option<PathBuf>,
    cdi_dirs: Vec<PathBuf>,
    isolated: bool,
    further: bool,
    host_mappings: Option<u64>,
}

impl Flags {
    fn parse(args: Vec<OsString>) -> Result<Self, String> {
        let mut flags = Self::default();
        let mut args = args.into_iter();
        while let Some(flag) = args.next() {
            if flag == "--further" {
                flags.further = true;
                continue;
            }
            if flag == "--isolated" {
                flags.isolated = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{flag:?} needs a value"))?;
            let text = || value.clone().into_string().map_err(|v| format!("{v:?} is not text"));
            match flag.to_str() {
                Some("--socket") => flags.socket = value.into(),
                Some("--state-dir") => flags.state_dir = value.into(),
                Some("--pod-cidr") => flags.pod_cidr = text()?,
                Some("--cluster-cidr") => flags.cluster_cidr = Some(text()?),
                Some("--host-mappings") => {
                    flags.host_mappings = Some(text()?.parse().map_err(|e| format!("--host-mappings: {e}"))?);
                }
                Some("--otlp-endpoint") => flags.otlp_endpoint = Some(text()?),
                Some("--cni-conf-dir") => flags.cni_conf_dir = Some(value.into()),
                Some("--cdi-spec-dir") => flags.cdi_dirs.push(value.into()),
                Some("--mirror") => flags.mirrors.push(Mirror { url: text()?, ..Mirror::default() }),
                _ => return Err(format!("{flag:?} is not known")),
            }
        }
        if flags.socket.as_os_str().is_empty() || flags.state_dir.as_os_str().is_empty() {
            return Err("--socket and --state-dir are needed".into());
        }
        Ok(flags)
    }
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let own = std::env::current_exe()?.into_os_string();
    let mut wasm_host_command = vec![own.clone(), "wasm-host".into()];
    if let Some(endpoint) = &flags.otlp_endpoint {
        wasm_host_command.extend(["--otlp-endpoint".into(), endpoint.into()]);
    }
    if let Some(cidr) = &flags.cluster_cidr {
        wasm_host_command.extend(["--cluster-cidr".into(), cidr.into()]);
    }
    let routed = flags.cluster_cidr.map(|cluster_cidr| coracle_cri::Routed {
        cluster_cidr,
        cni_conf_dir: flags.cni_conf_dir,
        oci_runtime: "runc".into(),
        shim_command: vec![own.clone(), "oci-shim".into()],
        cdi_dirs: flags.cdi_dirs,
    });
    let options = Options {
        routed,
        socket: flags.socket,
        state_dir: flags.state_dir,
        registries: RegistryConfig { mirrors: flags.mirrors, default_registry: None, ..Default::default() },
        wasm_host_command,
        host_mappings: flags.host_mappings,
        compile_command: vec![own, "compile-wasm".into()],
        pod_cidr: flags.pod_cidr,
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        told.cancel();
    });
    coracle_cri::serve(options, stop).await
}
