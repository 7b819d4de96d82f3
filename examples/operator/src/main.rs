//! Two operators in one program, each a wasm pod: `operator websites` and `operator training-jobs`.
//!
//! An operator lists its objects, brings the world to what they say, and waits on a watch for the next change.

mod api;
mod training_job;
mod website;

use std::time::Duration;

use api::{Api, Error};
use serde_json::Value;

/// What an operator does for one kind.
trait Kind {
    /// Where its objects are, in all namespaces.
    const PATH: &'static str;

    /// Brings the world to what an object says, and the object's status to what the world is.
    async fn reconcile(api: &Api, object: &Value) -> Result<(), Error>;
}

/// What nobody watches (a pod that ends) is seen after this time.
const RESYNC_SECONDS: u32 = 2;

#[wstd::main]
async fn main() {
    let which = std::env::args().nth(1).unwrap_or_default();
    println!("operator {which} starts");
    match which.as_str() {
        "websites" => run::<website::Website>().await,
        "training-jobs" => run::<training_job::TrainingJob>().await,
        _ => {
            eprintln!("usage: operator websites|training-jobs");
            std::process::exit(2);
        }
    }
}

async fn run<K: Kind>() {
    let api = Api::in_cluster();
    loop {
        if let Err(error) = round::<K>(&api).await {
            eprintln!("{}: {error}", K::PATH);
            wstd::task::sleep(Duration::from_secs(1).into()).await;
        }
    }
}

/// One look at everything, and the wait for the next change.
async fn round<K: Kind>(api: &Api) -> Result<(), Error> {
    let list = api.get(K::PATH).await?;
    for object in list["items"].as_array().into_iter().flatten() {
        if let Err(error) = K::reconcile(api, object).await {
            let name = &object["metadata"]["name"];
            eprintln!("{}: {name}: {error}", K::PATH);
        }
    }
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("0");
    api.changed(K::PATH, revision, RESYNC_SECONDS).await
}
