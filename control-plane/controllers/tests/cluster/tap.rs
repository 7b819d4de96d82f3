//! A layer between a client and the server that sees each call, and lets a client die in the middle of one.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use coracle_apiserver::{ApiServer, InProcess, UserInfo};
use http::{Method, Request};
use kube::Client;
use kube::client::Body;
use tower::Service;

/// A call, as it goes out.
#[derive(Clone, Debug)]
pub struct Call {
    pub user: String,
    pub method: Method,
    /// With its query.
    pub path: String,
    pub content_type: String,
    pub body: Vec<u8>,
}

impl Call {
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }
}

/// What becomes of a call.
pub enum Fate {
    Pass,
    /// The server does it, and the answer is lost.
    Unanswered,
    /// It never reaches the server.
    Lost,
}

pub type Judge = Arc<dyn Fn(&Call) -> Fate + Send + Sync>;

#[derive(Clone)]
struct Tap {
    inner: InProcess,
    user: String,
    judge: Judge,
}

type Answer = <InProcess as Service<Request<Body>>>::Response;

impl Service<Request<Body>> for Tap {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap().to_vec();
            let header = parts.headers.get("content-type").map(|v| v.to_str().unwrap().to_string());
            let call = Call {
                user: this.user.clone(),
                method: parts.method.clone(),
                path: parts.uri.to_string(),
                content_type: header.unwrap_or_default(),
                body: body.clone(),
            };
            let fate = (this.judge)(&call);
            if matches!(fate, Fate::Lost) {
                return std::future::pending().await;
            }
            let answer = this.inner.call(Request::from_parts(parts, Body::from(body))).await;
            match fate {
                Fate::Pass => answer,
                _ => std::future::pending().await,
            }
        })
    }
}

/// A client of the server whose calls are judged.
pub fn client(server: &ApiServer, user: UserInfo, judge: &Judge) -> Client {
    let (name, inner) = (user.name.clone(), server.service_as(user));
    Client::new(Tap { inner, user: name, judge: judge.clone() }, "default")
}
