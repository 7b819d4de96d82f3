//! The life of one container: created, running, exited; once.

mod command;
mod exec;
mod serving;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    cpu::Meter,
    guest::Grants,
    handler::{DEADLINE, Handler},
    hosts,
    link::{self, Links, Provider},
    log::Log,
    memory::Account,
    program::{self, Program},
    protocol::{ContainerSpec, ContainerStats, ContainerStatus, ErrorCode, HostError, Kind, Series, State},
    sandbox::Sandbox,
    services::Handlers,
};

/// On a pod: how long a request may take until the head of its answer, in seconds.
const TIMEOUT_ANNOTATION: &str = "coracle.dev/http-timeout-seconds";
/// The longest such time.
const MAX_TIMEOUT: u64 = 3600;

/// The port of a handler that declares none.
const DEFAULT_PORT: u16 = 8080;

/// Both ends of a command's input, as long as nobody has taken them.
type Input = (Option<mpsc::Sender<Bytes>>, Option<mpsc::Receiver<Bytes>>);

/// How many pieces of input may wait for a command.
const STDIN_DEPTH: usize = 32;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
}

impl Exit {
    /// With this code: 0 is `Completed`, all others are `Error`.
    pub fn code(code: i32) -> Exit {
        let reason = if code == 0 { "Completed" } else { "Error" };
        Exit { code, reason, message: String::new() }
    }
    /// A trap: what a process would call an abort.
    pub fn trap(message: String) -> Exit {
        Exit { code: 134, reason: "Error", message }
    }
    /// Over its memory limit.
    pub fn out_of_memory(limit: Option<u64>) -> Exit {
        let message = match limit {
            Some(limit) => format!("the container went over its memory limit of {limit} bytes"),
            None => "the container ran out of memory".to_owned(),
        };
        Exit { code: 137, reason: "OOMKilled", message }
    }
    /// Killed, as by SIGKILL.
    pub fn killed() -> Exit {
        Exit { code: 137, reason: "Error", message: String::new() }
    }
    /// Ended, as by SIGTERM.
    pub fn terminated() -> Exit {
        Exit { code: 143, reason: "Error", message: String::new() }
    }
}

/// How long requests to the pod's handlers may take.
fn deadline(annotations: &BTreeMap<String, String>) -> Result<Duration, String> {
    let Some(text) = annotations.get(TIMEOUT_ANNOTATION) else { return Ok(DEADLINE) };
    let seconds = text.parse().ok().filter(|seconds| (1..=MAX_TIMEOUT).contains(seconds));
    let words = || {
        format!("annotation {TIMEOUT_ANNOTATION}: {text:?} is no number of seconds from 1 to {MAX_TIMEOUT}")
    };
    seconds.map(Duration::from_secs).ok_or_else(words)
}

/// What stops a running container.
#[derive(Clone)]
pub(crate) struct Stop {
    /// Please end.
    pub term: CancellationToken,
    /// End now.
    pub kill: CancellationToken,
}

/// One container.
pub(crate) struct Container {
    pub sandbox: Arc<Sandbox>,
    program: Arc<Program>,
    grants: Arc<Grants>,
    ports: Vec<u16>,
    created_at_ns: i64,
    state: watch::Sender<State>,
    stop: Stop,
    handler: Mutex<Option<Arc<Handler>>>,
    /// Where others of the pod import from it.
    provider: Option<Arc<Provider>>,
    /// Of a command that has a standard input: where those who attach write to, and where it reads.
    stdin: Mutex<Input>,
    /// Serialises start, stop and remove.
    pub turn: tokio::sync::Mutex<()>,
}

impl Container {
    /// Loads the code, checks mounts and ports, opens the log.
    pub async fn create(spec: ContainerSpec, sandbox: Arc<Sandbox>) -> Result<Container, HostError> {
        let invalid = |words: String| HostError::new(ErrorCode::Invalid, words);
        let (artifact, mounts) = (spec.artifact.clone(), spec.mounts.clone());
        let capabilities = spec.capabilities.clone();
        let memory = Account::new(spec.memory_limit_bytes);
        let account = memory.clone();
        let (pod, names) = (sandbox.clone(), spec.links.clone());
        let checked = tokio::task::spawn_blocking(move || {
            hosts::filesystem::validate(&mounts)?;
            let program = program::load(&artifact)?;
            let (program, linked) = link::join(program, &names, &pod)?;
            let of_host = program.imports.iter().filter(|import| !linked.contains(import));
            hosts::permit(of_host, &capabilities)?;
            let config = hosts::config::prepare(&capabilities, &mounts)?;
            let keyvalue = hosts::keyvalue::prepare(&capabilities, &mounts, &account)?;
            Ok::<_, String>((program, config, keyvalue))
        });
        let (program, config, keyvalue) = checked
            .await
            .map_err(|e| HostError::new(ErrorCode::Internal, e.to_string()))?
            .map_err(|words| invalid(format!("container {}: {words}", spec.name)))?;
        if program.kind == Kind::Library && !spec.linked {
            return Err(invalid(format!(
                "container {}: the component exports neither a wasi:http handler nor wasi:cli/run, and no container of the \
                 pod is linked to it (annotation coracle.dev/links): there is nothing to start",
                spec.name
            )));
        }
        let log = Log::open(&spec.log_path).map_err(|error| {
            let words = format!("opening the log {}: {error}", spec.log_path.display());
            HostError::new(ErrorCode::Internal, words)
        })?;
        let mut env = spec.env.clone();
        if !env.iter().any(|(name, _)| name == "HOSTNAME") {
            env.push(("HOSTNAME".into(), sandbox.spec.hostname.clone()));
        }
        let mut ports = Vec::new();
        if program.kind == Kind::HttpHandler {
            ports.clone_from(&spec.http_ports);
            if ports.is_empty() {
                ports.push(DEFAULT_PORT);
                if !env.iter().any(|(name, _)| name == "PORT") {
                    env.push(("PORT".into(), DEFAULT_PORT.to_string()));
                }
            }
            ports.sort_unstable();
            ports.dedup();
            sandbox.reserve(&spec.id, &spec.name, &ports)?;
        }
        let meter = Meter::new(spec.cpu_millis);
        let deadline = deadline(&sandbox.spec.annotations).map_err(invalid)?;
        let grants = Arc::new(Grants {
            deadline,
            inference: hosts::nn::prepare(&spec.capabilities, &memory, &meter, &log),
            config,
            keyvalue,
            observed: hosts::observe::prepare(&spec.capabilities, &spec, &sandbox.spec),
            env,
            log,
            memory,
            meter,
            network: sandbox.network.clone(),
            egress: sandbox.egress.trusting(&spec.mounts),
            links: Links::new(&sandbox, &spec.links),
            spec,
        });
        let provider = grants.spec.linked.then(|| Arc::new(Provider::new(grants.clone(), program.clone())));
        if let Some(provider) = &provider {
            sandbox.provide(provider.clone());
        }
        let stdin = grants.spec.stdin.then(|| mpsc::channel(STDIN_DEPTH)).unzip();
        let stop = Stop { term: CancellationToken::new(), kill: CancellationToken::new() };
        Ok(Container {
            sandbox,
            program,
            grants,
            ports,
            created_at_ns: now_ns(),
            state: watch::Sender::new(State::Created),
            stop,
            handler: Mutex::default(),
            provider,
            stdin: Mutex::new(stdin),
            turn: tokio::sync::Mutex::default(),
        })
    }

    pub fn spec(&self) -> &ContainerSpec {
        &self.grants.spec
    }

    pub fn status(&self) -> ContainerStatus {
        ContainerStatus {
            spec: self.spec().clone(),
            kind: self.program.kind,
            state: self.state.borrow().clone(),
            created_at_ns: self.created_at_ns,
        }
    }

    pub fn runs(&self) -> bool {
        matches!(*self.state.borrow(), State::Running { .. })
    }

    /// What its guests measure of themselves.
    pub fn series(&self) -> Vec<Series> {
        self.grants.observed.as_ref().map(|observed| observed.read()).unwrap_or_default()
    }

    pub fn stats(&self) -> ContainerStats {
        let handler = self.handler.lock().clone();
        let running = self.runs();
        let provider = self.provider.as_ref();
        ContainerStats {
            id: self.spec().id.clone(),
            sandbox_id: self.spec().sandbox_id.clone(),
            timestamp_ns: now_ns(),
            cpu_nanos: self.grants.meter.used(),
            memory_bytes: self.grants.memory.held() as u64,
            instances: match &handler {
                Some(handler) => handler.instances.load(Ordering::Relaxed),
                None => u32::from(running && self.program.kind == Kind::Command),
            } + provider.map_or(0, |provider| provider.instances()),
            requests: handler.as_ref().map_or(0, |handler| handler.requests.load(Ordering::Relaxed))
                + provider.map_or(0, |provider| provider.called.load(Ordering::Relaxed)),
            cold_starts: handler.as_ref().map_or(0, |handler| handler.cold_starts.load(Ordering::Relaxed))
                + provider.map_or(0, |provider| provider.made.load(Ordering::Relaxed)),
            latency: handler.map(|handler| handler.latencies.read()).unwrap_or_default(),
        }
    }

    /// Starts it; `stopped` is told the last state. A handler listens when this answers.
    pub async fn start(
        self: &Arc<Container>,
        handlers: &Arc<Handlers>,
        stopped: impl FnOnce(State) + Send + 'static,
    ) -> Result<(), HostError> {
        if *self.state.borrow() != State::Created {
            let words = format!("container {} was started before", self.spec().name);
            return Err(HostError::new(ErrorCode::FailedPrecondition, words));
        }
        if self.sandbox.stopped() {
            let words = format!("the sandbox of pod {} is stopped", self.sandbox.pod());
            return Err(HostError::new(ErrorCode::FailedPrecondition, words));
        }
        let container = self.clone();
        if let Some(provider) = &self.provider
            && let Err(error) = provider.start().await
        {
            self.grants.log.note(&format!("starting it: {error:?}"));
            let started_at_ns = self.running();
            let exit = command::exit_of(&self.grants, Err(error));
            self.exited(started_at_ns, exit, stopped).await;
            return Ok(());
        }
        match self.program.kind {
            Kind::Library => {
                let started_at_ns = self.running();
                tokio::spawn(async move {
                    let exit = container.lend().await;
                    container.exited(started_at_ns, exit, stopped).await;
                });
            }
            Kind::Command => {
                let started_at_ns = self.running();
                tokio::spawn(async move {
                    let stdin = container.stdin.lock().1.take();
                    let exit = command::run(&container.grants, &container.program, stdin, &container.stop);
                    let exit = tokio::select! {
                        exit = exit => exit,
                        () = container.lent_too_much() => Exit::out_of_memory(container.grants.memory.limit()),
                    };
                    container.exited(started_at_ns, exit, stopped).await;
                });
            }
            Kind::HttpHandler => {
                let serving = serving::start(self, handlers).await;
                let started_at_ns = self.running();
                match serving {
                    Ok(serving) => {
                        *self.handler.lock() = Some(serving.handler.clone());
                        tokio::spawn(async move {
                            let handler = serving.handler.clone();
                            let over = async {
                                container.lent_too_much().await;
                                handler.over_limit.notify_one();
                                std::future::pending().await
                            };
                            let exit = tokio::select! {
                                exit = serving.run(&container.stop) => exit,
                                never = over => never,
                            };
                            container.handler.lock().take();
                            container.exited(started_at_ns, exit, stopped).await;
                        });
                    }
                    Err(serving::Failure::Refused(error)) => {
                        self.state.send_replace(State::Created);
                        return Err(error);
                    }
                    // It ran, and ended at once: what a process that crashes at its start does.
                    Err(serving::Failure::Crashed(exit)) => {
                        self.exited(started_at_ns, exit, stopped).await;
                    }
                }
            }
        }
        Ok(())
    }

    fn running(&self) -> i64 {
        let started_at_ns = now_ns();
        self.state.send_replace(State::Running { started_at_ns });
        started_at_ns
    }

    /// Serves the other containers of the pod until it is stopped or out of memory.
    async fn lend(&self) -> Exit {
        let drained = async {
            self.stop.term.cancelled().await;
            if let Some(provider) = &self.provider {
                provider.drain().await;
            }
        };
        tokio::select! {
            biased;
            () = self.stop.kill.cancelled() => Exit::killed(),
            () = self.lent_too_much() => Exit::out_of_memory(self.grants.memory.limit()),
            () = drained => Exit::code(0),
        }
    }

    /// Waits until calls of other containers have used too much memory.
    async fn lent_too_much(&self) {
        match &self.provider {
            Some(provider) => provider.over_limit.notified().await,
            None => std::future::pending().await,
        }
    }

    async fn exited(&self, started_at_ns: i64, exit: Exit, stopped: impl FnOnce(State)) {
        if let Some(provider) = &self.provider {
            provider.close();
        }
        self.grants.log.settled().await;
        self.sandbox.release(&self.spec().id);
        let state = State::Exited {
            started_at_ns,
            finished_at_ns: now_ns(),
            exit_code: exit.code,
            reason: exit.reason.to_owned(),
            message: exit.message,
        };
        self.state.send_replace(state.clone());
        stopped(state);
    }

    /// Stops it within the grace; answers when it has.
    pub async fn stop(&self, grace: std::time::Duration) {
        let mut state = self.state.subscribe();
        if *state.borrow() == State::Created {
            self.sandbox.release(&self.spec().id);
            let now = now_ns();
            self.state.send_replace(State::Exited {
                started_at_ns: 0,
                finished_at_ns: now,
                exit_code: 137,
                reason: "Error".into(),
                message: "stopped before it was started".into(),
            });
            return;
        }
        let exited = |state: &State| matches!(state, State::Exited { .. });
        // Without a grace it is killed, and not asked to end first.
        if grace.is_zero() {
            self.stop.kill.cancel();
            let _ = state.wait_for(exited).await;
            return;
        }
        self.stop.term.cancel();
        if tokio::time::timeout(grace, state.wait_for(exited)).await.is_err() {
            self.stop.kill.cancel();
            let _ = state.wait_for(exited).await;
        }
    }

    /// Gives it other limits, which hold at once; what it holds of memory it keeps, and so a limit below that is refused.
    pub fn update(&self, memory: Option<u64>, cpu_millis: Option<u32>) -> Result<(), HostError> {
        self.grants.memory.set_limit(memory).map_err(|held| {
            let (name, asked) = (&self.spec().name, memory.unwrap_or_default());
            let words = format!(
                "cannot decrease memory limits: attempting to set container {name:?} memory limit ({asked}) below current \
                 usage ({held})"
            );
            HostError::new(ErrorCode::FailedPrecondition, words)
        })?;
        self.grants.meter.set_limit(cpu_millis);
        Ok(())
    }

    /// Opens the log path anew.
    pub async fn reopen_log(&self) -> Result<(), HostError> {
        self.grants.log.reopen().await.map_err(|error| {
            let words = format!("reopening the log {}: {error}", self.spec().log_path.display());
            HostError::new(ErrorCode::Internal, words)
        })
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> i64 {
    Timestamp::now().as_nanosecond() as i64
}
