//! Guests of WASI 0.3, whose functions are asynchronous.

use std::net::SocketAddrV4;

use coracle_wasm::protocol::Kind;

use crate::harness::{Host, Result, exit, get};

#[tokio::test(flavor = "multi_thread")]
async fn an_asynchronous_command_runs_to_its_end() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("three").await?;
    let (state, printed) = host.run_in(&pod, host.spec(&pod, "main", "p3-command", &["as", "told"])).await?;
    // Two tasks of one instance, each of which waits while the other goes on.
    assert_eq!((exit(&state), printed.as_str()), ((0, "Completed"), "first\nsecond\nthird as told"));
    let (state, _) = host.run_in(&pod, host.spec(&pod, "fails", "p3-command", &["fail"])).await?;
    assert_eq!(exit(&state), (1, "Error"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_asynchronous_handler_streams() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("threes").await?;
    let made = host.start_container(host.spec(&pod, "main", "p3-web", &[])).await?;
    assert_eq!(made.kind, Kind::HttpHandler);
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    for _ in 0..2 {
        assert_eq!(get(at, "/a/path").await?, (200, "GET /a/path, in two pieces".into()));
    }
    Ok(())
}
