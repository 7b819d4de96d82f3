//! The host process outlives its clients.

use std::net::SocketAddrV4;

use coracle_wasm::{
    client::{Error, HostClient},
    compile::{self, CompileError},
    host::{self, HostOptions},
    protocol::{Kind, ServiceEntry, ServiceTable, State, Transport},
};

use crate::harness::{Host, Result, artifact, get, service_address, start_in};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_adopts_what_runs() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("adopted").await?;
    let spec = host.spec(&pod, "main", "web", &[]);
    host.start_container(spec.clone()).await?;
    let Host { dir, client } = host;
    drop(client);
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    assert_eq!(get(at, "/").await?.0, 200);
    let second = HostClient::connect(&dir.path().join("host.sock")).await?;
    let listing = second.list().await?;
    assert_eq!(listing.sandboxes.len(), 1);
    assert_eq!(listing.sandboxes[0].spec, pod);
    assert_eq!(listing.containers.len(), 1);
    let container = &listing.containers[0];
    assert_eq!((&container.spec, container.kind), (&spec, Kind::HttpHandler));
    assert!(matches!(container.state, State::Running { .. }));
    second.remove_sandbox(&pod.id).await?;
    assert_eq!(second.list().await?, Default::default());
    assert!(get(at, "/").await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_and_the_kept_service_table() -> Result {
    let host = Host::start().await?;
    let address = service_address();
    let entry = ServiceEntry {
        transport: Transport::Tcp,
        affinity_seconds: None,
        name: "default/kept".into(),
        port_name: String::new(),
        address,
        port: 8080,
        endpoints: vec![],
    };
    let table = ServiceTable { generation: 7, services: vec![entry], ..ServiceTable::default() };
    host.client.set_services(table).await?;
    let second = host::serve(HostOptions::new(host.dir.path().join("b.sock"), host.dir.path().join("state")));
    let said = second.await.err().map(|e| format!("{e:#}")).unwrap_or_default();
    assert!(said.contains("another wasm host"), "{said}");
    host.client.shutdown(1000).await?;
    host.client.closed().await;
    assert!(matches!(host.client.inspect().await, Err(Error::Disconnected)));
    for _ in 0..200 {
        if !host.dir.path().join("host.sock").exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let again = loop {
        match start_in(host.dir.path()).await {
            Ok(again) => break again,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    let info = again.inspect().await?;
    assert_eq!(info.services_generation, 7);
    assert!(!info.engine_fingerprint.is_empty());
    Ok(())
}

#[test]
fn what_cannot_be_compiled_is_named() -> Result {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("deep/x.cwasm");
    let compile = |text: &str| {
        let bytes = wat::parse_str(text).unwrap_or_else(|e| panic!("{e}"));
        compile::precompile(&bytes, &out)
    };
    assert!(matches!(compile::precompile(b"#!/bin/sh", &out), Err(CompileError::Invalid(_))));
    assert!(matches!(compile("(component)"), Err(CompileError::NoEntryPoint)));
    let importing = |import: &str| {
        let text = r#"(component (import "IMPORT" (instance (export "f" (func))))
        (core module $m (func (export "run") (result i32) i32.const 0)) (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $r (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $r)))"#;
        let compiled = compile(&text.replace("IMPORT", import));
        compiled.ok().and_then(|c| c.missing.first().map(|m| m.words.clone())).unwrap_or_default()
    };
    let said = importing("wasi:webgpu/webgpu@0.0.1");
    assert!(said.contains("wasi:webgpu/webgpu") && said.contains("GPU"), "{said}");
    // One that is granted to some, in a version that nobody is granted.
    let said = importing("wasi:nn/tensor@0.3.0");
    assert!(said.contains("wasi:nn/tensor@0.3.0") && said.contains("wasi:nn 0.2.0-rc-2024-10-28"), "{said}");
    // A preview1 module.
    let module = r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
        (memory (export "memory") 1) (func (export "_start") i32.const 5 call 0))"#;
    let compiled = compile(module)?;
    assert_eq!(compiled.kind, Kind::Command);
    assert!(out.exists());
    assert_eq!(compile::describe(&out), Some(compiled));
    assert_eq!(compile::describe(&artifact("web")).map(|c| c.kind), Some(Kind::HttpHandler));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_code_is_not_loaded() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("forged").await?;
    let copy = host.dir.path().join("copy.cwasm");
    std::fs::copy(artifact("probe"), &copy)?;
    let mut spec = host.spec(&pod, "main", "probe", &["exit", "0"]);
    spec.artifact = copy.clone();
    let refused = |result: Result<_, Error>| match result {
        Err(error) => error.to_string(),
        Ok(_) => "loaded".into(),
    };
    let said = refused(host.start_container(spec.clone()).await);
    assert!(said.contains("description"), "{said}");
    std::fs::copy(compile::description_path(&artifact("probe")), compile::description_path(&copy))?;
    let mut bytes = std::fs::read(&copy)?;
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    std::fs::write(&copy, bytes)?;
    let said = refused(host.start_container(spec).await);
    assert!(said.contains("digest"), "{said}");
    Ok(())
}
