//! Specifications from CRI's messages.

use super::*;

fn image() -> ImageConfiguration {
    serde_json::from_value(
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["A=1", "B=2"], "User": "web:wheel",
            "WorkingDir": "/srv"}}),
    )
    .unwrap()
}

struct Given {
    dir: tempfile::TempDir,
    config: v1::ContainerConfig,
    sandbox: v1::PodSandboxConfig,
    unified: bool,
}

impl Given {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n")
            .unwrap();
        std::fs::write(dir.path().join("etc/group"), "wheel:x:10:\naudio:x:29:web,other\n").unwrap();
        let config = v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig {
                resources: Some(v1::LinuxContainerResources::default()),
                security_context: Some(v1::LinuxContainerSecurityContext::default()),
            }),
            ..Default::default()
        };
        let sandbox = v1::PodSandboxConfig { hostname: "pod".into(), ..Default::default() };
        Self { dir, config, sandbox, unified: false }
    }

    fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }

    fn spec(&self, cdi: &[PathBuf]) -> Result<Value, String> {
        self.spec_where(cdi, true)
    }

    fn spec_where(&self, cdi: &[PathBuf], huge_pages: bool) -> Result<Value, String> {
        let shared = Shared {
            dir: "/state/pod".into(),
            network: Some("/state/pod/net".into()),
            ipc: Some("/state/pod/ipc".into()),
            uts: None,
            pid: None,
            cgroup: "/coracle/pod".into(),
        };
        let parts = Parts {
            id: "c1",
            rootfs: self.dir.path(),
            image: &image(),
            config: &self.config,
            sandbox: &self.sandbox,
            shared: &shared,
            cdi_dirs: cdi,
            huge_pages,
            swap: huge_pages,
            unified: self.unified,
        };
        spec(&parts).map(|s| serde_json::to_value(s).unwrap()).map_err(|e| e.to_string())
    }
}

#[test]
fn image_and_pod_make_a_process() {
    let mut given = Given::new();
    let spec = given.spec(&[]).unwrap();
    assert_eq!(spec["process"]["args"], json!(["/bin/app", "serve"]));
    assert_eq!(spec["process"]["user"]["uid"], 33);
    assert_eq!(spec["process"]["user"]["gid"], 10, "the image's group");
    assert_eq!(spec["process"]["user"]["additionalGids"], json!([29]));
    assert_eq!(spec["process"]["cwd"], "/srv");
    assert_eq!(spec["linux"]["cgroupsPath"], "/coracle/pod/c1");
    let kinds: Vec<_> =
        spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["mount", "pid", "network", "ipc"], "no name of its own: the host's");

    given.security().namespace_options = Some(v1::NamespaceOption {
        pid: v1::NamespaceMode::Target.into(),
        target_id: "gone".into(),
        ..Default::default()
    });
    assert!(given.spec(&[]).unwrap_err().contains("target container \"gone\" does not run"));
    given.security().namespace_options = None;

    given.config.args = vec!["x".into()];
    given.config.envs = vec![v1::KeyValue { key: "A".into(), value: "9".into() }];
    assert_eq!(given.spec(&[]).unwrap()["process"]["args"], json!(["/bin/app", "x"]));
    given.config.command = vec!["/bin/sh".into()];
    given.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    given.security().capabilities = Some(v1::Capability {
        add_capabilities: vec!["net_admin".into()],
        drop_capabilities: vec!["ALL".into()],
        ..Default::default()
    });
    given.config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 1 << 26,
        memory_swap_limit_in_bytes: 1 << 27,
        cpuset_cpus: "2-3".into(),
        cpuset_mems: "1".into(),
        hugepage_limits: [("2MB", 1 << 21), ("1GB", 0)]
            .map(|(size, limit)| v1::HugepageLimit { page_size: size.into(), limit })
            .into(),
        ..Default::default()
    });
    let spec = given.spec(&[]).unwrap();
    assert_eq!(spec["process"]["args"], json!(["/bin/sh", "x"]));
    let env = spec["process"]["env"].as_array().unwrap();
    assert!(
        env.contains(&json!("A=9")) && !env.contains(&json!("A=1")) && env.contains(&json!("HOSTNAME=pod"))
    );
    assert_eq!((&spec["process"]["user"]["uid"], &spec["process"]["user"]["gid"]), (&json!(1000), &json!(0)));
    assert_eq!(spec["process"]["capabilities"]["bounding"], json!(["CAP_NET_ADMIN"]));
    assert_eq!(spec["linux"]["resources"]["memory"], json!({"limit": 1 << 26, "swap": 1 << 27}));
    let cpu = json!({"quota": 50_000, "period": 100_000, "cpus": "2-3", "mems": "1"});
    assert_eq!(spec["linux"]["resources"]["cpu"], cpu);
    let huge = json!([{"pageSize": "2MB", "limit": 1 << 21}, {"pageSize": "1GB", "limit": 0}]);
    assert_eq!(spec["linux"]["resources"]["hugepageLimits"], huge);
    // Where nothing counts them, the OCI runtime would fail to set it.
    let uncounted = &given.spec_where(&[], false).unwrap()["linux"]["resources"];
    assert!(uncounted["hugepageLimits"].is_null());
    assert_eq!(uncounted["memory"], json!({"limit": 1 << 26}));
}

#[test]
fn a_container_sees_its_own_control_group_alone() {
    let mut given = Given::new();
    let own = |given: &Given| {
        let spec = given.spec(&[]).unwrap();
        let list = spec["linux"]["namespaces"].as_array().unwrap().clone();
        list.contains(&json!({"type": "cgroup"}))
    };
    assert!(!own(&given), "version 1");
    given.unified = true;
    assert!(own(&given));
    given.security().privileged = true;
    assert!(!own(&given));
}

#[test]
fn volumes_replace_what_the_pod_would_have() {
    let mut given = Given::new();
    let host = given.dir.path().join("volume");
    for path in ["/data/deep", "/data", "/etc/hosts"] {
        given.config.mounts.push(v1::Mount {
            container_path: path.into(),
            host_path: host.display().to_string(),
            readonly: true,
            ..Default::default()
        });
    }
    let spec = given.spec(&[]).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let at = |path: &str| mounts.iter().position(|m| m["destination"] == path).unwrap();
    assert!(at("/data") < at("/data/deep"));
    assert_eq!(mounts.iter().filter(|m| m["destination"] == "/etc/hosts").count(), 1);
    assert!(mounts[at("/data")]["options"].as_array().unwrap().contains(&json!("ro")));
    given.config.mounts[0].container_path = "/a/../b".into();
    assert!(given.spec(&[]).unwrap_err().contains("no such place"));
}

#[test]
fn a_cdi_device_edits_the_specification() {
    let mut given = Given::new();
    let dirs = [given.dir.path().join("cdi")];
    std::fs::create_dir(&dirs[0]).unwrap();
    let file = json!({"cdiVersion": "0.6.0", "kind": "example.com/gpu",
        "containerEdits": {"env": ["ALL=1"]},
        "devices": [{"name": "0", "containerEdits": {"env": ["B=gpu0"], "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
            "mounts": [{"hostPath": "/usr/lib", "containerPath": "/usr/lib/gpu"}], "additionalGids": [44]}}]});
    std::fs::write(dirs[0].join("gpu.json"), file.to_string()).unwrap();
    std::fs::write(dirs[0].join("broken.json"), "{").unwrap();
    given.config.cdi_devices = vec![v1::CdiDevice { name: "example.com/gpu=0".into() }];
    let spec = given.spec(&dirs).unwrap();
    let env = spec["process"]["env"].as_array().unwrap();
    assert!(env.contains(&json!("ALL=1")) && env.contains(&json!("B=gpu0")) && !env.contains(&json!("B=2")));
    let device = &spec["linux"]["devices"][0];
    assert_eq!(
        (&device["path"], &device["major"], &device["minor"]),
        (&json!("/dev/gpu0"), &json!(1), &json!(3))
    );
    assert_eq!(spec["linux"]["resources"]["devices"][1]["allow"], true);
    given.config.cdi_devices[0].name = "example.com/gpu=7".into();
    assert!(given.spec(&dirs).unwrap_err().contains("gpu=7"));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let mut given = Given::new();
    given.security().run_as_username = "nobody-here".into();
    assert!(given.spec(&[]).unwrap_err().contains("nobody-here"));
    given = Given::new();
    given.security().capabilities =
        Some(v1::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() });
    assert!(given.spec(&[]).unwrap_err().contains("FLY"));
    given = Given::new();
    given.config.devices.push(v1::Device { host_path: "/dev/none".into(), ..Default::default() });
    assert!(given.spec(&[]).unwrap_err().contains("/dev/none"));
    given = Given::new();
    given.config.working_dir = "here".into();
    assert!(given.spec(&[]).unwrap_err().contains("not absolute"));
}

#[test]
fn seccomp_profiles_are_as_asked() {
    use v1::security_profile::ProfileType;
    let mut given = Given::new();
    let asked = |kind: ProfileType, path: &str| v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.into(),
    };
    let names = |spec: &Value, action: &str| -> Vec<String> {
        let rules = spec["linux"]["seccomp"]["syscalls"].as_array().cloned().unwrap_or_default();
        let of = rules.iter().filter(|r| r["action"] == action && r["args"].is_null());
        of.flat_map(|r| r["names"].as_array().cloned().unwrap_or_default())
            .filter_map(|n| n.as_str().map(str::to_owned))
            .collect()
    };
    given.security().seccomp = Some(asked(ProfileType::Unconfined, ""));
    assert!(given.spec(&[]).unwrap()["linux"]["seccomp"].is_null());
    given.security().seccomp = Some(asked(ProfileType::RuntimeDefault, ""));
    let spec = given.spec(&[]).unwrap();
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    let allowed = names(&spec, "SCMP_ACT_ALLOW");
    for (call, free) in [
        ("openat", true),
        ("chroot", true),
        ("mount", false),
        ("unshare", false),
        ("clone", false),
        ("init_module", false),
    ] {
        assert_eq!(allowed.iter().any(|n| n == call), free, "{call}");
    }
    assert_eq!(names(&spec, "SCMP_ACT_ERRNO"), ["clone3"]);
    // A capability brings the calls that it is for.
    given.security().capabilities =
        Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    let allowed = names(&given.spec(&[]).unwrap(), "SCMP_ACT_ALLOW");
    assert!(allowed.iter().any(|n| n == "mount") && !allowed.iter().any(|n| n == "init_module"));
    given.security().privileged = true;
    assert!(given.spec(&[]).unwrap()["linux"]["seccomp"].is_null());
    given.security().privileged = false;

    let file = given.dir.path().join("profile.json");
    let own = json!({"defaultAction": "SCMP_ACT_ALLOW", "archMap": [], "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "includes": {}, "excludes": null}]});
    std::fs::write(&file, own.to_string()).unwrap();
    given.security().seccomp = Some(asked(ProfileType::Localhost, &file.display().to_string()));
    assert_eq!(given.spec(&[]).unwrap()["linux"]["seccomp"]["syscalls"][0]["names"], json!(["mkdir"]));
    let conditional = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
    for (text, words) in [
        ("{", "EOF"),
        (r#"{"defaultAction": "NONSENSE"}"#, "unknown variant"),
        (conditional, r#"the rule for ["mount"] holds under a condition ("includes")"#),
        (&conditional.replace("includes", "excludes"), "excludes"),
    ] {
        std::fs::write(&file, text).unwrap();
        let refused = given.spec(&[]).unwrap_err();
        assert!(refused.starts_with("cannot load seccomp profile") && refused.contains(words), "{refused}");
    }
    given.security().seccomp = Some(asked(ProfileType::Localhost, "/none/such"));
    assert!(given.spec(&[]).unwrap_err().contains("No such file"));
}

#[test]
fn mounts_that_the_host_is_to_see_leave_a_shared_root() {
    let mut given = Given::new();
    let host_path = given.dir.path().display().to_string();
    let with = |propagation: v1::MountPropagation| v1::Mount {
        container_path: "/m".into(),
        host_path: host_path.clone(),
        propagation: propagation.into(),
        ..Default::default()
    };
    for (propagation, option, root) in [
        (v1::MountPropagation::PropagationPrivate, "rprivate", Value::Null),
        (v1::MountPropagation::PropagationHostToContainer, "rslave", Value::Null),
        (v1::MountPropagation::PropagationBidirectional, "rshared", json!("rshared")),
    ] {
        given.config.mounts = vec![with(propagation)];
        let spec = given.spec(&[]).unwrap();
        assert_eq!(spec["linux"]["rootfsPropagation"], root);
        let mounts = spec["mounts"].as_array().unwrap();
        let made = mounts.iter().find(|m| m["destination"] == "/m").unwrap();
        assert!(made["options"].as_array().unwrap().contains(&json!(option)), "{made}");
    }
}
