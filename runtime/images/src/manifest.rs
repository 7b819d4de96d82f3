//! Reading manifests: which entry of an index, and where the component is.

use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

use crate::Error;

/// The layer of the CNCF wasm artifact layout.
pub const WASM_LAYER: &str = "application/wasm";
/// The configuration of the CNCF wasm artifact layout.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// On a wasm layer: it is no part of the program, but a command that can be run beside it under this name.
pub const COMMAND: &str = "coracle.dev/command";
/// The most commands of an image.
const MAX_COMMANDS: usize = 16;

/// What older tools called a layer with a component in it.
const LEGACY_LAYERS: [&str; 3] = [
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

/// The configuration of a Linux image as Docker calls it.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// The most layers of a Linux image: overlayfs takes no more in one mount.
const MAX_LAYERS: usize = 128;

/// A manifest, told from its bytes.
#[derive(Debug)]
pub enum Document {
    Index(Box<ImageIndex>),
    Image(Box<ImageManifest>),
}

/// Reads a manifest or an index.
pub fn parse(image: &str, bytes: &[u8]) -> Result<Document, Error> {
    let unsupported = |reason: String| Error::Unsupported { image: image.to_owned(), reason };
    let value: serde_json::Value = serde_json::from_slice(bytes)
        .map_err(|e| unsupported(format!("has a manifest that is not JSON: {e}")))?;
    if value.get("manifests").is_some() {
        serde_json::from_value(value)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(|e| unsupported(format!("has an index that cannot be read: {e}")))
    } else if value.get("layers").is_some() {
        serde_json::from_value(value)
            .map(|image| Document::Image(Box::new(image)))
            .map_err(|e| unsupported(format!("has a manifest that cannot be read: {e}")))
    } else {
        let version = value.get("schemaVersion").and_then(serde_json::Value::as_u64);
        Err(unsupported(match version {
            Some(1) => "has a manifest of schema version 1, which is no longer supported".to_owned(),
            _ => "has a manifest with neither layers nor manifests".to_owned(),
        }))
    }
}

/// Which of the platforms of an index is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// A wasm component; a Linux image where there is none.
    #[default]
    WasmFirst,
    /// A Linux image, even where there is a component.
    Linux,
}

/// What an image holds.
#[derive(Debug)]
pub enum Content<'a> {
    /// One component, and others beside it by the names under which they are run.
    Wasm(&'a Descriptor, BTreeMap<String, &'a Descriptor>),
    /// The layers of a root filesystem, lowest first.
    Linux(&'a [Descriptor]),
}

/// The architecture of this machine in the words of the OCI.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The entry of an index that runs here: `wasi/wasm`, any operating system on `wasm`, or Linux on this architecture.
pub fn choose<'a>(image: &str, index: &'a ImageIndex, wanted: Wanted) -> Result<&'a Descriptor, Error> {
    let is = |descriptor: &Descriptor, os: Option<&str>, arch: &str| {
        descriptor.platform().as_ref().is_some_and(|p| {
            p.architecture().to_string().starts_with(arch)
                && os.is_none_or(|os| p.os().to_string().starts_with(os))
        })
    };
    let entries = index.manifests();
    let find = |os: Option<&str>, arch: &str| entries.iter().find(|d| is(d, os, arch));
    let linux = || find(Some("linux"), architecture());
    let found = match wanted {
        Wanted::WasmFirst => find(Some("wasi"), "wasm").or_else(|| find(None, "wasm")).or_else(linux),
        Wanted::Linux => linux(),
    };
    // One entry that says no platform can only be meant for everyone.
    let found = found.or_else(|| entries.first().filter(|d| entries.len() == 1 && d.platform().is_none()));
    found.ok_or_else(|| {
        let platforms: Vec<String> = entries
            .iter()
            .take(16)
            .filter_map(|d| d.platform().as_ref().map(|p| format!("{}/{}", p.os(), p.architecture())))
            .collect();
        let offered =
            if platforms.is_empty() { "entries without a platform".into() } else { platforms.join(", ") };
        let missing = match wanted {
            Wanted::WasmFirst => format!("neither a wasm component nor linux/{}", architecture()),
            Wanted::Linux => format!("no linux/{}", architecture()),
        };
        Error::Unsupported {
            image: image.to_owned(),
            reason: format!("has {missing}: its index offers only {offered}"),
        }
    })
}

/// The component of an image, or its layers.
pub fn content<'a>(image: &str, manifest: &'a ImageManifest) -> Result<Content<'a>, Error> {
    let unsupported = |reason: String| Error::Unsupported { image: image.to_owned(), reason };
    let wasm = manifest.layers().iter().filter(|l| {
        let kind = l.media_type().to_string();
        kind == WASM_LAYER || LEGACY_LAYERS.contains(&kind.as_str())
    });
    let command = |layer: &Descriptor| layer.annotations().as_ref().and_then(|a| a.get(COMMAND).cloned());
    let (commands, programs): (Vec<_>, Vec<_>) = wasm.partition(|layer| command(layer).is_some());
    match programs.as_slice() {
        [layer] => {
            let named = commands.iter().filter_map(|layer| command(layer).map(|name| (name, *layer)));
            let named: BTreeMap<_, _> = named.collect();
            if named.len() != commands.len() || named.len() > MAX_COMMANDS || named.contains_key("") {
                let words = format!(
                    "has commands ({COMMAND}) that share a name or have none, or more than {MAX_COMMANDS}"
                );
                return Err(unsupported(words));
            }
            return Ok(Content::Wasm(layer, named));
        }
        [] => {}
        _ => {
            return Err(unsupported(format!(
                "has more than one wasm layer: it has to be composed into one component, or the others be marked as \
                 commands ({COMMAND})"
            )));
        }
    }
    let config = manifest.config().media_type();
    let layers = manifest.layers();
    let is_tar = |l: &Descriptor| l.media_type().to_string().contains("tar");
    if matches!(config, MediaType::ImageConfig) || config.to_string() == DOCKER_CONFIG {
        if let Some(other) = layers.iter().find(|l| !is_tar(l)) {
            return Err(unsupported(format!("has a layer of type {}", other.media_type())));
        }
        if layers.len() > MAX_LAYERS {
            return Err(unsupported(format!("has {} layers; {MAX_LAYERS} is the most", layers.len())));
        }
        return Ok(Content::Linux(layers));
    }
    let kinds: Vec<String> = layers.iter().take(8).map(|l| l.media_type().to_string()).collect();
    Err(unsupported(format!(
        "has no wasm component: its layers are [{}], none is {WASM_LAYER}",
        kinds.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(os: Option<&str>, arch: &str, fill: &str) -> serde_json::Value {
        let mut entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
            "digest": format!("sha256:{}", fill.repeat(64))});
        if let Some(os) = os {
            entry["platform"] = json!({"os": os, "architecture": arch});
        }
        entry
    }

    fn index(entries: &[serde_json::Value]) -> ImageIndex {
        let bytes = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match parse("x", bytes.as_bytes()).unwrap() {
            Document::Index(index) => *index,
            Document::Image(_) => panic!("an index was read as an image"),
        }
    }

    #[test]
    fn an_index_is_chosen_from() {
        let all = [
            entry(Some("linux"), architecture(), "a"),
            entry(Some("js"), "wasm", "b"),
            entry(Some("wasip1"), "wasm", "c"),
        ];
        let chosen = |entries: &[serde_json::Value], wanted| {
            choose("x", &index(entries), wanted).map(|d| d.digest().to_string().chars().last().unwrap_or(' '))
        };
        assert_eq!(chosen(&all, Wanted::WasmFirst).unwrap(), 'c');
        assert_eq!(chosen(&all[..2], Wanted::WasmFirst).unwrap(), 'b');
        assert_eq!(chosen(&all[..1], Wanted::WasmFirst).unwrap(), 'a');
        assert_eq!(chosen(&all, Wanted::Linux).unwrap(), 'a');
        let error = chosen(&all[1..], Wanted::Linux).unwrap_err().to_string();
        assert!(error.contains("no linux/") && error.contains("wasip1/wasm"), "{error}");
        let other = [entry(Some("linux"), "s390x", "e")];
        assert!(chosen(&other, Wanted::WasmFirst).unwrap_err().to_string().contains("neither"));
        assert!(chosen(&[entry(None, "", "d")], Wanted::WasmFirst).is_ok());
    }

    #[test]
    fn what_an_image_holds() {
        let manifest = |config: &str, layers: &[&str]| {
            let layers: Vec<_> = layers
                .iter()
                .map(|m| json!({"mediaType": m, "size": 1, "digest": format!("sha256:{}", "e".repeat(64))}))
                .collect();
            let bytes = json!({"schemaVersion": 2, "layers": layers, "config":
                {"mediaType": config, "size": 2, "digest": format!("sha256:{}", "f".repeat(64))}})
            .to_string();
            match parse("x", bytes.as_bytes()).unwrap() {
                Document::Image(image) => *image,
                Document::Index(_) => panic!("an image was read as an index"),
            }
        };
        assert!(matches!(content("x", &manifest(WASM_CONFIG, &[WASM_LAYER])), Ok(Content::Wasm(_, _))));
        let linux = manifest(
            "application/vnd.oci.image.config.v1+json",
            &["application/vnd.oci.image.layer.v1.tar+gzip"],
        );
        assert!(matches!(content("x", &linux), Ok(Content::Linux(layers)) if layers.len() == 1));
        for (config, layers, words) in [
            (WASM_CONFIG, vec![WASM_LAYER, WASM_LAYER], "more than one"),
            ("application/vnd.oci.image.config.v1+json", vec!["text/plain"], "text/plain"),
            ("application/vnd.cncf.helm.config.v1+json", vec!["text/plain"], "text/plain"),
            (WASM_CONFIG, vec![], "no wasm component"),
        ] {
            let error = content("x", &manifest(config, &layers)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for bytes in ["", "{}", "[]", r#"{"schemaVersion":1}"#, r#"{"layers":3}"#, r#"{"manifests":{}}"#] {
            assert!(matches!(parse("x", bytes.as_bytes()), Err(Error::Unsupported { .. })), "{bytes}");
        }
    }
}
