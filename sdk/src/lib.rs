//! Write a Coracle pod in a few lines.
//!
//! ```ignore
//! use coracle_sdk::{Request, Response, Result, handler, text};
//!
//! #[handler]
//! async fn hello(_: Request) -> Result<Response> {
//!     Ok(text("hello\n"))
//! }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "observe")]
pub mod observe;
pub mod pod;

use std::future::Future;

pub use coracle_sdk_macros::handler;
pub use wstd;
pub use wstd::http::{Body, Error};

use wstd::__internal::wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wstd::http::server::Responder;

/// A request to this pod; its body streams.
pub type Request = wstd::http::Request<Body>;
/// The answer; its body may stream.
pub type Response = wstd::http::Response<Body>;
/// What a handler returns.
pub type Result<T> = std::result::Result<T, Error>;

/// An answer of plain text, status 200.
pub fn text(body: impl Into<String>) -> Response {
    Response::new(body.into().into())
}

/// Runs one request; called by the code that [`handler`] writes.
#[doc(hidden)]
pub fn respond<F>(request: IncomingRequest, out: ResponseOutparam, handler: impl FnOnce(Request) -> F)
where
    F: Future<Output = Result<Response>>,
{
    let responder = Responder::new(out);
    wstd::runtime::block_on(async move {
        let answer = match wstd::http::request::try_from_incoming(request) {
            Ok(request) => handler(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => {
                if let Err(error) = responder.respond(response).await {
                    eprintln!("send the response: {error:?}");
                }
            }
            Err(error) => {
                eprintln!("handler: {error:?}");
                responder.fail(error);
            }
        }
    })
}
