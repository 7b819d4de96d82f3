use coracle_store::{Options, Store, conformance};

fn options(dir: &std::path::Path, history: u64) -> Options {
    Options { history, ..Options::new(dir) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory() {
    conformance::all(async |history| Store::in_memory(&options("unused".as_ref(), history))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    conformance::all(async |history| {
        next.set(next.get() + 1);
        Store::open(options(&dir.path().join(next.get().to_string()), history)).await.unwrap()
    })
    .await;
}
