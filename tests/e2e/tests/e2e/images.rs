//! Images on their way: archives, commands beside a program, pulls that take long. Profile: loopback.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Ended, eventually, guest_file};
use serde_json::json;
use sha2::Digest as _;

use super::pods::{SOON, apply, cluster, has, status, steps};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

/// A registry with one component that stops in the middle of it until it is told to go on.
struct Slow {
    address: SocketAddr,
    go_on: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn start(wasm: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let slow = Self { address: listener.local_addr()?, go_on: Arc::default() };
        let (wasm, go_on) = (Arc::new(wasm), slow.go_on.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (wasm, go_on) = (wasm.clone(), go_on.clone());
                std::thread::spawn(move || answer(stream, &wasm, &go_on));
            }
        });
        Ok(slow)
    }

    fn go_on(&self) {
        *self.go_on.0.lock().unwrap() = true;
        self.go_on.1.notify_all();
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.go_on();
    }
}

fn answer(mut stream: TcpStream, wasm: &[u8], go_on: &(Mutex<bool>, Condvar)) -> Result<()> {
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "size": 2, "digest": digest(b"{}")},
        "layers": [{"mediaType": "application/wasm", "size": wasm.len(), "digest": digest(wasm)}]})
    .to_string();
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().context("a request")??.split(' ').nth(1).unwrap_or_default().to_owned();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let body = match path.as_str() {
        "/v2/" => b"",
        path if path.contains("/manifests/") => manifest.as_bytes(),
        path if path.ends_with(&digest(b"{}")) => b"{}",
        _ => wasm,
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")?;
    let (first, rest) = body.split_at(if length > 4096 { length / 2 } else { length });
    stream.write_all(first)?;
    stream.flush()?;
    if !rest.is_empty() {
        let _told = go_on.1.wait_while(go_on.0.lock().unwrap(), |told| !*told).unwrap();
        stream.write_all(rest)?;
    }
    Ok(())
}

/// Row: images: archives are exported and imported, commands pushed beside a program, and a slow pull tells how far it is
/// Profile: loopback
#[test]
fn images_are_moved_as_archives_and_pulls_tell_how_far_they_are() -> Result<Ended> {
    let (mut cluster, node) = cluster(&[])?;
    let slow = Slow::start(std::fs::read(guest_file("steps")?)?)?;
    let mut late = steps(&node, "late", "Never", &["print here at last"]);
    late["spec"]["containers"][0]["image"] = format!("{}/slow:v1", slow.address).into();
    apply(&cluster, &[late])?;

    let [program, tool] = ["switch", "steps"].map(|guest| {
        let copy = cluster.data_dir().with_file_name(format!("{guest}.wasm"));
        guest_file(guest)
            .and_then(|built| Ok(std::fs::copy(built, &copy)?))
            .map(|_| copy.display().to_string())
    });
    let (program, tool) = (program?, tool?);
    cluster.coracle(&["image", "push", &program, "app:v1", "--command", &format!("tool={tool}")])?;
    let archive = cluster.data_dir().with_file_name("app.tar").display().to_string();
    has(&cluster.coracle(&["image", "export", "app:v1", &archive])?, &["exported app:v1"])?;
    let listed = coracle_e2e::succeed(std::process::Command::new("tar").args(["-tf", &archive]))?;
    has(&listed, &["oci-layout", "index.json", "blobs/sha256/"])?;
    has(&cluster.coracle(&["image", "import", &archive, "--tag", "copy:v2"])?, &["imported copy:v2"])?;
    let web = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "copy:v2", "ports": [{"containerPort": 8080}]}]},
    });
    apply(&cluster, &[web])?;
    status(&cluster, "web", "runs", |s| s["phase"] == "Running")?;
    let said = cluster.kubectl(&["exec", "web", "--", "tool", "print from a command"])?;
    ensure!(said == "from a command\n", "{said}");

    // One byte that is another one, somewhere in the component.
    let mut bytes = std::fs::read(&archive)?;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&archive, bytes)?;
    let refused = cluster.command(cluster.program()).args(["image", "import", &archive]).output()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success(), "an archive that was tampered with was taken");
    has(&words, &["app.tar", "has content with digest"])?;

    let mut described = String::new();
    eventually("a pull that takes long says how far it is", SOON, || {
        described = cluster.kubectl(&["describe", "pod", "late"])?;
        Ok(described.contains("MB of ") || described.contains("kB of "))
    })
    .with_context(|| described.clone())?;
    let line = described.lines().find(|l| l.contains("B of ")).unwrap_or_default();
    has(line, &["Pulling", "Pulling image \"127.0.0.1:", "/slow:v1\": ", "%)"])?;
    slow.go_on();
    status(&cluster, "late", "ends", |s| s["phase"] == "Succeeded")?;
    has(&cluster.kubectl(&["logs", "late"])?, &["here at last"])?;
    cluster.stop()
}
