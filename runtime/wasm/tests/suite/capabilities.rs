//! What a container has only where it was granted: refused before it starts, and charged to it.

use std::net::SocketAddrV4;

use coracle_wasm::protocol::Capabilities;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Host, Result, exit};

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

    spec.capabilities = Capabilities { inference: Some(vec!["fake-0".into()]) };
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
