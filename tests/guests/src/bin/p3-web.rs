//! A wasi:http handler of WASI 0.3, whose body comes in two pieces after its head.

use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response};

wasip3::http::service::export!(Web);

struct Web;

impl wasip3::exports::http::handler::Guest for Web {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let method = match request.get_method() {
            Method::Get => "GET",
            _ => "another method",
        };
        let path = request.get_path_with_query().unwrap_or_default();
        let (mut body, receive) = wasip3::wit_stream::new();
        let (ended, end) = wasip3::wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(receive), end);
        let first = format!("{method} {path}, ").into_bytes();
        wasip3::wit_bindgen::spawn_local(async move {
            body.write_all(first).await;
            wasip3::clocks::monotonic_clock::wait_for(20_000_000).await;
            body.write_all(b"in two pieces".to_vec()).await;
            drop(body);
            drop(ended);
        });
        Ok(response)
    }
}

fn main() {}
