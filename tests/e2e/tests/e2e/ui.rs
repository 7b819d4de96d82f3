//! What people look at: the web page in a real browser, and the dashboard in a terminal. Profile: loopback.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, succeed};
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::json;

use crate::hello;

/// A headless Chromium and its driver, which end with it.
struct Browser {
    driver: Child,
    port: u16,
    /// The browser's own files.
    profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start chromedriver, of Debian's package chromium-driver")?;
        let browser = Self { driver, port, profile: tempfile::tempdir()? };
        eventually("chromedriver listens", SOON, || {
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
        })?;
        Ok(browser)
    }

    async fn open(&self) -> Result<Client> {
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--disable-sync".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--no-first-run".into(),
            "--window-size=1500,1050".into(),
            format!("--user-data-dir={}", self.profile.path().display()),
        ];
        let capabilities = json!({
            // The certificate is of the cluster's own authority.
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments, "binary": "/usr/bin/chromium"},
        });
        let capabilities = capabilities.as_object().cloned().context("capabilities")?;
        let address = format!("http://127.0.0.1:{}", self.port);
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        Ok(builder.capabilities(capabilities).connect(&address).await?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A driver that is gone already was waited for by nobody else.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// Waits until an element of the page has these words.
async fn shows(page: &Client, selector: &str, words: &str) -> Result<()> {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let found = match page.find(Locator::Css(selector)).await {
            Ok(element) => element.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        };
        if found.contains(words) {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < end, "{selector} says {found:?}, not {words:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn look(cluster: &Cluster, page: &Client) -> Result<()> {
    let address = cluster.coracle(&["ui"])?;
    let (server, _) = address.trim().split_once('#').context("coracle ui prints no token")?;

    // Without a token nothing is shown.
    page.goto(server).await?;
    shows(page, "dialog h2", "Sign in").await?;
    page.find(Locator::Css("#token")).await?.send_keys("not a token").await?;
    page.find(Locator::Css("dialog button")).await?.click().await?;
    shows(page, "#refused", "not valid").await?;
    ensure!(page.find_all(Locator::Css("#nodes tbody tr")).await?.is_empty(), "nodes without a token");

    page.goto("about:blank").await?;
    page.goto(address.trim()).await?;
    shows(page, "#user", "kubernetes-admin").await?;
    shows(page, "#nodes", "Ready").await?;
    shows(page, "#workloads", "3/3").await?;
    shows(page, "#pods", "Running").await?;
    shows(page, "#events", "Started").await?;
    ensure!(!page.current_url().await?.as_str().contains("token"), "the token stays in the address");

    // Live: a change in the cluster arrives without a reload.
    cluster.kubectl(&["-n", "hello", "scale", "deploy/hello", "--replicas=5"])?;
    shows(page, "#workloads", "5/5").await?;

    // The log of a pod, as it grows.
    page.find(Locator::Css("#filter")).await?.send_keys("hello").await?;
    page.find(Locator::Css("#pods tbody tr.pick")).await?.click().await?;
    shows(page, "#logs-of", "hello/hello-").await?;
    let pods = cluster.get(&["-n", "hello", "pods", "-l", "app=hello"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let ip = pod["status"]["podIP"].as_str().context("podIP")?;
        coracle_e2e::curl(&format!("http://{ip}:8080/"))?;
    }
    shows(page, "#lines", "request 1").await?;
    if let Some(folder) = std::env::var_os("CORACLE_PICTURES") {
        std::fs::write(std::path::Path::new(&folder).join("dashboard.png"), page.screenshot().await?)?;
    }
    Ok(())
}

/// Row: look: the web page at /ui shows nodes, workloads, pods, events and logs live, to whoever signs in with a token
#[test]
fn the_web_page_shows_a_cluster_live() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    hello::deploy(&cluster)?;
    let browser = Browser::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let page = browser.open().await?;
        let looked = look(&cluster, &page).await;
        let closed = page.close().await;
        looked?;
        anyhow::Ok(closed?)
    })?;
    drop(browser);
    cluster.stop()
}

/// Row: look: coracle top shows nodes and pods in a terminal, and leaves at a key
#[test]
fn the_terminal_shows_a_cluster() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    hello::deploy(&cluster)?;
    let typescript = cluster.file("typescript", "")?;
    // A terminal of its own; the key comes once the pods must have been drawn.
    let line = format!("stty rows 40 cols 160; {} top", cluster.program().display());
    let keys =
        format!("for i in $(seq 300); do grep -q hello- {typescript} && break; sleep 0.1; done; printf q");
    let shell = format!("{{ {keys}; }} | script -qefc {line:?} {typescript} > /dev/null");
    let out = succeed(
        Command::new("timeout")
            .args(["60", "sh", "-c", &shell])
            .env("KUBECONFIG", cluster.data_dir().join("kubeconfig"))
            .env("TERM", "xterm-256color"),
    );
    let screen = String::from_utf8_lossy(&std::fs::read(&typescript)?).into_owned();
    out.with_context(|| format!("coracle top showed {screen:?}"))?;
    for word in ["Coracle", "node-1", "Ready", "hello-", "Running"] {
        ensure!(screen.contains(word), "no {word} in {screen:?}");
    }
    cluster.stop()
}
