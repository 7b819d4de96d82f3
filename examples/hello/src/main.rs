//! Answers with the pod's name, a greeting from the ConfigMap and how many requests this instance has seen.
use std::sync::atomic::{AtomicU64, Ordering};

use coracle_sdk::{Request, Response, Result, handler, pod, text};

static REQUESTS: AtomicU64 = AtomicU64::new(0);

#[handler]
async fn hello(_: Request) -> Result<Response> {
    let greeting = pod::setting("GREETING").unwrap_or_else(|| "hello".into());
    let count = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    println!("request {count}");
    Ok(text(format!("{greeting} from {} (request {count})\n", pod::name())))
}
