//! GETs a page as the kubelet's probes and hooks do: redirects are followed on the same host, certificates are not checked.

use http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT,
};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{MAX_BODY, Target, tls};
use crate::probes::port;

/// Requests for one look, redirects included.
const MAX_REQUESTS: usize = 10;

/// The last answer, of which no body was read yet: no redirect, or one to another host.
pub struct Answer {
    /// The status code.
    pub status: u16,
    location: Option<String>,
    body: Incoming,
    _connection: AbortOnDrop,
}

impl Answer {
    /// The beginning of the body, or why it broke off. It waits for what stalls.
    pub async fn beginning(mut self) -> Result<String, String> {
        let mut read = Vec::new();
        while read.len() < MAX_BODY
            && let Some(frame) = self.body.frame().await
        {
            let frame = frame.map_err(|e| e.to_string())?;
            read.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        }
        read.truncate(MAX_BODY);
        Ok(String::from_utf8_lossy(&read).into_owned())
    }
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// What was asked by TLS answers without.
    Plain(String),
    /// For people.
    Other(String),
}

impl From<Failure> for String {
    fn from(failure: Failure) -> String {
        match failure {
            Failure::Plain(words) | Failure::Other(words) => words,
        }
    }
}

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    secure: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl Url {
    fn authority(&self) -> String {
        let Url { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Where a `Location` leads from here.
    fn follow(&self, location: &str) -> Result<Url, String> {
        let location = location.split('#').next().unwrap_or_default();
        let absolute = is_absolute(location);
        let wrong = || format!("failed to parse Location header {location:?}");
        if !absolute && !location.starts_with("//") {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let path = match location.as_bytes().first() {
                Some(b'/') => location.to_owned(),
                Some(b'?') => format!("{path}{location}"),
                _ => format!("{folder}/{location}"),
            };
            return Ok(Url { path: direct(&request_path(&path)), ..self.clone() });
        }
        let scheme = if self.secure { "https:" } else { "http:" };
        let full = if absolute { location.to_owned() } else { format!("{scheme}{location}") };
        let (scheme, rest) = full.split_once("://").ok_or_else(wrong)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(format!("unsupported protocol scheme {scheme:?}")),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let authority: http::uri::Authority = authority.parse().map_err(|_| wrong())?;
        Ok(Url {
            secure,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            path: request_path(path),
        })
    }
}

/// Whether a `Location` names a scheme.
fn is_absolute(location: &str) -> bool {
    location.split(['/', '?']).next().is_some_and(|first| first.ends_with(':'))
}

/// Pure: what stands in a request for a path of a manifest, which may lack its slash, hold what has to be escaped, and have
/// a query. One with a broken escape is no URL: all of it is a path.
fn request_path(path: &str) -> String {
    let plain = path.split('#').next().unwrap_or_default();
    let (of_path, query) = plain.split_once('?').map_or((plain, None), |(path, query)| (path, Some(query)));
    let broken = of_path
        .split('%')
        .skip(1)
        .any(|rest| !rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
    let (of_path, query) = if broken { (path, None) } else { (of_path, query) };
    let mut made = String::with_capacity(path.len() + 1);
    if !of_path.starts_with('/') {
        made.push('/');
    }
    let stays = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@/[]".contains(&byte);
    escape(&mut made, of_path, |byte| stays(byte) || byte == b'%' && !broken);
    if let Some(query) = query {
        made.push('?');
        escape(&mut made, query, |byte| byte.is_ascii_graphic() && !b"\"<>".contains(&byte));
    }
    made
}

fn escape(made: &mut String, text: &str, stays: impl Fn(u8) -> bool) {
    for byte in text.bytes() {
        if stays(byte) {
            made.push(char::from(byte));
        } else {
            made.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// Pure: the same path without `.` and `..`.
fn direct(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let mut parts: Vec<&str> = Vec::new();
    let mut all = path.split('/').skip(1).peekable();
    while let Some(part) = all.next() {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
        if matches!(part, "." | "..") && all.peek().is_none() {
            parts.push("");
        }
    }
    format!("/{}{query}", parts.join("/"))
}

/// Asks, and follows redirects. `purpose` is `probe` or `lifecycle`: how the agent calls itself.
pub async fn get(get: &HTTPGetAction, target: &Target<'_>, purpose: &str) -> Result<Answer, Failure> {
    let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.ip);
    let port = port(target.spec, &get.port)
        .ok_or_else(|| Failure::Other("the probe's port does not exist".to_owned()))?;
    let path = request_path(get.path.as_deref().unwrap_or_default());
    let secure = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let headers = headers(get, purpose).map_err(Failure::Other)?;
    ask(Url { secure, host: host.to_owned(), port, path }, headers).await
}

/// The same without TLS, and without what is for a server that proves who it is.
pub async fn get_plain(
    action: &HTTPGetAction,
    target: &Target<'_>,
    purpose: &str,
) -> Result<Answer, Failure> {
    let mut plain = HTTPGetAction { scheme: None, ..action.clone() };
    plain
        .http_headers
        .iter_mut()
        .for_each(|h| h.retain(|h| !h.name.eq_ignore_ascii_case(AUTHORIZATION.as_str())));
    get(&plain, target, purpose).await
}

fn headers(get: &HTTPGetAction, purpose: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for header in get.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&header.name)
            .map_err(|_| format!("invalid header name {:?}", header.name))?;
        let value = HeaderValue::try_from(&header.value)
            .map_err(|_| format!("invalid value of header {:?}", header.name))?;
        headers.append(name, value);
    }
    let own = HeaderValue::try_from(format!("kube-{purpose}/1.36")).map_err(|e| e.to_string())?;
    headers.entry(USER_AGENT).or_insert(own);
    if headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*")).is_empty() {
        headers.remove(ACCEPT);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

async fn ask(first: Url, mut headers: HeaderMap) -> Result<Answer, Failure> {
    let mut named = headers.remove(HOST).filter(|host| !host.is_empty());
    let mut url = first.clone();
    for _ in 0..MAX_REQUESTS {
        let answer = once(&url, &headers, named.as_ref()).await?;
        let redirects = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = answer.location.as_deref().filter(|_| redirects) else {
            return Ok(answer);
        };
        let next = url.follow(location).map_err(|e| Failure::Other(format!("Get \"{url}\": {e}")))?;
        if next.host != first.host {
            return Ok(answer);
        }
        if is_absolute(location) {
            named = None;
        }
        url = next;
    }
    Err(Failure::Other(format!("Get \"{url}\": stopped after {MAX_REQUESTS} redirects")))
}

async fn once(url: &Url, headers: &HeaderMap, named: Option<&HeaderValue>) -> Result<Answer, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Other(format!("Get \"{url}\": {e}"));
    let mut request = http::Request::get(url.path.as_str());
    if let Some(all) = request.headers_mut() {
        all.clone_from(headers);
        let host = HeaderValue::try_from(url.authority()).map_err(|e| failed(&e))?;
        all.insert(HOST, named.cloned().unwrap_or(host));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
    let stream = super::connect(&url.host, url.port).await.map_err(|e| failed(&e))?;
    if !url.secure {
        return send(request, stream).await.map_err(|e| failed(&e));
    }
    let stream = tls::connect(&url.host, stream).await.map_err(|e| {
        let plain = tls::is_plain(&e);
        let words =
            if plain { "http: server gave HTTP response to HTTPS client".to_owned() } else { e.to_string() };
        let words = format!("Get \"{url}\": {words}");
        if plain { Failure::Plain(words) } else { Failure::Other(words) }
    })?;
    send(request, stream).await.map_err(|e| failed(&e))
}

async fn send(
    request: http::Request<Empty<Bytes>>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Answer, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = AbortOnDrop(tokio::spawn(connection).abort_handle());
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let location = location.filter(|l| !l.is_empty()).map(str::to_owned);
    Ok(Answer { status, location, body: response.into_body(), _connection: connection })
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
