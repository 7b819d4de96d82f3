//! Probes: startup, then liveness and readiness, each a task that sends what it decides.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Which probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events begin.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Liveness => "Liveness",
            Kind::Readiness => "Readiness",
        }
    }
}

/// What one probe says.
#[derive(Debug)]
pub struct Verdict {
    pub container: String,
    pub id: String,
    pub kind: Kind,
    /// Set when a threshold is reached.
    pub decided: Option<bool>,
    /// Why this one attempt failed.
    pub failure: Option<String>,
}

/// Starts the probes of a container that runs.
pub fn start(
    container: &Container,
    id: &str,
    ip: &str,
    verdicts: &mpsc::Sender<Verdict>,
) -> Vec<AbortHandle> {
    let (container, id, ip, verdicts) = (container.clone(), id.to_owned(), ip.to_owned(), verdicts.clone());
    if container.startup_probe.is_none()
        && container.liveness_probe.is_none()
        && container.readiness_probe.is_none()
    {
        return Vec::new();
    }
    let task = tokio::spawn(async move {
        let runner = Runner { container: &container, id: &id, ip: &ip, verdicts: &verdicts };
        if let Some(probe) = &container.startup_probe
            && !runner.run(probe, Kind::Startup).await
        {
            return;
        }
        let one = |probe: Option<Probe>, kind| {
            let runner = &runner;
            async move {
                if let Some(probe) = probe {
                    runner.run(&probe, kind).await;
                }
            }
        };
        tokio::join!(
            one(container.liveness_probe.clone(), Kind::Liveness),
            one(container.readiness_probe.clone(), Kind::Readiness),
        );
    });
    vec![task.abort_handle()]
}

struct Runner<'a> {
    container: &'a Container,
    id: &'a str,
    ip: &'a str,
    verdicts: &'a mpsc::Sender<Verdict>,
}

impl Runner<'_> {
    /// Probes for ever; a startup probe ends with its verdict, which is returned.
    async fn run(&self, probe: &Probe, kind: Kind) -> bool {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|one| u64::try_from(one).ok()).unwrap_or(default))
        };
        let (period, timeout) = (
            seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            seconds(probe.timeout_seconds, 1),
        );
        let threshold = |value: Option<i32>, default| value.unwrap_or(default).max(1);
        let (to_fail, to_succeed) =
            (threshold(probe.failure_threshold, 3), threshold(probe.success_threshold, 1));
        tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
        let (mut failures, mut successes, mut last) = (0, 0, None);
        if kind == Kind::Readiness {
            self.send(kind, Some(false), None).await;
        }
        loop {
            let outcome =
                tokio::time::timeout(timeout.max(Duration::from_millis(1)), self.attempt(probe)).await;
            let outcome = outcome.unwrap_or_else(|_| Err("context deadline exceeded".to_owned()));
            let failure = outcome.err();
            if failure.is_some() {
                (failures, successes) = (failures + 1, 0)
            } else {
                (failures, successes) = (0, successes + 1)
            }
            let now = if failures >= to_fail {
                Some(false)
            } else if successes >= to_succeed {
                Some(true)
            } else {
                None
            };
            let decided = now.filter(|_| now != last);
            if now.is_some() {
                last = now;
            }
            if failure.is_some() || decided.is_some() {
                self.send(kind, decided, failure).await;
            }
            if let (Kind::Startup, Some(verdict)) = (kind, decided) {
                return verdict;
            }
            tokio::time::sleep(period).await;
        }
    }

    async fn send(&self, kind: Kind, decided: Option<bool>, failure: Option<String>) {
        let (container, id) = (self.container.name.clone(), self.id.to_owned());
        // The worker has ended: so will this task.
        let _ = self.verdicts.send(Verdict { container, id, kind, decided, failure }).await;
    }

    async fn attempt(&self, probe: &Probe) -> Result<(), String> {
        if let Some(http) = &probe.http_get {
            return self.http(http).await;
        }
        if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().unwrap_or(self.ip);
            let port = self.port(&tcp.port)?;
            return TcpStream::connect((host, port))
                .await
                .map(drop)
                .map_err(|e| format!("dial tcp {host}:{port}: {e}"));
        }
        Err("exec and gRPC probes are not supported yet".to_owned())
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        match port {
            IntOrString::Int(number) => {
                u16::try_from(*number).map_err(|_| format!("port {number} is out of range"))
            }
            IntOrString::String(name) => {
                let ports: BTreeMap<_, _> = self
                    .container
                    .ports
                    .iter()
                    .flatten()
                    .filter_map(|one| Some((one.name.as_deref()?, u16::try_from(one.container_port).ok()?)))
                    .collect();
                ports
                    .get(name.as_str())
                    .copied()
                    .ok_or_else(|| format!("the container has no port named {name:?}"))
            }
        }
    }

    async fn http(&self, action: &HTTPGetAction) -> Result<(), String> {
        use http_body_util::Empty;
        use hyper::body::Bytes;
        if action.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
            return Err("HTTPS probes are not supported yet".to_owned());
        }
        let host = action.host.as_deref().unwrap_or(self.ip);
        let port = self.port(&action.port)?;
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|e| format!("Get \"http://{host}:{port}\": {e}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())?;
        let driver = tokio::spawn(connection);
        let path = action.path.as_deref().unwrap_or("/");
        let mut request =
            http::Request::get(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
                .header("user-agent", "kube-probe/1.36")
                .header("accept", "*/*");
        let mut named = false;
        for header in action.http_headers.iter().flatten() {
            named |= header.name.eq_ignore_ascii_case("host");
            request = request.header(&header.name, &header.value);
        }
        if !named {
            request = request.header("host", format!("{host}:{port}"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string());
        driver.abort();
        match answer?.status().as_u16() {
            200..=399 => Ok(()),
            code => Err(format!("HTTP probe failed with statuscode: {code}")),
        }
    }
}
