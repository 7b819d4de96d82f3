//! `/exec`, `/attach`, `/portForward` and `/run`: the runtime says where its streaming server is, and the connection is
//! handed on to it byte for byte.

use axum::body::Body;
use axum::extract::{RawQuery, Request};
use coracle_cri_api::v1 as cri;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{HeaderMap, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::pods::state::{Phase, PodState};

const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);
/// How long `/run` waits for its command, in seconds.
const RUN_SECONDS: i64 = 300;

type Refusal = (StatusCode, String);

/// Which pod, and which container in it. The uid is one more part of the path where a caller gives it.
type Parts = Vec<(String, String)>;

fn refused(code: StatusCode, words: impl Into<String>) -> Refusal {
    (code, words.into() + "\n")
}

fn of_runtime(status: tonic::Status) -> Refusal {
    let code = match status.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        tonic::Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        tonic::Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refused(code, status.message())
}

/// The options of a call.
#[derive(Debug, Default, PartialEq)]
struct Options {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    ports: Vec<i32>,
}

fn options(query: Option<&str>) -> Result<Options, Refusal> {
    let on = |value: &str| matches!(value, "1" | "true");
    let mut options = Options::default();
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()).take(10_000) {
        match &*key {
            "command" => options.command.push(value.into_owned()),
            "cmd" => options.command.extend(value.split_whitespace().map(str::to_owned)),
            "input" | "stdin" => options.stdin = on(&value),
            "output" | "stdout" => options.stdout = on(&value),
            "error" | "stderr" => options.stderr = on(&value),
            "tty" => options.tty = on(&value),
            "port" => {
                let wrong = || refused(StatusCode::BAD_REQUEST, format!("invalid port {value:?}"));
                let ports = value.split(',').map(|p| p.parse::<u16>().map(i32::from).map_err(|_| wrong()));
                options.ports.extend(ports.collect::<Result<Vec<_>, _>>()?);
            }
            _ => {}
        }
    }
    // A terminal has one output.
    options.stderr &= !options.tty;
    Ok(options)
}

async fn find(shared: &Shared, parts: &Parts) -> Result<(Arc<Pod>, PodState), Refusal> {
    let of = |key: &str| parts.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v.as_str());
    let name = of("pod");
    let pod = shared.pods.find(of("namespace"), name);
    let pod = pod.ok_or_else(|| refused(StatusCode::NOT_FOUND, format!("pod \"{name}\" not found")))?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let state = shared.context.runtime.pod_state(&uid).await.map_err(of_runtime)?;
    Ok((pod, state))
}

async fn running(shared: &Shared, parts: &Parts) -> Result<String, Refusal> {
    let (_, state) = find(shared, parts).await?;
    let name = parts.iter().find(|(k, _)| k == "container").map_or("", |(_, v)| v.as_str());
    let found = state.newest(name).filter(|c| c.phase == Phase::Running);
    let words = || format!("container not found (\"{name}\"): it does not run");
    found.map(|c| c.id.clone()).ok_or_else(|| refused(StatusCode::NOT_FOUND, words()))
}

/// A command in a container.
pub async fn exec(
    State(shared): State<Shared>,
    Path(parts): Path<Parts>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let options = options(query.as_deref())?;
    if options.command.is_empty() {
        return Err(refused(
            StatusCode::BAD_REQUEST,
            "you must specify at least one command for the container",
        ));
    }
    let container_id = running(&shared, &parts).await?;
    let Options { command: cmd, stdin, stdout, stderr, tty, .. } = options;
    let asked = cri::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr };
    let url = shared.context.runtime.exec(asked).await.map_err(of_runtime)?;
    hand_on(&url, request).await
}

/// The streams of a container's own process.
pub async fn attach(
    State(shared): State<Shared>,
    Path(parts): Path<Parts>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let Options { stdin, stdout, stderr, tty, .. } = options(query.as_deref())?;
    let container_id = running(&shared, &parts).await?;
    let asked = cri::AttachRequest { container_id, stdin, tty, stdout, stderr };
    let url = shared.context.runtime.attach(asked).await.map_err(of_runtime)?;
    hand_on(&url, request).await
}

/// Ports of a pod.
pub async fn port_forward(
    State(shared): State<Shared>,
    Path(parts): Path<Parts>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, Refusal> {
    let options = options(query.as_deref())?;
    let (_, state) = find(&shared, &parts).await?;
    let sandbox = state.sandbox().filter(|s| s.ready);
    let sandbox = sandbox.ok_or_else(|| refused(StatusCode::BAD_REQUEST, "the pod does not run"))?;
    let asked = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port: options.ports };
    let url = shared.context.runtime.port_forward(asked).await.map_err(of_runtime)?;
    hand_on(&url, request).await
}

/// A command to its end; what it wrote is the answer.
pub async fn run(
    State(shared): State<Shared>,
    Path(parts): Path<Parts>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let options = options(query.as_deref())?;
    let container = running(&shared, &parts).await?;
    let done = shared.context.runtime.exec_sync(&container, options.command, RUN_SECONDS).await;
    let done = done.map_err(of_runtime)?;
    let code = if done.exit_code == 0 { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Ok((code, [done.stdout, done.stderr].concat()).into_response())
}

/// Sends the call to the streaming server, and joins both connections when it agrees to the upgrade.
async fn hand_on(url: &str, mut request: Request) -> Result<Response, Refusal> {
    let bad = |what: &dyn std::fmt::Display| {
        refused(StatusCode::BAD_GATEWAY, format!("the streaming server of the runtime: {what}"))
    };
    let uri: Uri = url.parse().map_err(|e| bad(&format!("address {url:?}: {e}")))?;
    let authority = uri.authority().ok_or_else(|| bad(&format!("address {url:?} has no host")))?.clone();
    let port = authority.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((authority.host().trim_matches(['[', ']']), port));
    let stream = tokio::time::timeout(CONNECT, stream).await.map_err(|e| bad(&e))?.map_err(|e| bad(&e))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| bad(&e))?;
    tokio::spawn(connection.with_upgrades());
    let client = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let mut onward = http::Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = uri.path_and_query().map_or_else(|| Uri::from_static("/"), |p| p.clone().into());
    *onward.headers_mut() = parts.headers;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|e| bad(&e))?;
    onward.headers_mut().insert(HOST, host);
    let mut answer = sender.send_request(onward).await.map_err(|e| bad(&e))?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer.map(Body::new));
    }
    let mut back = Response::new(Body::empty());
    *back.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *back.headers_mut() = upgraded(answer.headers());
    let runtime = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let (client, runtime) = match tokio::try_join!(client, runtime) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
        };
        coracle_streaming::relay(TokioIo::new(client), TokioIo::new(runtime)).await;
    });
    Ok(back)
}

fn upgraded(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if !headers.contains_key(UPGRADE) {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_kubelets_and_of_clients() {
        let read = |query: &str| options(Some(query)).map_err(|(code, _)| code);
        let expected = Options {
            command: vec!["sh".into(), "-c".into(), "a b".into()],
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        assert_eq!(read("command=sh&command=-c&command=a%20b&input=1&output=1&error=0"), Ok(expected));
        assert_eq!(read("tty=1&error=1").map(|o| (o.tty, o.stderr)), Ok((true, false)));
        assert_eq!(read("port=80,81&port=82").map(|o| o.ports), Ok(vec![80, 81, 82]));
        assert_eq!(read("port=x"), Err(StatusCode::BAD_REQUEST));
    }
}
