//! Recognises shapes drawn on 8x8 cells: POST a drawing to /infer. The model runs in the host, through wasi:nn.
mod model;

use coracle_sdk::wstd::http::{Method, StatusCode};
use coracle_sdk::{Request, Response, Result, handler, text};

/// What the model tells apart, in the order of its outputs.
const CLASSES: [&str; 4] = ["circle", "cross", "square", "triangle"];

#[handler]
async fn infer(mut request: Request) -> Result<Response> {
    if request.uri().path() != "/infer" || request.method() != Method::POST {
        return Ok(text("POST eight lines of eight cells, # or ., to /infer\n"));
    }
    // A drawing is 64 cells: whoever sends much more is not read to the end.
    if request.headers().get("content-length").and_then(|l| l.to_str().ok()?.parse().ok()) > Some(4096) {
        return answer(StatusCode::PAYLOAD_TOO_LARGE, "a drawing has 64 cells\n".into());
    }
    let drawing = request.body_mut().str_contents().await?.to_owned();
    let cells: Vec<f32> = drawing
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| if c == '#' { 1.0 } else { 0.0 })
        .collect();
    if cells.len() != 64 {
        let words = format!("a drawing has 64 cells, and this one {}\n", cells.len());
        return answer(StatusCode::BAD_REQUEST, words);
    }
    match model::run(&cells) {
        Ok(probabilities) => answer(StatusCode::OK, report(&probabilities)),
        Err(why) => answer(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

/// The answer as JSON, the class first.
fn report(probabilities: &[f32]) -> String {
    let named: Vec<_> = CLASSES.iter().zip(probabilities).collect();
    let class = named.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or("none", |(class, _)| class);
    let each: Vec<_> = named.iter().map(|(class, p)| format!("\"{class}\":{p:.4}")).collect();
    format!("{{\"class\":\"{class}\",\"probabilities\":{{{}}}}}\n", each.join(","))
}

fn answer(status: StatusCode, body: String) -> Result<Response> {
    let mut response = text(body);
    *response.status_mut() = status;
    Ok(response)
}
