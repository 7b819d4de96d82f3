//! Programs that are run in a container besides its own.

use std::time::Duration;

use coracle_cri_api::v1;
use coracle_wasm::protocol::State as Life;
use tonic::Status;

use crate::record::ContainerRecord;
use crate::service::Service;

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
        if !record.linux {
            return Err(Status::unimplemented("a wasm container has no programs to exec"));
        }
        let limit = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let said = self.linux.engine()?.exec_sync(&record.id, &request.cmd, limit).await;
        match said.map_err(|e| Status::internal(format!("container {}: {e:#}", record.name())))? {
            Some(said) => Ok(v1::ExecSyncResponse {
                stdout: said.stdout,
                stderr: said.stderr,
                exit_code: said.exit_code,
            }),
            None => Err(Status::deadline_exceeded(format!(
                "the command in container {} took longer than {} s",
                record.name(),
                request.timeout
            ))),
        }
    }
}
