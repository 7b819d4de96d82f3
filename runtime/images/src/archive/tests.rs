//! What archives lead to, good ones and others.

use super::*;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn unpacked(archive: &[u8]) -> Result<(tempfile::TempDir, Vec<Named>), String> {
    let dir = tempfile::tempdir().unwrap();
    let images = unpack("x.tar", archive, dir.path()).map_err(|e| e.to_string())?;
    Ok((dir, images))
}

/// An archive as `docker save` writes it, with this layer for that `diff_id`.
fn docker(layer: &[u8], diff_id: &str) -> Vec<u8> {
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).to_string();
    let name = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let manifest = json!([{"Config": name, "RepoTags": ["app:v1", "app:v2"], "Layers": ["a/layer.tar"]}]);
    tar(&[
        (&name, config.as_bytes()),
        ("a/layer.tar", layer),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

#[test]
fn a_docker_archive_becomes_a_layout() {
    let plain = tar(&[("bin/true", b"#!")]);
    for layer in [plain.clone(), gzip(&plain)] {
        for archive in [docker(&layer, &digest(&plain)), gzip(&docker(&layer, &digest(&plain)))] {
            let (dir, images) = unpacked(&archive).unwrap();
            let names: Vec<_> = images.iter().map(|i| i.name.as_deref()).collect();
            assert_eq!(names, [Some("app:v1"), Some("app:v2")]);
            let blob = |entry: &Value| {
                let digest = entry["digest"].as_str().unwrap().trim_start_matches("sha256:");
                fs::read(dir.path().join("blobs/sha256").join(digest)).unwrap()
            };
            let manifest: Value = serde_json::from_slice(&blob(&images[0].entry)).unwrap();
            assert_eq!(blob(&manifest["layers"][0]), layer);
            assert!(!dir.path().join("incoming").exists());
            // And back: what is packed can be unpacked, with the same images.
            let mut packed = Vec::new();
            pack(dir.path(), &mut packed).unwrap();
            let (_again, same) = unpacked(&packed).unwrap();
            assert_eq!(same[0].entry, images[0].entry);
        }
    }
    let error = unpacked(&docker(&plain, &digest(b"other"))).unwrap_err();
    assert!(error.contains("a/layer.tar") && error.contains(&digest(&plain)), "{error}");
}

#[test]
fn a_layout_is_checked_by_every_digest() {
    let (config, layer) = (b"{}".as_slice(), b"component".as_slice());
    let manifest = |layer: &[u8]| {
        json!({"schemaVersion": 2, "config": {"mediaType": "c", "digest": digest(config), "size": 2},
            "layers": [{"mediaType": "application/wasm", "digest": digest(layer), "size": layer.len()}]})
        .to_string()
    };
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", hex::encode(Sha256::digest(bytes)));
    let archive = |manifest: &str, layer: &[u8], entries: &[Value]| {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        tar(&[
            ("./index.json", index.as_bytes()),
            (&path(manifest.as_bytes()), manifest.as_bytes()),
            (&path(config), config),
            (&path(b"component"), layer),
        ])
    };
    let good = manifest(layer);
    let entry = |bytes: &[u8]| {
        json!({"mediaType": OCI_MANIFEST, "digest": digest(bytes), "size": bytes.len(),
        "annotations": {"org.opencontainers.image.ref.name": "v1"}})
    };
    let (_dir, images) = unpacked(&archive(&good, layer, &[entry(good.as_bytes())])).unwrap();
    assert_eq!(images[0].name.as_deref(), Some("v1"));
    for (archive, words) in [
        (archive(&good, b"tampered!", &[entry(good.as_bytes())]), "has content with digest"),
        (archive(&manifest(b"other"), layer, &[entry(manifest(b"other").as_bytes())]), "lacks"),
        (archive(&good, layer, &[json!({"digest": "sha256:../x", "size": 1})]), "the digest"),
        (archive(&good, layer, &[]), "no image"),
        (archive(&good, layer, &[entry(b"absent")]), "lacks an image"),
        (tar(&[("hello", b"x")]), "neither an OCI image layout"),
        (b"no tar at all".to_vec(), "no archive"),
    ] {
        let error = unpacked(&archive).unwrap_err();
        assert!(error.contains(words) && error.contains("x.tar"), "{words}: {error}");
    }
}

#[test]
fn of_an_index_what_is_there_counts() {
    let config = b"{}".as_slice();
    let manifest =
        json!({"config": {"mediaType": "c", "digest": digest(config), "size": 2}, "layers": []}).to_string();
    let entry =
        |bytes: &[u8]| json!({"mediaType": OCI_MANIFEST, "digest": digest(bytes), "size": bytes.len()});
    let inner = json!({"manifests": [entry(b"absent"), entry(manifest.as_bytes())]}).to_string();
    let top = json!({"mediaType": OCI_INDEX, "digest": digest(inner.as_bytes()), "size": inner.len()});
    let index = json!({"manifests": [top]}).to_string();
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", hex::encode(Sha256::digest(bytes)));
    let archive = tar(&[
        ("index.json", index.as_bytes()),
        (&path(inner.as_bytes()), inner.as_bytes()),
        (&path(manifest.as_bytes()), manifest.as_bytes()),
        (&path(config), config),
    ]);
    let (_dir, images) = unpacked(&archive).unwrap();
    assert_eq!(images[0].entry, entry(manifest.as_bytes()));
}

#[test]
fn an_index_inside_an_index_is_refused() {
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", hex::encode(Sha256::digest(bytes)));
    let entry = |bytes: &[u8]| json!({"mediaType": OCI_INDEX, "digest": digest(bytes), "size": bytes.len()});
    let mut documents = vec![json!({"manifests": []}).to_string()];
    for depth in 0..2 {
        documents.push(json!({"manifests": [entry(documents[depth].as_bytes())]}).to_string());
    }
    let index = json!({"manifests": [entry(documents[2].as_bytes())]}).to_string();
    let paths: Vec<String> = documents.iter().map(|d| path(d.as_bytes())).collect();
    let files = paths.iter().map(String::as_str).zip(documents.iter().map(String::as_bytes));
    let files: Vec<_> = files.chain([("index.json", index.as_bytes())]).collect();
    let error = unpacked(&tar(&files)).unwrap_err();
    assert!(error.contains("an index inside an index"), "{error}");
}

#[test]
fn a_layer_may_be_called_anything() {
    let (config, layer) = (b"{}".as_slice(), b"no JSON".as_slice());
    let entry =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest = json!({"config": entry("application/vnd.x.manifest.config", config),
        "layers": [entry("application/vnd.x.manifest+yaml", layer)]})
    .to_string();
    let index = json!({"manifests": [entry(OCI_MANIFEST, manifest.as_bytes())]}).to_string();
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", hex::encode(Sha256::digest(bytes)));
    let files = [
        ("index.json", index.as_bytes()),
        (&path(manifest.as_bytes()), manifest.as_bytes()),
        (&path(config), config),
        (&path(layer), layer),
    ];
    assert_eq!(unpacked(&tar(&files)).unwrap().1.len(), 1);
}

#[test]
fn no_image_of_many_is_left_out_in_silence() {
    let config = json!({"rootfs": {"diff_ids": []}}).to_string();
    let archive = |count: usize| {
        let images: Vec<Value> = (0..count)
            .map(|n| json!({"Config": "c", "RepoTags": [format!("a:{n}")], "Layers": []}))
            .collect();
        tar(&[("c", config.as_bytes()), ("manifest.json", Value::from(images).to_string().as_bytes())])
    };
    assert_eq!(unpacked(&archive(MAX_MANIFESTS)).unwrap().1.len(), MAX_MANIFESTS);
    let error = unpacked(&archive(MAX_MANIFESTS + 1)).unwrap_err();
    assert!(error.contains("more than 1024 images"), "{error}");
}

#[test]
fn a_layer_of_several_images_is_unpacked_once() {
    let plain = tar(&[("bin/true", b"#!")]);
    let packed = gzip(&plain);
    let config = json!({"rootfs": {"diff_ids": vec![digest(&plain); 3]}}).to_string();
    let archive = tar(&[
        ("c", config.as_bytes()),
        ("l", &packed),
        ("manifest.json", json!([{"Config": "c", "Layers": ["l", "l", "l"]}]).to_string().as_bytes()),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let mut files = Files { called: "x.tar".into(), dir: dir.path().to_owned(), found: HashMap::new() };
    for sub in ["incoming", "blobs/sha256"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    files.read(archive.as_slice()).unwrap();
    let image = json!({"Config": "c", "Layers": ["l", "l", "l"]});
    let mut known = Layers { plain: HashMap::new(), left: plain.len() as u64 * 2 };
    files.docker_image(&image, &mut known).unwrap();
    let mut known = Layers { plain: HashMap::new(), left: plain.len() as u64 };
    let error = files.docker_image(&image, &mut known).unwrap_err().to_string();
    assert!(error.contains("has layers of more than"), "{error}");
}

#[test]
fn docker_is_told_names_with_tags() {
    let digest = digest(b"x");
    let blob = |kind: &str| json!({"mediaType": kind, "digest": digest, "size": 1});
    let manifest = json!({"config": blob("c"), "layers": [blob(OCI_LAYER)]});
    for (name, tags) in [
        ("shop", vec!["shop:latest"]),
        ("team/shop:v1", vec!["team/shop:v1"]),
        ("ghcr.io/shop:v1", vec!["ghcr.io/shop:v1"]),
        (&format!("shop@{digest}"), vec![]),
    ] {
        let image = docker_manifest(&name.parse().unwrap(), &manifest).unwrap();
        assert_eq!(image[0]["RepoTags"], json!(tags), "{name}");
    }
}
