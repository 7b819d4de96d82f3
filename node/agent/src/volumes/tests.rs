use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::objects::Kind;

fn pod(volumes: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "x"}},
        "spec": {"containers": [{"name": "a"}], "volumes": volumes},
    }))
    .expect("a Pod")
}

fn config(pairs: &[(&str, &str)]) -> Sources {
    let keys = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
    HashMap::from([((Kind::ConfigMap, "config".to_owned()), Some(Arc::new(keys)))])
}

fn dir() -> (tempfile::TempDir, PodDir) {
    let root = tempfile::tempdir().expect("a directory");
    let dir = PodDir::new(root.path(), "u").expect("a pod directory");
    (root, dir)
}

#[test]
fn a_config_map_is_written_and_updated() {
    let (_root, dir) = dir();
    let pod = pod(json!([{"name": "v", "configMap": {"name": "config", "defaultMode": 0o440}}]));
    let facts = Facts::default();
    assert!(set_up(&pod, &dir, &config(&[("a", "1"), ("b", "2")]), &facts).expect("set up"));
    let path = dir.volume(&volumes(&pod)[0]).expect("a path");
    assert_eq!(std::fs::read_to_string(path.join("a")).expect("a"), "1");
    let mode = std::fs::metadata(path.join("a")).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o440);
    assert!(!set_up(&pod, &dir, &config(&[("a", "1"), ("b", "2")]), &facts).expect("no change"));
    assert!(set_up(&pod, &dir, &config(&[("a", "3")]), &facts).expect("an update"));
    assert_eq!(std::fs::read_to_string(path.join("a")).expect("a"), "3");
    assert!(!path.join("b").exists());
    let versions = std::fs::read_dir(&path).expect("entries").filter_map(Result::ok);
    assert_eq!(
        versions
            .filter(|e| e.file_name().to_string_lossy().starts_with("..2")
                || e.path().is_dir() && !e.path().is_symlink())
            .count(),
        1
    );
    dir.remove().expect("removed");
    assert!(!dir.path.exists());
}

#[test]
fn huge_pages_are_of_the_size_that_containers_ask_for() {
    let (_root, dir) = dir();
    let mut pod = pod(json!([{"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}}]));
    assert!(unsupported(&pod).is_none());
    let set_up = |pod: &Pod| set_up(pod, &dir, &HashMap::new(), &Facts::default()).map_err(|e| e.to_string());
    let none = "MountVolume.SetUp failed for volume \"v\" : hugePages storage requested, but there is no resource request \
        for huge pages.";
    assert_eq!(set_up(&pod), Err(none.into()));
    pod.spec.as_mut().expect("a spec").containers[0].resources =
        serde_json::from_value(json!({"requests": {"hugepages-2Mi": "4Mi"}})).expect("resources");
    let mounted = set_up(&pod);
    let mounts = mounting::below(&dir.path).expect("mounts");
    match &mounted {
        Ok(_) => assert_eq!(mounts, [dir.volume(&volumes(&pod)[0]).expect("a path")]),
        // Tried again, it still fails: no plain directory stands in.
        Err(why) => assert!(why.contains("mount huge pages at") && set_up(&pod).is_err(), "{why}"),
    }
    dir.remove().expect("removed");
    assert!(mounting::below(&dir.path).expect("mounts").is_empty());
}

#[test]
fn files_of_a_group_are_written_once_and_readable_from_their_first_moment() {
    use std::os::unix::fs::MetadataExt;
    let (_root, dir) = dir();
    let own = nix::unistd::getegid().as_raw();
    // Only root can give.
    let (gid, file, folder) =
        if nix::unistd::geteuid().is_root() { (4242, 0o440, 0o2050) } else { (own, 0o400, 0o050) };
    let mut pod = pod(json!([{"name": "v", "secret": {"secretName": "config", "defaultMode": 0o400}}]));
    pod.spec.as_mut().expect("a spec").security_context =
        serde_json::from_value(json!({"fsGroup": 4242})).expect("a context");
    let secret = |text: &str| {
        let keys = std::collections::BTreeMap::from([("a".to_owned(), text.as_bytes().to_vec())]);
        HashMap::from([((Kind::Secret, "config".to_owned()), Some(Arc::new(keys)))])
    };
    let set_up = |text| set_up(&pod, &dir, &secret(text), &Facts::default()).expect("set up");
    let path = dir.volume(&volumes(&pod)[0]).expect("a path");
    assert!(set_up("1"));
    let data = || std::fs::read_link(path.join("..data")).expect("a link");
    let (first, seen) = (data(), std::fs::metadata(path.join("a")).expect("a"));
    assert_eq!((seen.gid(), seen.mode() & 0o777), (gid, file));
    assert!(!set_up("1"), "nothing is to be written");
    assert_eq!(data(), first);
    assert!(set_up("2"));
    let above = std::fs::metadata(path.join("..data/.")).expect("a directory");
    assert_eq!((above.gid(), above.mode() & 0o2070), (gid, folder));
}

#[test]
fn a_pod_that_has_ended_keeps_its_last_words_and_no_volumes() {
    let (_root, dir) = dir();
    let pod = pod(json!([{"name": "v", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]));
    let words = dir.path.join("containers/a/0/termination-log");
    std::fs::create_dir_all(words.parent().expect("a parent")).expect("a directory");
    std::fs::write(&words, "last words").expect("a file");
    set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    let paths: Vec<PathBuf> = volumes(&pod).iter().map(|v| dir.volume(v).expect("a path")).collect();
    paths.iter().for_each(|path| std::fs::write(path.join("file"), "x").expect("written"));
    dir.remove_volumes().expect("removed");
    assert!(paths.iter().all(|path| !path.exists()));
    assert!(mounting::below(&dir.path).expect("mounts").is_empty());
    assert_eq!(std::fs::read_to_string(&words).expect("the words"), "last words");
    dir.remove_volumes().expect("nothing is left to remove");
    dir.remove().expect("removed");
    assert!(!dir.path.exists());
}

#[test]
fn projected_and_downward() {
    let (_root, dir) = dir();
    let pod = pod(json!([{"name": "v", "projected": {"sources": [
        {"configMap": {"name": "config", "items": [{"key": "a", "path": "deep/er/a", "mode": 0o400}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]}}]));
    set_up(&pod, &dir, &config(&[("a", "1")]), &Facts::default()).expect("set up");
    let path = dir.volume(&volumes(&pod)[0]).expect("a path");
    assert_eq!(std::fs::read_to_string(path.join("deep/er/a")).expect("a"), "1");
    assert_eq!(std::fs::read_to_string(path.join("labels")).expect("labels"), "app=\"x\"");
}

#[test]
fn nothing_leaves_the_volume() {
    let (_root, dir) = dir();
    for path in ["../x", "/x", "a/../../x", "..data", ""] {
        let items = json!([{"key": "a", "path": path}]);
        let pod = pod(json!([{"name": "v", "configMap": {"name": "config", "items": items}}]));
        let error = set_up(&pod, &dir, &config(&[("a", "1")]), &Facts::default()).expect_err(path);
        assert!(error.to_string().contains("must stay in the volume"), "{error}");
    }
    assert!(PodDir::new(Path::new("/"), "..").is_none());
    assert!(PodDir::new(Path::new("/"), "a/b").is_none());
}

#[test]
fn memory_is_let_go_and_comes_back() {
    let (root, dir) = dir();
    let pod = pod(json!([{"name": "v", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]));
    let all = || set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    all();
    let files: Vec<_> = volumes(&pod).iter().map(|v| dir.volume(v).expect("a path").join("file")).collect();
    files.iter().for_each(|file| std::fs::write(file, "kept").expect("written"));
    // Another pod's cannot be let go of, and one has containers that run.
    std::fs::create_dir_all(root.path().join("pods/bad")).expect("a directory");
    std::fs::write(root.path().join("pods/bad/volume-subpaths"), "").expect("a file");
    let runs = BTreeSet::from(["u".to_owned()]);
    let let_go = |outliving: &BTreeSet<String>| let_go(root.path(), outliving).map_err(|e| e.to_string());
    let why = let_go(&runs).expect_err("something stays");
    assert!(why.starts_with("pod bad: ") && files[0].exists(), "{why}");
    assert_eq!(let_go(&BTreeSet::new()), Err(why));
    std::fs::remove_dir_all(root.path().join("pods/bad")).expect("removed");
    assert_eq!(let_go(&BTreeSet::new()), Ok(()), "nothing is left to let go");
    assert_eq!(files.iter().map(|file| file.exists()).collect::<Vec<_>>(), [false, true]);
    assert!(super::mounting::below(root.path()).expect("mounts").is_empty());
    all();
    std::fs::write(&files[0], "again").expect("written");
    assert_eq!(
        super::mounting::is_mounted(files[0].parent().expect("a volume")),
        nix::unistd::geteuid().is_root()
    );
    dir.remove().expect("removed");
}

#[test]
fn an_empty_dir_is_whole_and_of_its_group_when_it_is_there() {
    use std::os::unix::fs::MetadataExt;
    let (_root, dir) = dir();
    let mut pod =
        pod(json!([{"name": "d", "emptyDir": {}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]));
    pod.spec.as_mut().expect("a spec").security_context =
        serde_json::from_value(json!({"fsGroup": 4242})).expect("a context");
    let paths: Vec<PathBuf> = volumes(&pod).iter().map(|v| dir.volume(v).expect("a path")).collect();
    // An agent ended while it made this one.
    let half = paths[0].with_file_name(".d.half");
    std::fs::create_dir_all(&half).expect("a directory");
    std::fs::set_permissions(&half, PermissionsExt::from_mode(0o700)).expect("a mode");
    let set_up = || set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    set_up();
    let is_root = nix::unistd::geteuid().is_root();
    for path in &paths {
        let found = path.metadata().expect("a directory");
        assert_eq!(found.mode() & 0o777, 0o777);
        assert!(!is_root || (found.gid(), found.mode() & 0o2000) == (4242, 0o2000), "{}", path.display());
    }
    assert!(!half.exists());
    // What the pod makes of it stays, and nothing is mounted twice.
    std::fs::set_permissions(&paths[0], PermissionsExt::from_mode(0o700)).expect("a mode");
    set_up();
    assert_eq!(paths[0].metadata().expect("a directory").mode() & 0o777, 0o700);
    assert_eq!(mounting::below(&dir.path).expect("mounts").len(), usize::from(is_root));
    dir.remove().expect("removed");
}

#[test]
fn what_is_missing_is_named() {
    let (_root, dir) = dir();
    let table = [
        (
            json!([{"name": "v", "configMap": {"name": "gone"}}]),
            "MountVolume.SetUp failed for volume \"v\" : configmap \"gone\" not found",
        ),
        (
            json!([{"name": "v", "iscsi": {"targetPortal": "t", "iqn": "i", "lun": 0}}]),
            "volume \"v\": volumes of kind iscsi are not supported by this node",
        ),
        (
            json!([{"name": "v", "configMap": {"name": "config", "items": [{"key": "k", "path": "k"}]}}]),
            "MountVolume.SetUp failed for volume \"v\" : configmap references non-existent config key: k",
        ),
    ];
    for (volumes, message) in table {
        let error = set_up(&pod(volumes), &dir, &config(&[]), &Facts::default()).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
    let optional = pod(json!([{"name": "v", "secret": {"secretName": "gone", "optional": true}}]));
    set_up(&optional, &dir, &config(&[]), &Facts::default()).expect("optional");
}

#[test]
fn sub_paths_stay_inside() {
    let (_root, dir) = dir();
    let mut pod = pod(json!([{"name": "v", "emptyDir": {}}]));
    set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    let volume = dir.volume(&volumes(&pod)[0]).expect("a path");
    std::os::unix::fs::symlink("/", volume.join("out")).expect("a link");
    for (sub_path, works) in [("in", true), ("../x", false), ("out", false), ("out/x", false)] {
        let mounts = json!([{"name": "v", "mountPath": "/m", "subPath": sub_path}]);
        let spec = pod.spec.as_mut().expect("a spec");
        spec.containers[0].volume_mounts = serde_json::from_value(mounts).expect("mounts");
        let container = spec.containers[0].clone();
        assert_eq!(container_mounts(&pod, &container, &dir, &[]).is_ok(), works, "{sub_path}");
    }
}

#[test]
fn a_host_path_is_what_its_type_says() {
    let (root, dir) = dir();
    let at = |name: &str| root.path().join(name).display().to_string();
    std::fs::create_dir(at("dir")).expect("a directory");
    std::fs::write(at("file"), "kept").expect("a file");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
    std::os::unix::fs::symlink(at("dir"), at("link")).expect("a link");
    let (null, table) = (
        "/dev/null".to_owned(),
        [
            ("", "nothing", None),
            ("Directory", "dir", None),
            ("Directory", "link", None),
            ("Directory", "file", Some("directory")),
            ("Directory", "nothing", Some("directory")),
            ("DirectoryOrCreate", "new/deep", None),
            ("DirectoryOrCreate", "file", Some("directory")),
            ("File", "file", None),
            ("File", "dir", Some("file")),
            ("File", "socket", Some("file")),
            ("FileOrCreate", "made", None),
            ("FileOrCreate", "file", None),
            ("FileOrCreate", "dir", Some("file")),
            ("Socket", "socket", None),
            ("Socket", "file", Some("socket file")),
            ("CharDevice", "null", None),
            ("CharDevice", "nothing", Some("character device")),
            ("BlockDevice", "null", Some("block device")),
        ],
    );
    for (kind, name, refused) in table {
        let path = if name == "null" { null.clone() } else { at(name) };
        let pod = pod(json!([{"name": "v", "hostPath": {"path": path, "type": kind}}]));
        let said = set_up(&pod, &dir, &Sources::new(), &Facts::default()).err().map(|e| e.to_string());
        let expected = refused.map(|what| {
            format!("MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {path} is not a {what}")
        });
        assert_eq!(said, expected, "{kind} {name}");
    }
    assert!(!Path::new(&at("nothing")).exists());
    let mode = |name: &str| std::fs::metadata(at(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode("new/deep"), mode("made")), (0o755, 0o644));
    assert_eq!(std::fs::read_to_string(at("file")).expect("the file"), "kept");
}

#[test]
fn a_sub_path_is_made_of_the_containers_variables() {
    let (_root, dir) = dir();
    let mut pod = pod(json!([{"name": "v", "emptyDir": {}}]));
    set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    let volume = dir.volume(&volumes(&pod)[0]).expect("a path");
    let env = [("POD", "p"), ("UP", "../x"), ("ROOT", "/x"), ("EMPTY", "")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    for (text, expected) in [
        ("$(POD)/logs", Ok("p/logs")),
        ("$$(POD)", Ok("$(POD)")),
        ("$(NO)/$(EMPTY)/$(POD)", Err("missing value for EMPTY, NO")),
        ("$(UP)", Err("unable to provision SubPath `../x`: must not contain '..'")),
        ("$(ROOT)", Err("error SubPath `/x` must not be an absolute path")),
    ] {
        let mounts = json!([{"name": "v", "mountPath": "/m", "subPathExpr": text}]);
        let spec = pod.spec.as_mut().expect("a spec");
        spec.containers[0].volume_mounts = serde_json::from_value(mounts).expect("mounts");
        let container = spec.containers[0].clone();
        let made = container_mounts(&pod, &container, &dir, &env);
        let made = made.map(|m| (m[0].host_path.clone(), m[0].sub_path.clone()));
        let expected = expected.map(|path| (volume.display().to_string(), path.to_owned()));
        let expected = expected.map_err(str::to_owned);
        assert_eq!(made, expected, "{text}");
    }
    assert!(volume.join("p/logs").is_dir());
    let mode = |path: &str| std::fs::metadata(volume.join(path)).expect(path).permissions().mode() & 0o777;
    assert_eq!((mode("p"), mode("p/logs")), (0o777, 0o777), "as open as the volume");
}

#[test]
fn mounts_are_seen_on_the_other_side_as_the_pod_asks() {
    use coracle_cri_api::v1::MountPropagation as P;
    let (_root, dir) = dir();
    let mut pod = pod(json!([{"name": "v", "emptyDir": {}}]));
    set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    let table = [
        (json!(null), false, Some(P::PropagationPrivate)),
        (json!("None"), false, Some(P::PropagationPrivate)),
        (json!("HostToContainer"), false, Some(P::PropagationHostToContainer)),
        (json!("Bidirectional"), true, Some(P::PropagationBidirectional)),
        (json!("Bidirectional"), false, None),
    ];
    for (asked, privileged, expected) in table {
        let container = json!({"name": "a", "securityContext": {"privileged": privileged},
            "volumeMounts": [{"name": "v", "mountPath": "/m", "mountPropagation": asked}]});
        let spec = pod.spec.as_mut().expect("a spec");
        spec.containers = vec![serde_json::from_value(container).expect("a container")];
        let container = spec.containers[0].clone();
        let made = container_mounts(&pod, &container, &dir, &[]);
        let made = made.and_then(|mounts| {
            let of = crate::pods::steps::config::Ingredients { mounts, ..Default::default() };
            crate::pods::steps::config::container(&pod, &container, of)
        });
        match expected {
            Some(expected) => assert_eq!(made.expect("a config").mounts[0].propagation(), expected),
            None => assert!(made.is_err_and(|why| why.contains("only to privileged containers"))),
        }
    }
}

#[test]
fn a_wasm_container_is_told_the_volume_and_the_place_in_it() {
    let (_root, dir) = dir();
    let mut pod =
        pod(json!([{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/./usr/./lib/"}}]));
    set_up(&pod, &dir, &Sources::new(), &Facts::default()).expect("set up");
    let mounts = json!([{"name": "v", "mountPath": "/a", "subPath": "./x/./y/"},
        {"name": "v", "mountPath": "/b", "subPath": "."}, {"name": "h", "mountPath": "/c"}]);
    let spec = pod.spec.as_mut().expect("a spec");
    spec.containers[0].volume_mounts = serde_json::from_value(mounts).expect("mounts");
    let container = spec.containers[0].clone();
    let mounts = container_mounts(&pod, &container, &dir, &[]).expect("mounts");
    let of = crate::pods::steps::config::Ingredients { mounts, ..Default::default() };
    let config = crate::pods::steps::config::container(&pod, &container, of).expect("a config");
    let told: Vec<_> = config.mounts.iter().map(|m| m.host_path.as_str()).collect();
    let volume = dir.volume(&volumes(&pod)[0]).expect("a path").display().to_string();
    assert_eq!(told, [format!("{volume}/./x/y").as_str(), volume.as_str(), "/usr/lib"]);
}
