//! Plugins that register.

use std::path::Path;

use tonic::{Request, Response, Status};

use super::{MAX_RESOURCES, Manager, Plugin};
use crate::VERSION;
use crate::v1beta1::registration_server::Registration;
use crate::v1beta1::{Empty, RegisterRequest};

/// Whether a name is one of an extended resource, `domain/name`.
pub(super) fn is_resource(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, rest)| {
        !domain.is_empty()
            && domain != "kubernetes.io"
            && !domain.ends_with(".kubernetes.io")
            && !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    })
}

#[tonic::async_trait]
impl Registration for Manager {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            return Err(Status::invalid_argument(format!(
                "version {:?} of the device-plugin API is not spoken; {VERSION} is",
                request.version
            )));
        }
        if !is_resource(&request.resource_name) {
            return Err(Status::invalid_argument(format!(
                "the ResourceName {:?} is invalid",
                request.resource_name
            )));
        }
        let inside = Path::new(&request.endpoint).file_name().is_some_and(|f| f == request.endpoint.as_str());
        if !inside {
            return Err(Status::invalid_argument(format!(
                "endpoint {:?} is no file name in the plugin directory",
                request.endpoint
            )));
        }
        let mut state = self.inner.state.lock();
        if state.plugins.len() >= MAX_RESOURCES && !state.plugins.contains_key(&request.resource_name) {
            return Err(Status::resource_exhausted("too many resources"));
        }
        state.generation += 1;
        let generation = state.generation;
        let plugin = Plugin {
            endpoint: request.endpoint.clone(),
            pre_start: request.options.as_ref().is_some_and(|o| o.pre_start_required),
            prefers: request.options.as_ref().is_some_and(|o| o.get_preferred_allocation_available),
            connected: false,
            generation,
        };
        state.plugins.insert(request.resource_name.clone(), plugin);
        state.ledger.register(&request.resource_name);
        drop(state);
        self.write().map_err(|e| Status::internal(e.to_string()))?;
        tokio::spawn(self.clone().follow(request.resource_name, request.endpoint, generation));
        Ok(Response::new(Empty {}))
    }
}
