//! Programs that are run in a container besides its own.

use std::path::PathBuf;
use std::time::Duration;

use coracle_cri_api::v1;
use coracle_streaming::{Ended, Far, Near, Output, streams};
use coracle_wasm::protocol::State as Life;
use tonic::Status;

use crate::images;
use crate::record::ContainerRecord;
use crate::service::Service;

/// The most that is answered of either stream, in bytes; the rest is read and dropped.
const MAX_OUTPUT: usize = 4 << 20;
/// How long a command without a limit may take.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

impl Service {
    /// A container that runs, for something to be done in it.
    pub fn running(&self, id: &str) -> Result<ContainerRecord, Status> {
        let record = self.container(id)?;
        match record.state {
            Life::Running { .. } => Ok(record),
            _ => Err(Status::failed_precondition(format!("container {} does not run", record.id))),
        }
    }

    /// Runs a program to its end.
    pub async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
        let record = self.running(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("no command is given"));
        }
        let limit = u64::try_from(request.timeout).ok().filter(|s| *s > 0);
        let limit = limit.map_or(FOREVER, Duration::from_secs);
        let (near, Far { stdin, mut output, sizes }) = streams();
        drop((stdin, sizes));
        let collect = async {
            let mut said = v1::ExecSyncResponse::default();
            while let Some(piece) = output.recv().await {
                let (to, bytes) = match &piece {
                    Output::Stdout(bytes) => (&mut said.stdout, bytes),
                    Output::Stderr(bytes) => (&mut said.stderr, bytes),
                };
                let room = MAX_OUTPUT.saturating_sub(to.len()).min(bytes.len());
                to.extend_from_slice(bytes.get(..room).unwrap_or_default());
            }
            said
        };
        let run = async { tokio::join!(self.exec_in(&record, request.cmd, false, near), collect) };
        match tokio::time::timeout(limit, run).await {
            Ok((Ok(exit_code), said)) => Ok(v1::ExecSyncResponse { exit_code, ..said }),
            Ok((Err(words), _)) => Err(Status::internal(format!("container {}: {words}", record.name()))),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the command in container {} took longer than {} s",
                record.name(),
                request.timeout
            ))),
        }
    }

    /// The code of a command that the container's image has beside its program under this name.
    async fn command_of(
        &self,
        record: &ContainerRecord,
        name: Option<&String>,
    ) -> Result<Option<PathBuf>, Status> {
        let Some(name) = name else { return Ok(None) };
        let image = self.images.store().find(&record.image_id).map_err(images::status)?;
        let Some(digest) = image.and_then(|image| image.commands.get(name).cloned()) else { return Ok(None) };
        Ok(Some(self.command(name, &digest).await?))
    }

    /// Runs a program in a container, with streams.
    pub async fn exec_in(
        &self,
        record: &ContainerRecord,
        command: Vec<String>,
        tty: bool,
        near: Near,
    ) -> Ended {
        if !record.linux {
            let host = self.host_of(&record.sandbox_id).map_err(|s| s.message().to_owned())?;
            let host = host.socket().ok_or("the wasm host does not answer")?;
            let artifact =
                self.command_of(record, command.first()).await.map_err(|s| s.message().to_owned())?;
            let ended = coracle_wasm::client::exec(&host, &record.id, command, tty, artifact, near).await;
            return ended.map_err(|e| e.to_string());
        }
        let engine = self.linux.engine().map_err(|s| s.message().to_owned())?;
        engine.exec(&record.id, &command, tty, near).await.map_err(|e| format!("{e:#}"))
    }
}
