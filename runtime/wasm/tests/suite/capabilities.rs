//! What a container has only where it was granted: refused before it starts, and charged to it.

use std::{net::SocketAddrV4, path::Path};

use coracle_wasm::protocol::{Capabilities, ContainerSpec, KeyValue, SandboxSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Host, Result, exit, mount};

const TRIANGLE: &str = "...........#......#.#.....#.#....#...#...#####..................";

async fn post(to: SocketAddrV4, path: &str, body: &str) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(to).await?;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(feature = "nn")]
#[tokio::test(flavor = "multi_thread")]
async fn inference_is_for_those_it_was_granted_to() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("infer").await?;
    let mut spec = host.spec(&pod, "main", "gpu-infer", &[]);
    let refused = host.client.create_container(spec.clone()).await.unwrap_err().to_string();
    for words in ["wasi:nn/", "was not granted", "nvidia.com/gpu"] {
        assert!(refused.contains(words), "{refused}");
    }

    spec.capabilities = Capabilities { inference: Some(vec!["fake-0".into()]), ..Default::default() };
    spec.memory_limit_bytes = Some(32 << 20);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    for _ in 0..3 {
        let answer = post(at, "/infer", TRIANGLE).await?;
        assert!(
            answer.contains(r#""class":"triangle""#) && answer.contains(r#""triangle":0.9718"#),
            "{answer}"
        );
    }
    let short = post(at, "/infer", "#").await?;
    assert!(short.starts_with("HTTP/1.1 400") && short.contains("this one 1"), "{short}");
    // The model is held by the host, and counts as the container's memory.
    let stats = host.client.stats(std::slice::from_ref(&id)).await?;
    assert!(stats.iter().all(|s| s.memory_bytes % (64 << 10) != 0), "{stats:?}");
    let log = host.printed(&pod, "main")?;
    assert_eq!(log.matches("it runs on the CPU (devices of this container: fake-0)").count(), 1, "{log}");
    assert_eq!(exit(&host.client.stop_container(&id, 5000).await?.state), (0, "Completed"));
    Ok(())
}

fn write(dir: &Path, name: &str, text: &str) -> Result {
    Ok(std::fs::write(dir.join(name), text)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_the_files_of_a_volume() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("settings").await?;
    let volume = tempfile::tempdir()?;
    write(volume.path(), "color", "blue")?;
    write(volume.path(), "size", "9")?;
    std::os::unix::fs::symlink("/etc/hostname", volume.path().join("outside"))?;
    let steps = ["config,color", "config,none", "config,../settings", "config,outside"];
    let mut spec = host.spec(&pod, "main", "store", &steps);
    spec.mounts = vec![mount(volume.path(), "/settings", true)];
    spec.capabilities.keyvalue = Some(KeyValue::Memory);
    let refused = host.client.create_container(spec.clone()).await.unwrap_err().to_string();
    for words in ["wasi:config/store", "was not granted", "coracle.dev/wasi-config"] {
        assert!(refused.contains(words), "{refused}");
    }
    spec.capabilities.config = Some("/elsewhere".into());
    let refused = host.client.create_container(spec.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("/elsewhere, where no volume is mounted"), "{refused}");
    spec.capabilities.config = Some("/settings/".into());
    let (state, printed) = host.run_in(&pod, spec.clone()).await?;
    assert_eq!(exit(&state), (0, "Completed"), "{printed}");
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines[..3], ["Ok(Some(\"blue\"))", "Ok(None)", "Ok(None)"], "{printed}");
    assert!(lines[3].starts_with("Err(Error::Io("), "{printed}");

    std::fs::remove_file(volume.path().join("outside"))?;
    (spec.id, spec.name) = ("all".into(), "all".into());
    spec.log_path = host.log_path(&pod, "all");
    spec.args = vec!["store".into(), "config-all".into()];
    let (_, printed) = host.run_in(&pod, spec).await?;
    assert_eq!(printed, r#"Ok([("color", "blue"), ("size", "9")])"#);
    Ok(())
}

/// A store container of this pod, with settings granted so that it starts.
fn keeping(host: &Host, pod: &SandboxSpec, name: &str, volume: &Path, steps: &[&str]) -> ContainerSpec {
    let mut spec = host.spec(pod, name, "store", steps);
    spec.mounts = vec![mount(volume, "/volume", false)];
    spec.capabilities.config = Some("/volume".into());
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_kept_in_memory_or_in_a_volume() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("values").await?;
    let volume = tempfile::tempdir()?;
    let steps = [
        "get,a,k",
        "set,a,k,1",
        "get,a,k",
        "increment,a,k,41",
        "get,b,k",
        "exists,a,k",
        "delete,a,k",
        "exists,a,k",
        "set,,text,words",
        "increment,,text,1",
        "get,default,text",
        "get,../x,k",
        "many,m,2500",
        "keys,m",
        "set,a,../../k,up",
        "get,a,../../k",
    ];
    let expected = [
        "Ok(None)",
        "Ok(())",
        "Ok(Some(\"1\"))",
        "Ok(42)",
        "Ok(None)",
        "Ok(true)",
        "Ok(())",
        "Ok(false)",
        "Ok(())",
        "Err(Error::Other(\"the value is not a number that can be incremented\"))",
        "Ok(Some(\"words\"))",
        "Err(Error::NoSuchStore)",
        "Ok((2500, 3, Some(\"key/00000\"), Some(\"key/02499\")))",
        "Ok(())",
        "Ok(Some(\"up\"))",
    ];
    let refused = keeping(&host, &pod, "refused", volume.path(), &steps);
    let refused = host.client.create_container(refused).await.unwrap_err().to_string();
    assert!(refused.contains("wasi:keyvalue/") && refused.contains("coracle.dev/wasi-keyvalue"), "{refused}");
    for (name, store) in [("memory", KeyValue::Memory), ("files", KeyValue::Volume("/volume".into()))] {
        let mut spec = keeping(&host, &pod, name, volume.path(), &steps);
        spec.capabilities.keyvalue = Some(store);
        let (state, printed) = host.run_in(&pod, spec).await?;
        assert_eq!(exit(&state), (0, "Completed"), "{name}: {printed}");
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{name}");
    }
    // Those in the volume are there for the next; those in memory are gone.
    for (name, store, left) in [
        ("again-memory", KeyValue::Memory, "Ok(None)"),
        ("again-files", KeyValue::Volume("/volume".into()), "Ok(Some(\"words\"))"),
    ] {
        let mut spec = keeping(&host, &pod, name, volume.path(), &["get,,text"]);
        spec.capabilities.keyvalue = Some(store);
        assert_eq!(host.run_in(&pod, spec).await?.1, left);
    }
    let outside = volume.path().parent().map(|parent| parent.join("k").exists());
    assert_eq!(outside, Some(false));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_share_a_volume_count_together() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("counting").await?;
    let volume = tempfile::tempdir()?;
    let run = |name: &'static str, step: &'static str| {
        let mut spec = keeping(&host, &pod, name, volume.path(), &[step]);
        spec.capabilities.keyvalue = Some(KeyValue::Volume("/volume/".into()));
        host.run_in(&pod, spec)
    };
    let (one, two) = tokio::join!(run("one", "count,c,n,300"), run("two", "count,c,n,300"));
    assert_eq!((one?.1, two?.1), (String::new(), String::new()));
    assert_eq!(run("sum", "get,c,n").await?.1, "Ok(Some(\"600\"))");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_in_memory_count_as_the_containers() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("filling").await?;
    let volume = tempfile::tempdir()?;
    let fill: Vec<String> = (0..40).map(|n| format!("fill,b,{n},1000000")).collect();
    let fill: Vec<&str> = fill.iter().map(String::as_str).collect();
    let mut spec = keeping(&host, &pod, "main", volume.path(), &fill);
    spec.capabilities.keyvalue = Some(KeyValue::Memory);
    spec.memory_limit_bytes = Some(16 << 20);
    let (state, printed) = host.run_in(&pod, spec).await?;
    assert_eq!(exit(&state), (137, "OOMKilled"), "{printed}");
    Ok(())
}
