//! A wasi:http handler whose pages exist as long as files do: `/is/NAME` answers 200 while `$DIR/NAME` is there and 503
//! otherwise, `/not/NAME` the other way round; `/on/NAME` and `/off/NAME` make and remove it. Anything else answers with the pod's name.

use wstd::http::{Body, Error, Request, Response, StatusCode};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let dir = std::env::var("DIR").unwrap_or_else(|_| "/state".into());
    let path = request.uri().path().to_owned();
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
