//! In-place resize: other limits for containers that run (`pods/resize`).

use k8s_openapi::api::core::v1::ResourceRequirements;

use super::Worker;
use crate::pods::state::{Fate, Phase, find_container};
use crate::pods::status::containers::old_status;
use crate::pods::steps::config::resources;

impl Worker {
    /// Gives running containers the resources that their specs have now. What the runtime refuses is told once, as a
    /// condition and an Event, and what the container has stays.
    pub(super) async fn resize(&mut self) {
        if self.fate != Fate::Runs {
            return;
        }
        let running = self.state.containers.iter().filter(|c| c.phase == Phase::Running);
        let running: Vec<(String, String)> = running.map(|c| (c.id.clone(), c.name.clone())).collect();
        self.memory.resources.retain(|id, _| running.iter().any(|(other, _)| other == id));
        for (id, name) in running {
            let Some(spec) = find_container(&self.pod, &name) else { continue };
            let wanted = spec.resources.clone().unwrap_or_default();
            let has = match self.memory.resources.get(&id) {
                Some(has) => has.clone(),
                None => self.told(&name, &id).unwrap_or_else(|| wanted.clone()),
            };
            self.memory.resources.insert(id.clone(), has.clone());
            let refused = self.memory.resize_refused.as_ref().is_some_and(|(of, _)| *of == wanted);
            if has == wanted || refused {
                continue;
            }
            let asked = match resources::container(&self.pod, &spec, self.context.memory) {
                Ok(limits) => self.context.runtime.update_resources(&id, limits).await,
                Err(words) => Err(tonic::Status::invalid_argument(words)),
            };
            match asked {
                Ok(()) => {
                    self.memory.resize_refused = None;
                    self.memory.resources.insert(id, wanted);
                    let words = format!("container {name} has its new resources");
                    self.context.recorder.pod(&self.pod, Some(&name), false, "ResizeCompleted", words);
                }
                Err(status) => {
                    let words = status.message().to_owned();
                    self.context.recorder.pod(
                        &self.pod,
                        Some(&name),
                        true,
                        "ResizeInfeasible",
                        words.clone(),
                    );
                    self.memory.resize_refused = Some((wanted, words));
                }
            }
        }
    }

    /// What the API last had as the resources of this very container: those of before the agent was restarted.
    fn told(&self, name: &str, id: &str) -> Option<ResourceRequirements> {
        let old = old_status(self.input(), name)?;
        let same = old.container_id.as_deref().is_some_and(|of| of.rsplit('/').next() == Some(id));
        old.resources.clone().filter(|_| same)
    }
}
