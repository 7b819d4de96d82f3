//! A wasi:http handler whose pages exist as long as files do: `/is/NAME` answers 200 while `$DIR/NAME` is there and 503
//! otherwise, `/not/NAME` the other way round; `/on/NAME` and `/off/NAME` make and remove it. gRPC's health service says of the service
//! NAME that it serves while `$DIR/NAME` is there. Anything else answers with the pod's name.

use wstd::http::{
    Body, Error, HeaderMap, Request, Response, StatusCode,
    body::{Bytes, util::{BodyExt, Full}},
};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let dir = std::env::var("DIR").unwrap_or_else(|_| "/state".into());
    let path = request.uri().path().to_owned();
    if path == "/grpc.health.v1.Health/Check" {
        return health(&dir, request).await;
    }
    let (verb, name) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let file = std::path::Path::new(&dir).join(name);
    let done = match verb {
        "is" => file.exists(),
        "not" => !file.exists(),
        "on" => std::fs::write(file, "").is_ok(),
        "off" => std::fs::remove_file(file).is_ok(),
        _ => true,
    };
    let mut response = Response::new(Body::from(std::env::var("HOSTNAME").unwrap_or_default()));
    if !done {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// One message in, one out, and the trailer that says that the call went well.
async fn health(dir: &str, request: Request<Body>) -> Result<Response<Body>, Error> {
    let asked = request.into_body().contents().await?.to_vec();
    // A byte and a length; then the name: a tag, a length, and its letters.
    let name = String::from_utf8(asked.get(7..).unwrap_or_default().to_vec())?;
    let serves = std::path::Path::new(dir).join(name).is_file();
    let mut last = HeaderMap::new();
    last.insert("grpc-status", "0".parse()?);
    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, if serves { 1 } else { 2 }]);
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(last))));
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(Body::from_http_body(body))?)
}
