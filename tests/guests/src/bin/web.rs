//! A wasi:http handler that does what the path says.

use wstd::{
    http::{Body, Client, Error, Request, Response, StatusCode, body::Bytes},
    time::Duration,
};

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    match path.as_str() {
        "/trap" => panic!("as asked"),
        "/exit" => std::process::exit(3),
        "/spin" => loop {
            std::hint::black_box(0);
        },
        "/grow" => {
            let mut kept = Vec::new();
            for _ in 0..query.parse::<usize>().unwrap_or(0) {
                kept.push(vec![1u8; 1 << 20]);
            }
            text(format!("grown {}", kept.len()))
        }
        "/sleep" => {
            wstd::task::sleep(Duration::from_millis(query.parse().unwrap_or(0))).await;
            text("slept".into())
        }
        "/length" => {
            let mut body = request.into_body();
            let length = body.contents().await?.len();
            text(length.to_string())
        }
        "/echo" => Ok(Response::new(request.into_body())),
        "/big" => {
            let size = query.parse().unwrap_or(0);
            Ok(Response::new(Body::from(Bytes::from(vec![b'x'; size]))))
        }
        "/print" => {
            println!("{query}");
            text("printed".into())
        }
        "/fetch" => fetch(&query).await,
        "/args" => text(std::env::args().collect::<Vec<_>>().join(" ")),
        "/env" => text(std::env::var(&query).unwrap_or_default()),
        _ => text(format!("hello from {}\n", std::env::var("POD").unwrap_or_default())),
    }
}

async fn fetch(url: &str) -> Result<Response<Body>, Error> {
    let answer = match Request::get(url).body(Body::empty()) {
        Ok(request) => Client::new().send(request).await,
        Err(error) => return text(format!("error {error}")),
    };
    match answer {
        Ok(mut response) => {
            let status = response.status();
            let body = response.body_mut().str_contents().await?.to_owned();
            text(format!("{} {body}", status.as_u16()))
        }
        Err(error) => {
            let mut response = Response::new(Body::from(format!("error {error:?}")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            Ok(response)
        }
    }
}

fn text(words: String) -> Result<Response<Body>, Error> {
    Ok(Response::new(Body::from(words)))
}
