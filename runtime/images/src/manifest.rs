//! Reading manifests: which entry of an index, and where the component is.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

use crate::Error;

/// The layer of the CNCF wasm artifact layout.
pub const WASM_LAYER: &str = "application/wasm";
/// The configuration of the CNCF wasm artifact layout.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";

/// What older tools called a layer with a component in it.
const LEGACY_LAYERS: [&str; 3] = [
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];

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

/// The wasm entry of an index: `wasi/wasm` first, then any operating system on `wasm`.
pub fn choose<'a>(image: &str, index: &'a ImageIndex) -> Result<&'a Descriptor, Error> {
    let is = |descriptor: &Descriptor, os: Option<&str>| {
        descriptor.platform().as_ref().is_some_and(|p| {
            let arch = p.architecture().to_string();
            arch.starts_with("wasm") && os.is_none_or(|os| p.os().to_string().starts_with(os))
        })
    };
    let entries = index.manifests();
    let found = entries
        .iter()
        .find(|d| is(d, Some("wasi")))
        .or_else(|| entries.iter().find(|d| is(d, None)))
        // One entry that says no platform can only be meant for everyone.
        .or_else(|| entries.first().filter(|d| entries.len() == 1 && d.platform().is_none()));
    found.ok_or_else(|| {
        let platforms: Vec<String> = entries
            .iter()
            .take(16)
            .filter_map(|d| d.platform().as_ref().map(|p| format!("{}/{}", p.os(), p.architecture())))
            .collect();
        Error::Unsupported {
            image: image.to_owned(),
            reason: format!(
                "has no wasm component: its index offers only {}; Linux containers are not supported yet",
                if platforms.is_empty() { "entries without a platform".into() } else { platforms.join(", ") }
            ),
        }
    })
}

/// The one layer that is a component.
pub fn wasm_layer<'a>(image: &str, manifest: &'a ImageManifest) -> Result<&'a Descriptor, Error> {
    let unsupported = |reason: String| Error::Unsupported { image: image.to_owned(), reason };
    let mut wasm = manifest.layers().iter().filter(|l| {
        let kind = l.media_type().to_string();
        kind == WASM_LAYER || LEGACY_LAYERS.contains(&kind.as_str())
    });
    match (wasm.next(), wasm.next()) {
        (Some(layer), None) => Ok(layer),
        (Some(_), Some(_)) => {
            Err(unsupported("has more than one wasm layer: it has to be composed into one component".into()))
        }
        (None, _) => {
            let config = manifest.config().media_type();
            let tar = manifest.layers().iter().any(|l| l.media_type().to_string().contains("tar"));
            if tar || matches!(config, MediaType::ImageConfig) {
                return Err(unsupported(
                    "is a Linux container image, which is not supported yet: it has no wasm component".into(),
                ));
            }
            let kinds: Vec<String> =
                manifest.layers().iter().take(8).map(|l| l.media_type().to_string()).collect();
            Err(unsupported(format!(
                "has no wasm component: its layers are [{}], none is {WASM_LAYER}",
                kinds.join(", ")
            )))
        }
    }
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
    fn an_index_prefers_wasi() {
        let all = [
            entry(Some("linux"), "amd64", "a"),
            entry(Some("js"), "wasm", "b"),
            entry(Some("wasip1"), "wasm", "c"),
        ];
        assert!(choose("x", &index(&all)).unwrap().digest().to_string().ends_with('c'));
        assert!(choose("x", &index(&all[..2])).unwrap().digest().to_string().ends_with('b'));
        let error = choose("x", &index(&all[..1])).unwrap_err().to_string();
        assert!(error.contains("linux/amd64") && error.contains("not supported yet"), "{error}");
        assert!(choose("x", &index(&[entry(None, "", "d")])).is_ok());
    }

    #[test]
    fn only_a_single_wasm_layer_will_do() {
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
        assert!(wasm_layer("x", &manifest(WASM_CONFIG, &[WASM_LAYER])).is_ok());
        for (config, layers, words) in [
            (WASM_CONFIG, vec![WASM_LAYER, WASM_LAYER], "more than one"),
            (
                "application/vnd.oci.image.config.v1+json",
                vec!["application/vnd.oci.image.layer.v1.tar+gzip"],
                "Linux",
            ),
            ("application/vnd.cncf.helm.config.v1+json", vec!["text/plain"], "text/plain"),
            (WASM_CONFIG, vec![], "no wasm component"),
        ] {
            let error = wasm_layer("x", &manifest(config, &layers)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for bytes in ["", "{}", "[]", r#"{"schemaVersion":1}"#, r#"{"layers":3}"#, r#"{"manifests":{}}"#] {
            assert!(matches!(parse("x", bytes.as_bytes()), Err(Error::Unsupported { .. })), "{bytes}");
        }
    }
}
