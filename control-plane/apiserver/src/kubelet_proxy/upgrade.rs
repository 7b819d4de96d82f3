//! Connections that stop being HTTP (exec, attach, port-forward): after the node agreed, bytes are copied as they come.

use axum::body::Body;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

/// What a caller asks to upgrade to, and its side of the connection.
pub(crate) struct Asked {
    client: OnUpgrade,
    protocol: HeaderValue,
}

/// Takes the caller's side out of a call that asks for an upgrade.
pub(crate) fn asked(request: &mut Request<Body>) -> Option<Asked> {
    let wants = request.headers().get_all(CONNECTION).iter().any(|value| {
        let mut words = value.to_str().unwrap_or_default().split(',');
        words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
    });
    let protocol = request.headers().get(UPGRADE)?.clone();
    wants.then(|| Asked { client: hyper::upgrade::on(request), protocol })
}

impl Asked {
    /// Asks the node for the same.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
    }

    /// Joins both sides when the node agreed. The answer is what the caller reads before its side is joined.
    pub(crate) fn join(self, answer: &mut Response<Body>, mut node: Response<hyper::body::Incoming>) {
        let agreed = node.headers().get(UPGRADE).cloned().unwrap_or(self.protocol);
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        answer.headers_mut().insert(UPGRADE, agreed);
        let node = hyper::upgrade::on(&mut node);
        let client = self.client;
        tokio::spawn(async move {
            let (client, node) = match tokio::try_join!(client, node) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
            };
            coracle_streaming::relay(TokioIo::new(client), TokioIo::new(node)).await;
        });
    }
}
