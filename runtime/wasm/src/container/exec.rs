//! Exec and attach: the container's own program once more, an applet over its volumes, or a look at what it writes.

use std::{path::PathBuf, sync::Arc};

use coracle_streaming::{Near, Output};

use super::{Container, command};
use crate::{
    applets,
    cpu::Metered,
    hosts::{
        self,
        cli::{Streams, piped::Piped},
    },
    log::Stream,
    program::{self, Program},
    protocol::{ErrorCode, HostError, Kind, State},
};

/// What a shell answers for a command that it does not find.
const NOT_FOUND: i32 = 127;

impl Container {
    /// Runs a command with these streams; answers its exit code. `artifact`: that one, with all that the container has.
    pub async fn exec(
        &self,
        args: Vec<String>,
        artifact: Option<PathBuf>,
        near: Near,
    ) -> Result<i32, HostError> {
        let Some(name) = args.first().cloned() else {
            return Err(HostError::new(ErrorCode::Invalid, "no command is given"));
        };
        if let Some(artifact) = artifact {
            let program = self.beside(artifact).await?;
            return Ok(self.run(&program, args, near).await);
        }
        if self.is_own(&name) && self.program.kind == Kind::Command {
            return Ok(self.run(&self.program, args, near).await);
        }
        let Near { stdin, output, sizes: _ } = near;
        let spec = self.spec();
        let place = applets::Place {
            mounts: spec.mounts.clone(),
            env: self.grants.env.clone(),
            working_dir: spec.working_dir.clone(),
        };
        if applets::NAMES.contains(&name.as_str()) {
            return Ok(applets::run(place, args, stdin, output).await);
        }
        let own = match self.program.kind {
            Kind::Command => format!("its own program {:?} and, for looking around, ", self.own_name()),
            Kind::HttpHandler | Kind::Library => String::new(),
        };
        let words = format!(
            "{name}: not found: this is a wasm container, which has {own}{}\n",
            applets::NAMES.join(", ")
        );
        let _ = output.send(Output::Stderr(words.into())).await;
        Ok(NOT_FOUND)
    }

    fn own_name(&self) -> &str {
        self.spec().args.first().unwrap_or(&self.spec().name)
    }

    fn is_own(&self, name: &str) -> bool {
        let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        name == self.own_name() || base(name) == base(self.own_name()) || name == self.spec().name
    }

    /// Another program, which may use what this container may.
    async fn beside(&self, artifact: PathBuf) -> Result<Arc<Program>, HostError> {
        let capabilities = self.spec().capabilities.clone();
        let loaded = tokio::task::spawn_blocking(move || {
            let program = program::load(&artifact)?;
            hosts::permit(program.imports.iter(), &capabilities)?;
            Ok::<_, String>(program)
        });
        let loaded = loaded.await.map_err(|e| HostError::new(ErrorCode::Internal, e.to_string()))?;
        loaded.map_err(|words| HostError::new(ErrorCode::Invalid, words))
    }

    /// A new instance of a program, with the container's volumes, environment and limits.
    async fn run(&self, program: &Program, args: Vec<String>, near: Near) -> i32 {
        let Near { stdin, output, sizes: _ } = near;
        let errors = output.clone();
        let piped = Piped { args, stdin, output };
        let again = Box::pin(command::call(&self.grants, program, Streams::Piped(piped)));
        let guest = Metered { future: again, meter: self.grants.meter.clone() };
        let exit = tokio::select! {
            biased;
            () = self.stop.kill.cancelled() => super::Exit::killed(),
            () = self.stop.term.cancelled() => super::Exit::terminated(),
            result = guest => command::exit_of(&self.grants, result),
        };
        if !exit.message.is_empty() {
            let _ = errors.send(Output::Stderr(format!("{}\n", exit.message).into())).await;
        }
        exit.code
    }

    /// Shows what the container writes from now on; answers its exit code when it has ended.
    pub async fn attach(&self, stdin: bool, near: Near) -> Result<i32, HostError> {
        let Near { stdin: mut input, output, sizes: _ } = near;
        let target = self.stdin.lock().0.clone().filter(|_| stdin);
        let feed = async {
            if let Some(target) = target {
                while let Some(bytes) = input.recv().await {
                    if target.send(bytes).await.is_err() {
                        break;
                    }
                }
                if self.spec().stdin_once {
                    self.stdin.lock().0.take();
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            code = self.show(output) => Ok(code),
            () = feed => Ok(0),
        }
    }

    async fn show(&self, output: tokio::sync::mpsc::Sender<Output>) -> i32 {
        let mut lines = self.grants.log.follow();
        let mut state = self.state.subscribe();
        loop {
            tokio::select! {
                biased;
                line = lines.recv() => {
                    let (stream, bytes) = match line {
                        Ok(line) => line,
                        Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => return 0,
                    };
                    let piece = match stream {
                        Stream::Stdout => Output::Stdout(bytes),
                        Stream::Stderr => Output::Stderr(bytes),
                    };
                    if output.send(piece).await.is_err() {
                        return 0;
                    }
                }
                ended = async { state.wait_for(|s| matches!(s, State::Exited { .. })).await.map(|s| s.clone()) } => {
                    return match ended {
                        Ok(State::Exited { exit_code, .. }) => exit_code,
                        _ => 0,
                    };
                }
            }
        }
    }
}
