//! What any CRI v1 runtime has to do, as a suite that is run over an endpoint: ours, or a peer's.
//!
//! A check is a function; [`run`] carries all of them out and reports each by name. Nothing here knows wasm: programs are
//! given as images with commands.

mod checks;
pub mod containerd;
mod pod;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_cri_api::v1::image_service_client::ImageServiceClient;
use coracle_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

pub use pod::Pod;

/// How to start a program that does one thing.
#[derive(Clone, Debug)]
pub struct Program {
    pub image: String,
    pub command: Vec<String>,
}

/// The programs that the suite needs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Writes the line `out` to stdout and `err` to stderr and exits with `failure`.
    pub speaks_and_fails: Program,
    /// Not 0.
    pub failure: i32,
    /// Sleeps for ever.
    pub sleeps: Program,
    /// Writes the line `shared` to a new file `note` below its mount `/data` and exits with 0.
    pub writes_note: Program,
    /// Prints the file `/data/note` and exits with 0; without it, exits with something else.
    pub reads_note: Program,
}

/// A runtime to be examined.
pub struct Target {
    /// `unix:///path`.
    pub endpoint: String,
    /// The runtime handler of its pods; empty: the default one.
    pub handler: String,
    pub programs: Programs,
    /// A folder for logs and volumes, the runtime's user can write there.
    pub scratch: PathBuf,
    /// A name that no registry has.
    pub absent_image: String,
    /// It tells events; one that does not (containerd before 1.7) has to refuse the call as unimplemented.
    pub events: bool,
    /// The control group that pods are below; empty: the runtime's own choice.
    pub cgroup_parent: String,
}

/// What came of one check.
#[derive(Debug)]
pub struct Outcome {
    pub check: &'static str,
    pub took: Duration,
    /// `Err` says what was expected and what came.
    pub result: anyhow::Result<()>,
}

/// The clients that checks share, and the target.
pub struct Suite {
    pub target: Target,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

/// Connects to an endpoint, for one check or all.
pub async fn connect(target: Target) -> anyhow::Result<Suite> {
    let channel = coracle_cri_api::connect(&target.endpoint).await?;
    Ok(Suite {
        runtime: RuntimeServiceClient::new(channel.clone())
            .max_decoding_message_size(coracle_cri_api::MAX_MESSAGE_BYTES),
        images: ImageServiceClient::new(channel),
        target,
    })
}

/// Every check, one after another; each cleans up after itself.
pub async fn run(suite: &Suite) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    macro_rules! check {
        ($($name:ident),* $(,)?) => {$(
            let started = Instant::now();
            let limit = Duration::from_secs(120);
            let result = match tokio::time::timeout(limit, checks::$name(suite)).await {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("not done after {limit:?}")),
            };
            outcomes.push(Outcome { check: stringify!($name), took: started.elapsed(), result });
        )*};
    }
    check!(
        version_and_status,
        images_are_pulled_listed_and_removed,
        an_absent_image_is_an_error,
        sandboxes_live_and_die,
        sandboxes_are_filtered,
        addresses_are_unique,
        a_container_runs_and_exits,
        a_container_is_stopped,
        containers_of_a_pod_share_a_volume,
        containers_are_filtered,
        names_are_unique_in_a_pod,
        what_is_not_there_is_told,
        logs_are_reopened,
        events_are_told,
        statistics_are_measured,
    );
    outcomes
}
