//! Pure: the files of a volume that is made from objects and from the pod itself.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use crate::env::{Sources, fields};
use crate::objects::Kind;
use crate::tokens;

/// The largest volume made from objects, in bytes; the API admits 1 MiB an object.
const MAX_BYTES: usize = 16 << 20;

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// What it says.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Files by their path in the volume.
pub type Files = BTreeMap<String, File>;

/// ConfigMaps and Secrets that the volumes of a pod refer to.
pub fn references(pod: &Pod) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    for volume in super::volumes(pod) {
        found.extend(volume.config_map.iter().map(|s| (Kind::ConfigMap, s.name.clone())));
        found.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()).map(|n| (Kind::Secret, n)));
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            found.extend(source.config_map.iter().map(|s| (Kind::ConfigMap, s.name.clone())));
            found.extend(source.secret.iter().map(|s| (Kind::Secret, s.name.clone())));
        }
    }
    found
}

struct Builder<'a> {
    pod: &'a Pod,
    sources: &'a Sources,
    facts: &'a fields::Facts,
    mode: u32,
    files: Files,
    bytes: usize,
}

/// The files of one volume.
pub fn files(pod: &Pod, volume: &Volume, sources: &Sources, facts: &fields::Facts) -> Result<Files, String> {
    let mode = |mode: Option<i32>| mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o644) & 0o777;
    let mut builder = Builder { pod, sources, facts, mode: 0o644, files: Files::new(), bytes: 0 };
    if let Some(source) = &volume.config_map {
        builder.mode = mode(source.default_mode);
        builder.object(Kind::ConfigMap, &source.name, source.items.as_deref(), source.optional)?;
    } else if let Some(source) = &volume.secret {
        builder.mode = mode(source.default_mode);
        let name = source.secret_name.as_deref().unwrap_or_default();
        builder.object(Kind::Secret, name, source.items.as_deref(), source.optional)?;
    } else if let Some(source) = &volume.downward_api {
        builder.mode = mode(source.default_mode);
        builder.downward(source.items.as_deref().unwrap_or_default())?;
    } else if let Some(source) = &volume.projected {
        builder.mode = mode(source.default_mode);
        for part in source.sources.iter().flatten() {
            builder.projection(part)?;
        }
    }
    Ok(builder.files)
}

impl Builder<'_> {
    fn projection(&mut self, part: &k8s_openapi::api::core::v1::VolumeProjection) -> Result<(), String> {
        if let Some(source) = &part.config_map {
            self.object(Kind::ConfigMap, &source.name, source.items.as_deref(), source.optional)?;
        }
        if let Some(source) = &part.secret {
            self.object(Kind::Secret, &source.name, source.items.as_deref(), source.optional)?;
        }
        if let Some(source) = &part.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default())?;
        }
        if let Some(source) = &part.service_account_token {
            let token = self.facts.tokens.get(&tokens::wish(source));
            let token = token.ok_or("the token of the service account is not there")?.clone();
            self.add(&source.path, token.into_bytes(), None)?;
        }
        if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
            return Err("this kind of projected volume source is not supported by this node".into());
        }
        Ok(())
    }

    fn object(
        &mut self,
        kind: Kind,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), String> {
        let optional = optional.unwrap_or(false);
        let Some(keys) = self.sources.get(&(kind, name.to_owned())).and_then(Option::as_ref) else {
            return if optional { Ok(()) } else { Err(format!("{} \"{name}\" not found", kind.word())) };
        };
        match items.filter(|i| !i.is_empty()) {
            None => {
                for (key, data) in keys.iter() {
                    self.add(key, data.clone(), None)?;
                }
            }
            Some(items) => {
                for item in items {
                    match keys.get(&item.key) {
                        Some(data) => self.add(&item.path, data.clone(), item.mode)?,
                        None if optional => {}
                        None => {
                            return Err(format!(
                                "{} references non-existent config key: {}",
                                kind.word(),
                                item.key
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), String> {
        for item in items {
            let value = if let Some(reference) = &item.field_ref {
                fields::field(self.pod, &reference.field_path, self.facts)?
            } else if let Some(reference) = &item.resource_field_ref {
                fields::resource(self.pod, &Default::default(), reference, self.facts)?
            } else {
                String::new()
            };
            self.add(&item.path, value.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &str, data: Vec<u8>, mode: Option<i32>) -> Result<(), String> {
        let parts = Path::new(path).components();
        let inside = !path.is_empty()
            && !path.starts_with("..")
            && parts.into_iter().all(|c| matches!(c, Component::Normal(_)));
        if !inside {
            return Err(format!("invalid path {path:?}: it must stay in the volume"));
        }
        self.bytes = self.bytes.saturating_add(data.len());
        if self.bytes > MAX_BYTES {
            return Err(format!("the volume is larger than {MAX_BYTES} bytes"));
        }
        let mode = mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(self.mode) & 0o777;
        self.files.insert(path.to_owned(), File { data, mode });
        Ok(())
    }
}
