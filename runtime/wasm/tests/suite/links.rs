//! Containers of a pod that import what others of it export: examples/linked, and what can go wrong there.

use std::net::SocketAddrV4;

use coracle_wasm::{
    compile,
    protocol::{ContainerSpec, Kind, SandboxSpec},
};
use http_body_util::BodyExt;

use crate::harness::{Host, Result, exit, mount};

/// The two containers of examples/linked, in a pod of this name.
async fn pod(host: &Host, name: &str) -> Result<(SandboxSpec, ContainerSpec, ContainerSpec)> {
    let pod = host.pod(name).await?;
    let secrets = host.dir.path().join("secrets");
    std::fs::create_dir_all(&secrets)?;
    std::fs::write(
        secrets.join("tokens"),
        "s3cret ada admins,users 4102444800\nstale bob users 1000000000\n",
    )?;
    let mut auth = host.spec(&pod, "auth", "linked-auth", &[]);
    auth.mounts = vec![mount(&secrets, "/secrets", true)];
    auth.linked = true;
    let mut web = host.spec(&pod, "web", "linked-web", &[]);
    web.links = vec!["auth".into()];
    Ok((pod, auth, web))
}

/// Status and body of a request with a token.
async fn ask(pod: &SandboxSpec, token: &str, path: &str) -> Result<(u16, String)> {
    let stream = tokio::net::TcpStream::connect(SocketAddrV4::new(pod.pod_ip, 8080)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "test")
        .header("authorization", format!("Bearer {token}"))
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_calls_what_another_exports() -> Result {
    let host = Host::start().await?;
    let (pod, auth, web) = pod(&host, "linked").await?;
    let ids = [auth.id.clone(), web.id.clone()];
    let made = host.start_container(auth).await?;
    assert_eq!(made.kind, Kind::Library);
    host.start_container(web).await?;
    for _ in 0..3 {
        let (status, said) = ask(&pod, "s3cret", "/read/write").await?;
        assert_eq!((status, said.as_str()), (200, "hello ada of admins and users: read, write in linked\n"));
    }
    assert_eq!(ask(&pod, "stale", "/").await?, (403, "your token ended at 1000000000\n".into()));
    assert_eq!(ask(&pod, "", "/").await?, (401, "who are you?\n".into()));
    // Each has its own log, and is counted on its own.
    host.prints(&pod, "auth", &["ada: 2 actions"]).await?;
    assert_eq!(host.printed(&pod, "web")?, "");
    let stats = host.client.stats(&[]).await?;
    let of = |id: &str| stats.iter().find(|s| s.id == id).cloned().ok_or_else(|| anyhow::anyhow!("no {id}"));
    let (auth, web) = (of(&ids[0])?, of(&ids[1])?);
    assert_eq!((auth.requests, web.requests), (5 + 3 * 4, 5), "{auth:?} {web:?}");
    assert!(auth.cpu_nanos > 0 && auth.memory_bytes > 0 && auth.instances == 1, "{auth:?}");
    // It ends in its own time; who calls it then is told.
    assert_eq!(exit(&host.client.stop_container(&ids[0], 5000).await?.state), (0, "Completed"));
    assert_eq!(ask(&pod, "s3cret", "/").await?.0, 500);
    host.prints(&pod, "web", &["container auth of the pod does not run"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_name() -> Result {
    let host = Host::start().await?;
    let (pod, auth, web) = pod(&host, "misfit").await?;
    let refused = async |spec: ContainerSpec| match host.client.create_container(spec).await {
        Ok(_) => "created".to_owned(),
        Err(error) => error.to_string(),
    };
    let said = refused(web.clone()).await;
    assert!(said.contains("container auth, which is not there yet"), "{said}");
    let alone = ContainerSpec { links: Vec::new(), ..web.clone() };
    let said = refused(alone).await;
    for words in ["demo:auth/tokens@1.0.0", "coracle.dev/links"] {
        assert!(said.contains(words), "{said}");
    }
    let unasked = ContainerSpec { linked: false, ..auth.clone() };
    let said = refused(unasked).await;
    assert!(said.contains("nothing to start"), "{said}");
    let other =
        ContainerSpec { artifact: crate::harness::artifact("web"), id: "other".into(), linked: true, ..auth };
    host.client.create_container(other).await?;
    let said = refused(web.clone()).await;
    assert!(said.contains("container auth exports nothing that is imported here"), "{said}");
    // The same names with other types.
    let text = r#"(component
        (core module $m (memory (export "m") 1) (func (export "who") (result i32) i32.const 0))
        (core instance $i (instantiate $m))
        (func $who (result bool) (canon lift (core func $i "who")))
        (instance $t (export "who" (func $who)))
        (export "demo:auth/tokens@1.0.0" (instance $t)))"#;
    let artifact = host.dir.path().join("other.cwasm");
    compile::precompile(&wat::parse_str(text)?, &artifact)?;
    let mut wrong = host.spec(&pod, "auth", "linked-auth", &[]);
    (wrong.id, wrong.artifact, wrong.linked) = ("wrong".into(), artifact, true);
    host.client.create_container(wrong).await?;
    let said = refused(web).await;
    assert!(said.contains("demo:auth/tokens@1.0.0 as container auth exports it: there is no "), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_there_is_not_ones_own() -> Result {
    let host = Host::start().await?;
    let (pod, mut auth, web) = pod(&host, "failing").await?;
    // Enough to start, and too little for a file of 8 MiB.
    auth.memory_limit_bytes = Some(4 << 20);
    let (id, web_id) = (auth.id.clone(), web.id.clone());
    host.start_container(auth).await?;
    host.start_container(web).await?;
    assert_eq!(ask(&pod, "s3cret", "/").await?.0, 200);
    std::fs::write(host.dir.path().join("secrets/tokens"), vec![b' '; 8 << 20])?;
    assert_eq!(ask(&pod, "s3cret", "/").await?.0, 500);
    assert_eq!(exit(&host.ended(&id).await?), (137, "OOMKilled"));
    host.prints(&pod, "web", &["in container auth"]).await?;
    assert_eq!(exit(&host.state(&web_id).await?), (-1, "not exited"));
    Ok(())
}

/// Exports an async function that doubles a number, and one that answers a stream.
const MATH: &str = r#"(component
    (core module $m
      (func (export "double") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2)))
      (func (export "bytes") (result i32) unreachable))
    (core instance $i (instantiate $m))
    (func $double async (param "n" u32) (result u32) (canon lift (core func $i "double")))
    (type $bytes (stream u8))
    (func $bytes (result $bytes) (canon lift (core func $i "bytes")))
    (instance $math (export "double" (func $double)))
    (instance $data (export "bytes" (func $bytes)))
    (export "demo:numbers/math@1.0.0" (instance $math))
    (export "demo:numbers/data@1.0.0" (instance $data)))"#;

/// Calls the async function twice, and succeeds where 21 is 84 then.
const ASKS: &str = r#"(component
    (import "demo:numbers/math@1.0.0" (instance $math
      (export "double" (func async (param "n" u32) (result u32)))))
    (core func $double (canon lower (func $math "double")))
    (core module $m
      (import "math" "double" (func $double (param i32) (result i32)))
      (func (export "run") (result i32)
        (i32.ne (call $double (call $double (i32.const 21))) (i32.const 84))))
    (core instance $i (instantiate $m (with "math" (instance (export "double" (func $double))))))
    (func $run async (result (result)) (canon lift (core func $i "run")))
    (instance $runs (export "run" (func $run)))
    (export "wasi:cli/run@0.3.0" (instance $runs)))"#;

/// Imports the function that answers a stream.
const STREAMS: &str = r#"(component
    (type $bytes (stream u8))
    (import "demo:numbers/data@1.0.0" (instance (export "bytes" (func (result $bytes)))))
    (core module $m (func (export "run") (result i32) i32.const 0))
    (core instance $i (instantiate $m))
    (func $run async (result (result)) (canon lift (core func $i "run")))
    (instance $runs (export "run" (func $run)))
    (export "wasi:cli/run@0.3.0" (instance $runs)))"#;

#[tokio::test(flavor = "multi_thread")]
async fn async_functions_are_called_and_streams_are_refused_with_the_reason() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("numbers").await?;
    let spec = |name: &str, text: &str| -> Result<ContainerSpec> {
        let artifact = host.dir.path().join(format!("{name}.cwasm"));
        compile::precompile(&wat::parse_str(text)?, &artifact)?;
        let mut spec = host.spec(&pod, name, "linked-auth", &[]);
        spec.artifact = artifact;
        spec.links = vec!["math".into()];
        Ok(spec)
    };
    let mut math = spec("math", MATH)?;
    (math.links, math.linked) = (Vec::new(), true);
    host.start_container(math).await?;
    let asks = spec("asks", ASKS)?;
    let id = asks.id.clone();
    host.start_container(asks).await?;
    assert_eq!(exit(&host.ended(&id).await?), (0, "Completed"));
    let refused = host.client.create_container(spec("streams", STREAMS)?).await.unwrap_err().to_string();
    for words in
        ["demo:numbers/data@1.0.0", "bytes", "futures and streams cannot be passed", "a store of its own"]
    {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    Ok(())
}

/// Exports a function that doubles a number, and knows nothing of async.
const PLAIN: &str = r#"(component
    (core module $m (func (export "double") (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2))))
    (core instance $i (instantiate $m))
    (func $double (param "n" u32) (result u32) (canon lift (core func $i "double")))
    (instance $math (export "double" (func $double)))
    (export "demo:numbers/math@1.0.0" (instance $math)))"#;

/// Whichever engine each of both runs on.
#[tokio::test(flavor = "multi_thread")]
async fn components_that_know_of_async_and_others_call_each_other() -> Result {
    let host = Host::start().await?;
    let knowing = (MATH.replace("$double async", "$double"), ASKS.replace("(func async", "(func"));
    let others =
        (PLAIN.to_owned(), knowing.1.replace("$run async", "$run").replace("run@0.3.0", "run@0.2.0"));
    for (name, math, asks, engines) in [
        ("both", &knowing.0, &knowing.1, ["async", "async"]),
        ("one", &knowing.0, &others.1, ["async", "sync"]),
        ("other", &others.0, &knowing.1, ["sync", "async"]),
        ("none", &others.0, &others.1, ["sync", "sync"]),
    ] {
        let pod = host.pod(name).await?;
        let mut specs = Vec::new();
        for ((container, text), engine) in [("math", math), ("asks", asks)].into_iter().zip(engines) {
            let artifact = host.dir.path().join(format!("{name}-{container}.cwasm"));
            compile::precompile(&wat::parse_str(text)?, &artifact)?;
            let described = std::fs::read_to_string(compile::description_path(&artifact))?;
            assert!(described.contains(&format!("\"abi\":\"{engine}\"")), "{name} {container}: {described}");
            let mut spec = host.spec(&pod, container, "linked-auth", &[]);
            spec.artifact = artifact;
            specs.push(spec);
        }
        let [mut math, mut asks] =
            <[ContainerSpec; 2]>::try_from(specs).map_err(|_| anyhow::anyhow!("two"))?;
        math.linked = true;
        asks.links = vec!["math".into()];
        let id = asks.id.clone();
        host.start_container(math).await?;
        host.start_container(asks).await?;
        assert_eq!(exit(&host.ended(&id).await?), (0, "Completed"), "{name}");
    }
    Ok(())
}
