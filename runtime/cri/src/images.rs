//! The image service of CRI.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use coracle_cri_api::v1::image_service_server::ImageService;
use coracle_cri_api::{annotation, v1};
use coracle_images::{Credentials, Error, ImageRecord, Platform, Wanted};
use coracle_wasm::protocol::Kind;
use tonic::{Request, Response, Status};

use crate::compile::{Artifact, Error as CompileFailure};
use crate::links;
use crate::record::now_ns;
use crate::rpc::Rpc;
use crate::sandboxes::json;
use crate::service::Service;

/// `repository@digest` of an image, or its id.
pub fn reference(image: &ImageRecord) -> String {
    let own = image.digests.iter().find(|d| d.ends_with(&image.id));
    own.or_else(|| image.digests.first()).unwrap_or(&image.id).clone()
}

/// An image as CRI shows it; whom a Linux image runs as is in its configuration.
fn show(service: &Service, image: &ImageRecord) -> v1::Image {
    let linux = image.platform == Platform::Linux;
    let settings = linux.then(|| service.configuration(image).ok()).flatten();
    let user = settings.and_then(|s| s.config().as_ref().and_then(|c| c.user().clone())).unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default().to_owned();
    let uid = if linux && user.is_empty() { Some(0) } else { user.parse().ok() };
    let platform = if linux { annotation::LINUX } else { annotation::WASM };
    let annotations = [(annotation::PLATFORM.to_owned(), platform.to_owned())].into();
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size.max(1),
        spec: Some(v1::ImageSpec { image: image.id.clone(), annotations, ..Default::default() }),
        username: if uid.is_some() { String::new() } else { user },
        uid: uid.map(|value| v1::Int64Value { value }),
        ..Default::default()
    }
}

pub fn status(error: Error) -> Status {
    let code = match &error {
        Error::InvalidReference { .. } | Error::Unsupported { .. } => tonic::Code::InvalidArgument,
        Error::NotFound { .. } | Error::NotPresent(_) => tonic::Code::NotFound,
        Error::Unauthorized { .. } => tonic::Code::PermissionDenied,
        Error::Unsigned { .. } => tonic::Code::FailedPrecondition,
        Error::Unreachable { .. } => tonic::Code::Unavailable,
        Error::TooLarge { .. } => tonic::Code::ResourceExhausted,
        Error::Corrupt { .. } => tonic::Code::DataLoss,
        Error::Io { .. } => tonic::Code::Internal,
    };
    let message = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Status::new(code, message)
}

fn credentials(auth: Option<v1::AuthConfig>) -> Result<Credentials, Status> {
    let Some(auth) = auth else { return Ok(Credentials::Anonymous) };
    if !auth.registry_token.is_empty() {
        return Ok(Credentials::Bearer(auth.registry_token));
    }
    // Beside it Docker's files have a user name that means nothing.
    if !auth.identity_token.is_empty() {
        return Ok(Credentials::Identity(auth.identity_token));
    }
    if !auth.username.is_empty() {
        return Ok(Credentials::Basic { username: auth.username, password: auth.password });
    }
    if !auth.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim_end_matches('\0'));
        let pair = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|text| text.split_once(':'));
        return match pair {
            Some((username, password)) => Ok(Credentials::Basic {
                username: username.to_owned(),
                password: password.trim_end_matches('\0').to_owned(),
            }),
            None => Err(Status::invalid_argument("auth is not base64 of username:password")),
        };
    }
    Ok(Credentials::Anonymous)
}

impl Service {
    /// The image of this name or id for a sandbox of this handler, or NotFound.
    pub fn image_for(&self, name: &str, handler: &str) -> Result<ImageRecord, Status> {
        if name.is_empty() {
            return Err(Status::invalid_argument("the container has no image"));
        }
        let found = self.images.store().find_as(name, wanted(handler)).map_err(status)?;
        found.ok_or_else(|| status(Error::NotPresent(name.to_owned())))
    }

    /// The native code of an image: compiled at its pull, or now for an engine that is newer.
    pub async fn code(&self, name: &str, image: &ImageRecord) -> Result<Artifact, Status> {
        let wasm = self.images.store().blob_path(&image.layer);
        self.compiler.ensure(&image.layer, &wasm).await.map_err(|error| match error {
            CompileFailure::Refused(reason) => Status::invalid_argument(format!("image {name}: {reason}")),
            other => Status::internal(format!("image {name}: {other}")),
        })
    }

    /// The native code of a command that an image has beside its program.
    pub async fn command(&self, name: &str, layer: &str) -> Result<PathBuf, Status> {
        let wasm = self.images.store().blob_path(layer);
        let refused = |words: &str| Status::invalid_argument(format!("command {name}: {words}"));
        let artifact = self.compiler.ensure(layer, &wasm).await.map_err(|error| match error {
            CompileFailure::Refused(reason) => refused(&reason),
            other => Status::internal(format!("command {name}: {other}")),
        })?;
        match (artifact.missing.first(), artifact.kind) {
            (Some(missing), _) => Err(refused(&missing.words)),
            (None, Kind::Command) => Ok(artifact.path),
            (None, _) => Err(refused("the component does not export wasi:cli/run")),
        }
    }

    /// The code of an image, and of the commands beside it.
    async fn all_code(&self, name: &str, image: &ImageRecord) -> Result<Artifact, Status> {
        let artifact = self.code(name, image).await?;
        for (command, layer) in &image.commands {
            self.command(command, layer).await.map_err(|status| {
                Status::new(status.code(), format!("image {name}: {}", status.message()))
            })?;
        }
        Ok(artifact)
    }

    async fn pull(
        &self,
        name: &str,
        wanted: Wanted,
        given: &Credentials,
        pod: Option<&v1::PodSandboxConfig>,
    ) -> Result<String, Status> {
        let known = self.images.store().find_as(name, wanted).map_err(status)?.map(|r| r.id);
        let image = self.images.pull(name, wanted, given).await.map_err(status)?;
        if image.platform == Platform::Linux {
            return match self.linux.engine() {
                Ok(_) => self.unpack(name, &image).await.map(|()| image.id),
                Err(refusal) => {
                    if known.as_deref() != Some(&image.id) {
                        self.images.store().remove(&image.id).map_err(status)?;
                    }
                    let words = format!("image {name} is a Linux image: {}", refusal.message());
                    Err(Status::invalid_argument(words))
                }
            };
        }
        match self.all_code(name, &image).await {
            Ok(artifact) => {
                tracing::info!(image = name, id = image.id, kind = ?artifact.kind, "image pulled");
                // It stays where this pod may not run it: another, which links what it imports, may pull it just now.
                startable(name, &artifact, pod)?;
                Ok(image.id)
            }
            Err(refusal) => {
                // An image that no pod can run is not said to be here, unless it was.
                if refusal.code() == tonic::Code::InvalidArgument && known.as_deref() != Some(&image.id) {
                    self.images.store().remove(&image.id).map_err(status)?;
                }
                Err(refusal)
            }
        }
    }

    async fn unpack(&self, name: &str, image: &ImageRecord) -> Result<(), Status> {
        self.configuration(image)?;
        let (store, of) = (self.images.store().clone(), image.clone());
        let unpacked = tokio::task::spawn_blocking(move || store.unpacked(&of)).await;
        unpacked.map_err(|e| Status::internal(e.to_string()))?.map_err(status)?;
        tracing::info!(image = name, id = image.id, layers = image.layers.len(), "Linux image pulled");
        Ok(())
    }

    fn usage(&self) -> Result<v1::FilesystemUsage, Status> {
        let store = self.images.store();
        let usage = store.usage().map_err(status)?;
        Ok(v1::FilesystemUsage {
            timestamp: now_ns(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: mount_point(store.dir()) }),
            used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
            inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
        })
    }
}

/// Refuses an image that lacks what only another container could provide, or that only provides, where `pod` links none.
pub fn startable(name: &str, artifact: &Artifact, pod: Option<&v1::PodSandboxConfig>) -> Result<(), Status> {
    if pod.is_some_and(|pod| pod.annotations.contains_key(links::ANNOTATION)) {
        return Ok(());
    }
    let words = match (artifact.missing.first(), artifact.kind) {
        (Some(missing), _) => &missing.words,
        (None, Kind::Library) => links::NOTHING_TO_START,
        (None, _) => return Ok(()),
    };
    Err(Status::invalid_argument(format!("image {name}: {words}")))
}

/// The mount point that a folder lies on: the highest of its parents on the same device.
fn mount_point(dir: &std::path::Path) -> String {
    let device = |path: &std::path::Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    let own = device(dir);
    let highest = dir.ancestors().take_while(|p| device(p) == own).last().unwrap_or(dir);
    highest.display().to_string()
}

/// Handler `runc` wants a Linux image even where there is a component.
fn wanted(handler: &str) -> Wanted {
    if handler == "runc" { Wanted::Linux } else { Wanted::WasmFirst }
}

fn name(image: Option<v1::ImageSpec>) -> Result<String, Status> {
    let name = image.unwrap_or_default().image;
    if name.is_empty() { Err(Status::invalid_argument("no image is named")) } else { Ok(name) }
}

#[tonic::async_trait]
impl ImageService for Rpc {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let wanted = request.into_inner().filter.and_then(|f| f.image).unwrap_or_default().image;
        let store = self.0.images.store();
        let found = match wanted.as_str() {
            "" => store.list(),
            wanted => store.find(wanted).map_err(status)?.into_iter().collect(),
        };
        Ok(Response::new(v1::ListImagesResponse { images: found.iter().map(|i| show(&self.0, i)).collect() }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let handler = request.image.as_ref().map(|i| i.runtime_handler.clone()).unwrap_or_default();
        let name = name(request.image)?;
        let found = self.0.images.store().find_as(&name, wanted(&handler)).map_err(status)?;
        let mut info = std::collections::HashMap::new();
        if request.verbose {
            info.extend(found.as_ref().map(|record| ("info".to_owned(), json(record))));
            let progress = self.0.images.progress(&name);
            info.extend(progress.map(|p| (annotation::PULL_PROGRESS.to_owned(), json(&p))));
        }
        Ok(Response::new(v1::ImageStatusResponse { image: found.as_ref().map(|i| show(&self.0, i)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let handler = request.image.as_ref().map(|i| i.runtime_handler.clone()).unwrap_or_default();
        let (name, given) = (name(request.image)?, credentials(request.auth)?);
        let service = self.0.clone();
        // A client that hangs up does not undo what was begun: its next try finds it done.
        let pod = request.sandbox_config;
        let pulled =
            tokio::spawn(async move { service.pull(&name, wanted(&handler), &given, pod.as_ref()).await });
        let image_ref = pulled.await.map_err(|e| Status::internal(format!("the pull broke off: {e}")))??;
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = name(request.into_inner().image)?;
        if self.0.images.store().remove(&name).map_err(status)? {
            self.0.sweep_code();
        }
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let usage = self.0.usage()?;
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![usage.clone()],
            container_filesystems: vec![usage],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_many_shapes() {
        let auth = |f: fn(&mut v1::AuthConfig)| {
            let mut auth = v1::AuthConfig::default();
            f(&mut auth);
            credentials(Some(auth))
        };
        let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
        assert_eq!(auth(|a| a.auth = "dTpw".into()).unwrap(), basic);
        assert_eq!(auth(|a| (a.username, a.password) = ("u".into(), "p".into())).unwrap(), basic);
        assert_eq!(auth(|a| a.registry_token = "t".into()).unwrap(), Credentials::Bearer("t".into()));
        assert_eq!(auth(|_| ()).unwrap(), Credentials::Anonymous);
        assert!(auth(|a| a.auth = "%%%".into()).is_err());
        let docker = auth(|a| (a.username, a.identity_token) = ("u".into(), "t".into())).unwrap();
        assert_eq!(docker, Credentials::Identity("t".into()));
    }
}
