//! Containers that run to an end: exit codes, limits, logs, mounts.

use std::time::Duration;

use coracle_wasm::{
    compile,
    protocol::{ErrorCode, Event, State},
};

use crate::harness::{Host, Result, SOON, exit, mount};

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes() -> Result {
    let host = Host::start().await?;
    for (name, args, expected) in [
        ("zero", &["exit", "0"][..], (0, "Completed")),
        // WASI 0.2 knows success and failure only, and so do programs of its standard library.
        ("seven", &["exit", "7"], (1, "Error")),
        ("trap", &["fail"], (134, "Error")),
        ("returns", &["env"], (0, "Completed")),
    ] {
        let (state, printed) = host.run(name, args).await?;
        assert_eq!(exit(&state), expected, "{name}: {printed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview1_module_is_adapted() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("module").await?;
    let module = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
        (memory (export "memory") 1) (func (export "_start") i32.const 5 call 0))"#;
    let mut spec = host.spec(&pod, "main", "probe", &[]);
    spec.artifact = host.dir.path().join("module/module.cwasm");
    compile::precompile(&wat::parse_str(module)?, &spec.artifact)?;
    let (state, printed) = host.run_in(&pod, spec).await?;
    // The adapter, like WASI before 0.2.12, keeps success and failure of the code, not the number.
    assert_eq!(exit(&state), (1, "Error"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_leaves_a_backtrace_and_words() -> Result {
    let host = Host::start().await?;
    let (state, printed) = host.run("traps", &["fail"]).await?;
    let State::Exited { message, .. } = state else { anyhow::bail!("{state:?}") };
    assert!(message.contains("unreachable"), "{message}");
    assert!(printed.contains("as asked"), "{printed}");
    assert!(printed.contains("wasm backtrace"), "{printed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_over_the_limit_is_oom_killed() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("grows").await?;
    let mut spec = host.spec(&pod, "main", "probe", &["grow", "64"]);
    spec.memory_limit_bytes = Some(16 << 20);
    let (state, printed) = host.run_in(&pod, spec).await?;
    assert_eq!(exit(&state), (137, "OOMKilled"), "{printed}");
    let mut spec = host.spec(&pod, "roomy", "probe", &["grow", "8"]);
    spec.memory_limit_bytes = Some(64 << 20);
    let (state, printed) = host.run_in(&pod, spec).await?;
    assert_eq!((exit(&state), printed.as_str()), ((0, "Completed"), "grown 8"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_sees_its_own_environment_only() -> Result {
    let host = Host::start().await?;
    let (_, printed) = host.run("env", &["env"]).await?;
    let mut names: Vec<_> = printed.lines().filter_map(|l| l.split('=').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["HOSTNAME", "POD"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_in_the_cri_format() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("prints").await?;
    host.run_in(&pod, host.spec(&pod, "main", "probe", &["print", "words"])).await?;
    let text = std::fs::read_to_string(host.log_path(&pod, "main"))?;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (stream, content) in [("stdout", "words"), ("stderr", "to stderr"), ("stdout", "no newline")] {
        let tail = format!(" {stream} F {content}");
        assert!(lines.iter().any(|l| l.ends_with(&tail)), "{tail} in {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lines_arrives_whole() -> Result {
    let host = Host::start().await?;
    let (state, printed) = host.run("flood", &["flood", "4000"]).await?;
    assert_eq!(exit(&state), (0, "Completed"));
    assert_eq!(printed.lines().count(), 4000);
    assert!(printed.lines().all(|l| l.len() == 1023));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_a_command() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("stopped").await?;
    for (name, args) in [("sleeps", ["sleep", "600000"]), ("spins", ["spin", ""])] {
        let spec = host.spec(&pod, name, "probe", &args);
        let id = spec.id.clone();
        host.start_container(spec).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let stop = host.client.stop_container(&id, 5000);
        let status = tokio::time::timeout(Duration::from_secs(3), stop).await??;
        assert_eq!(exit(&status.state), (143, "Error"), "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_an_event() -> Result {
    let host = Host::start().await?;
    let mut events = host.client.subscribe().await?;
    let (state, _) = host.run("event", &["exit", "4"]).await?;
    let event = tokio::time::timeout(SOON, events.next()).await?;
    let Some(Event::ContainerStopped { id, sandbox_id, state: told }) = event else {
        anyhow::bail!("{event:?}")
    };
    assert_eq!((id.as_str(), sandbox_id.as_str()), ("sandbox-event-main", "sandbox-event"));
    assert_eq!(told, state);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_limit_holds() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("limited").await?;
    let mut spec = host.spec(&pod, "main", "probe", &["spin"]);
    spec.cpu_millis = Some(100);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stats = host.client.stats(&[id]).await?;
    let used = Duration::from_nanos(stats.first().map(|s| s.cpu_nanos).unwrap_or_default());
    assert!(used > Duration::from_millis(50) && used < Duration::from_millis(500), "{used:?}");
    Ok(())
}

/// Limits of what runs change at once, up and down; below what is held they do not.
#[tokio::test(flavor = "multi_thread")]
async fn limits_change_while_guests_run() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("resized").await?;
    let (small, large) = (8 << 20, 64 << 20);
    let mut spins = host.spec(&pod, "spins", "probe", &["spin"]);
    (spins.cpu_millis, spins.memory_limit_bytes) = (Some(1), Some(small));
    let mut web = host.spec(&pod, "web", "web", &[]);
    web.memory_limit_bytes = Some(small);
    let (spinning, serving) = (spins.id.clone(), web.id.clone());
    host.start_container(spins).await?;
    host.start_container(web).await?;
    let used = async || -> Result<u64> {
        let stats = host.client.stats(std::slice::from_ref(&spinning)).await?;
        Ok(stats.first().map_or(0, |s| s.cpu_nanos / 1_000_000))
    };
    // What it gets soon with half a CPU takes minutes with a thousandth.
    host.client.update_container(&spinning, Some(small), Some(500)).await?;
    let before = used().await?;
    let more = async {
        while used().await? < before + 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SOON, more).await??;
    host.client.update_container(&spinning, Some(small), Some(1)).await?;
    let less = async {
        loop {
            let before = used().await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            if used().await? - before < 50 {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(SOON, less).await??;

    host.client.update_container(&serving, Some(large), None).await?;
    let at = std::net::SocketAddrV4::new(pod.pod_ip, 8080);
    assert_eq!(crate::harness::get(at, "/grow?24").await?.1, "grown 24", "more than it began with");
    let refused = host.client.update_container(&serving, Some(1 << 20), None).await.err();
    let words = refused.map(|e| e.to_string()).unwrap_or_default();
    let told = "cannot decrease memory limits: attempting to set container \"web\" memory limit (1048576) below current usage (";
    assert!(words.starts_with(told), "{words}");
    assert_eq!(crate::harness::get(at, "/").await?.0, 200);
    // What it has not, it does not get any more.
    let held = host.client.stats(std::slice::from_ref(&serving)).await?.first().map(|s| s.memory_bytes);
    host.client.update_container(&serving, held.map(|held| held + (1 << 20)), None).await?;
    let _ = crate::harness::get(at, "/grow?48").await;
    assert_eq!(exit(&host.ended(&serving).await?), (137, "OOMKilled"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("mounts").await?;
    let volume = tempfile::tempdir()?;
    std::fs::write(volume.path().join("given"), "from outside")?;
    for (name, args, read_only, expected) in [
        ("read", ["read", "/data/given", ""], true, r#"Ok("from outside")"#),
        ("refused", ["write", "/data/new", "x"], true, "error PermissionDenied"),
        ("write", ["write", "/data/new", "x"], false, "done"),
        ("escape", ["read", "/data/../../etc/passwd", ""], false, "Err(PermissionDenied)"),
        ("absolute", ["read", "/etc/passwd", ""], false, "Err("),
    ] {
        let mut spec = host.spec(&pod, name, "probe", &args);
        spec.mounts = vec![mount(volume.path(), "/data", read_only)];
        let (_, printed) = host.run_in(&pod, spec).await?;
        assert!(printed.starts_with(expected), "{name}: {printed}");
    }
    let mut spec = host.spec(&pod, "missing", "probe", &["exit", "0"]);
    spec.mounts = vec![mount(&volume.path().join("nowhere"), "/data", true)];
    let error = host.start_container(spec).await.map(drop).map_err(|e| e.to_string());
    let words = error.err().unwrap_or_default();
    assert!(words.contains("nowhere") && words.contains("/data"), "{words}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("wrong").await?;
    let code = |result: Result<_, coracle_wasm::client::Error>| match result {
        Err(coracle_wasm::client::Error::Host(error)) => Some(error.code),
        _ => None,
    };
    let mut spec = host.spec(&pod, "main", "probe", &["exit", "0"]);
    spec.artifact = "/nowhere.cwasm".into();
    assert_eq!(code(host.start_container(spec).await), Some(ErrorCode::Invalid));
    let mut spec = host.spec(&pod, "main", "probe", &["exit", "0"]);
    spec.sandbox_id = "other".into();
    assert_eq!(code(host.start_container(spec).await), Some(ErrorCode::NotFound));
    let spec = host.spec(&pod, "main", "probe", &["exit", "0"]);
    host.run_in(&pod, spec.clone()).await?;
    let again = host.client.start_container(&spec.id).await;
    assert_eq!(code(again), Some(ErrorCode::FailedPrecondition));
    assert_eq!(code(host.client.create_container(spec).await), Some(ErrorCode::AlreadyExists));
    host.client.remove_container("not there").await?;
    host.client.remove_sandbox("not there").await?;
    Ok(())
}
