//! Something of each kind is left behind on purpose, and told by its name; what is of pods that exist is not.

use std::fs::{create_dir_all, write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::*;
use crate::{eventually, slot::Slot};

const GONE: &str = "00000000-0000-4000-8000-000000000001";
const LIVES: &str = "00000000-0000-4000-8000-000000000002";

/// Ended with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn id(digit: &str) -> String {
    digit.repeat(64)
}

/// A node's folders with a pod that the API has (ids of 2 and 4) and one that it has not (1 and 3).
fn node(dir: &Path) -> (PathBuf, PathBuf) {
    let (root, state) = (dir.join("node"), dir.join("runtime"));
    for (pod, sandbox, container) in [(GONE, id("1"), id("3")), (LIVES, id("2"), id("4"))] {
        create_dir_all(root.join("pods").join(pod).join("volumes/v")).unwrap();
        create_dir_all(root.join("logs").join(format!("default_p_{pod}"))).unwrap();
        write(root.join("logs").join(format!("default_p_{pod}")).join("log"), "").unwrap();
        for folder in ["sandboxes", "containers"] {
            create_dir_all(state.join(folder)).unwrap();
        }
        create_dir_all(state.join("oci/pods").join(&sandbox)).unwrap();
        create_dir_all(state.join("oci/containers").join(&container)).unwrap();
        create_dir_all(state.join("isolated").join(&sandbox[..12])).unwrap();
        let record =
            json!({"id": sandbox, "config": {"metadata": {"uid": pod}}, "ip": "127.0.0.1", "host": 0});
        write(state.join("sandboxes").join(format!("{sandbox}.json")), record.to_string()).unwrap();
        let record = json!({"id": container, "sandboxId": sandbox});
        write(state.join("containers").join(format!("{container}.json")), record.to_string()).unwrap();
    }
    create_dir_all(state.join("further/7")).unwrap();
    (root, state)
}

fn follows(file: &Path) -> Ends {
    let mut tail = Command::new("tail");
    tail.arg("-f").arg(file).stdout(Stdio::null()).stdin(Stdio::null());
    Ends(tail.spawn().unwrap())
}

#[test]
fn what_is_left_of_a_pod_is_told_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (root, state) = node(&dir.path().canonicalize().unwrap());
    let slot = Slot::take().unwrap();
    let place = Place::new(root.clone(), state.clone(), Ranges::of(&slot), None).unwrap();
    let mut traces = Traces::new(dir.path()).unwrap();
    traces.add(place).unwrap();
    let log = |pod: &str| root.join("logs").join(format!("default_p_{pod}")).join("log");
    let (_one, _other) = (follows(&log(GONE)), follows(&log(LIVES)));
    let [gone, lives] = [9, 8].map(|n| Ipv4Addr::new(127, 76 + slot.number(), 0, n));
    let service = Ipv4Addr::new(127, 100 + slot.number(), 0, 9);
    let _listeners = [gone, lives, service].map(|ip| TcpListener::bind((ip, 8080)).unwrap());

    let pods =
        json!({"items": [{"metadata": {"uid": LIVES}, "status": {"podIPs": [{"ip": lives.to_string()}]}}]});
    let find = |services: &Value| {
        let (processes, mounts) =
            (process::naming(&traces.dir), vec![root.join("pods").join(GONE).join("volumes/v")]);
        let place = &traces.places[0];
        place.left(&place.known(&pods, services), &processes, &mounts).unwrap()
    };
    let has = |left: &[String], words: &[&str]| {
        let found = left.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{words:?} is not told: {left:#?}");
    };
    let mut left = Vec::new();
    eventually("the programs have opened their files", PATIENCE, || {
        left = find(&json!({"items": []}));
        Ok(left.iter().any(|line| line.contains("open file")))
    })
    .unwrap();
    for (what, name) in [
        ("file", format!("pods/{GONE}")),
        ("file", format!("logs/default_p_{GONE}")),
        ("file", format!("sandboxes/{}.json", id("1"))),
        ("file", format!("containers/{}.json", id("3"))),
        ("file", format!("oci/pods/{}", id("1"))),
        ("file", format!("oci/containers/{}", id("3"))),
        ("file", "isolated/111111111111".into()),
        ("file", "further/7".into()),
        ("mount", format!("pods/{GONE}/volumes/v")),
        ("argument", format!("default_p_{GONE}/log of process")),
        ("open file", format!("default_p_{GONE}/log of process")),
        ("listens", format!("{gone}:8080")),
        ("listens", format!("{service}:8080")),
    ] {
        has(&left, &[what, &name]);
    }
    assert_eq!(left.len(), 13, "{left:#?}");
    let services = json!({"items": [{"spec": {"clusterIPs": [service.to_string()]}}]});
    assert_eq!(find(&services).len(), 12);

    // Nothing of it may be there after the cluster.
    let after = traces.places[0].after(true).unwrap();
    for name in [&lives.to_string(), &service.to_string(), &id("2"), &id("4")] {
        has(&after, &[name]);
    }
    let error = settles_within(PAUSE, "of a test", || Ok(find(&services))).unwrap_err();
    assert!(error.is::<Left>() && format!("{error:#}").contains(GONE), "{error:#}");
}

/// Needs root, as Linux containers do.
#[test]
fn a_control_group_is_known_by_what_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let (root, state) = (dir.path().join("node"), dir.path().join("runtime"));
    create_dir_all(state.join("sandboxes")).unwrap();
    let ranges = Ranges::routed();
    let mut place = Place::new(root, state.clone(), ranges, None).unwrap();
    place.watch(&[]).unwrap();
    let sandbox = id("a");
    let record = state.join("sandboxes").join(format!("{sandbox}.json"));
    write(&record, "{}").unwrap();
    std::fs::remove_file(&record).unwrap();
    let tree = Path::new("/sys/fs/cgroup");
    let tree = if tree.join("pids").is_dir() { tree.join("pids") } else { tree.to_owned() };
    let group = tree.join("coracle").join(&sandbox);
    create_dir_all(&group).unwrap();
    let nothing = place.known(&Value::Null, &Value::Null);
    let left = place.left(&nothing, &[], &[]).unwrap();
    std::fs::remove_dir(&group).unwrap();
    assert_eq!(left, [format!("control group {}", group.display())]);
    assert!(place.left(&nothing, &[], &[]).unwrap().is_empty());
}
