//! CDI, the Container Device Interface: a device by its name (`vendor/class=device`) becomes edits of the specification.

use std::path::{Path, PathBuf};

use coracle_cri_api::v1;
use serde::Deserialize;
use serde_json::{Value, json};

use super::devices::{Device, grant};
use super::{Error, wrong};

/// Where specifications lie on any host; the later folder wins.
pub const DEFAULT_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The longest specification that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// The most files of a folder that are read.
const MAX_FILES: usize = 256;

/// One file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    kind: String,
    #[serde(default)]
    devices: Vec<Named>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids", alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    #[serde(default)]
    host_path: Option<PathBuf>,
    #[serde(default)]
    permissions: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default)]
    r#type: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    timeout: Option<u32>,
}

/// Carries out the edits of the container's CDI devices.
pub(super) fn add(spec: &mut Value, config: &v1::ContainerConfig, dirs: &[PathBuf]) -> Result<(), Error> {
    if config.cdi_devices.is_empty() {
        return Ok(());
    }
    let files = read(dirs);
    let mut kinds = Vec::new();
    for asked in &config.cdi_devices {
        let Some((kind, name)) = asked.name.split_once('=') else {
            return wrong(format!("CDI device {:?} is not of the form vendor/class=device", asked.name));
        };
        let found = files.iter().rev().filter(|f| f.kind == kind).find_map(|file| {
            let device = file.devices.iter().find(|d| d.name == name)?;
            Some((file, device))
        });
        let Some((file, device)) = found else {
            return wrong(format!("CDI device {}: no specification in {dirs:?} has it", asked.name));
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
            apply(spec, &file.container_edits)?;
        }
        apply(spec, &device.container_edits)?;
    }
    Ok(())
}

/// The files of the folders, those that win last.
fn read(dirs: &[PathBuf]) -> Vec<File> {
    let mut files = Vec::new();
    for dir in dirs {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .take(MAX_FILES)
            .collect();
        paths.sort();
        for path in paths {
            match parse(&path) {
                Ok(Some(file)) => files.push(file),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), "a CDI specification is ignored: {error}")
                }
            }
        }
    }
    files
}

fn parse(path: &Path) -> Result<Option<File>, String> {
    let yaml = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => false,
        Some("yaml" | "yml") => true,
        _ => return Ok(None),
    };
    if std::fs::metadata(path).map_err(|e| e.to_string())?.len() > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    if yaml {
        return serde_yaml::from_str(&text).map(Some).map_err(|e| e.to_string());
    }
    serde_json::from_str(&text).map(Some).map_err(|e| e.to_string())
}

fn list(at: &mut Value) -> &mut Vec<Value> {
    if !at.is_array() {
        *at = json!([]);
    }
    match at {
        Value::Array(list) => list,
        _ => unreachable!("it was made an array"),
    }
}

fn apply(spec: &mut Value, edits: &Edits) -> Result<(), Error> {
    let env = list(&mut spec["process"]["env"]);
    for entry in &edits.env {
        let name = entry.split('=').next().unwrap_or_default();
        env.retain(|old| old.as_str().and_then(|o| o.split('=').next()) != Some(name));
        env.push(json!(entry));
    }
    for node in &edits.device_nodes {
        let host = node.host_path.clone().unwrap_or_else(|| node.path.clone().into());
        let permissions = node.permissions.as_deref().filter(|p| !p.is_empty()).unwrap_or("rwm");
        grant(spec, &Device { host: &host, path: &node.path, permissions })?;
    }
    for mount in &edits.mounts {
        let kind = mount.r#type.as_deref().filter(|t| !t.is_empty()).unwrap_or("bind");
        let mut options = mount.options.clone();
        if options.is_empty() {
            options = vec!["rbind".into(), "ro".into()];
        }
        list(&mut spec["mounts"]).push(json!({"destination": mount.container_path, "type": kind,
            "source": mount.host_path, "options": options}));
    }
    for hook in &edits.hooks {
        let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(timeout) = hook.timeout {
            value["timeout"] = json!(timeout);
        }
        let known =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !known.contains(&hook.hook_name.as_str()) {
            return wrong(format!("CDI: there is no hook {:?}", hook.hook_name));
        }
        list(&mut spec["hooks"][&hook.hook_name]).push(value);
    }
    list(&mut spec["process"]["user"]["additionalGids"])
        .extend(edits.additional_gids.iter().map(|g| json!(g)));
    Ok(())
}
