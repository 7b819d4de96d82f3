//! A command of WASI 0.3: two tasks that wait for time, and print in turn.

wasip3::cli::command::export!(Command);

struct Command;

async fn wait(milliseconds: u64) {
    wasip3::clocks::monotonic_clock::wait_for(milliseconds * 1_000_000).await;
}

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let arguments = wasip3::cli::environment::get_arguments();
        if arguments.iter().any(|argument| argument == "fail") {
            return Err(());
        }
        let (mut send, receive) = wasip3::wit_stream::new();
        let (told, tell) = wasip3::wit_stream::new::<u8>();
        wasip3::wit_bindgen::spawn_local(async move {
            wait(100).await;
            drop(told);
        });
        wasip3::wit_bindgen::spawn_local(async move {
            send.write_all(b"first\n".to_vec()).await;
            tell.collect().await;
            send.write_all(b"second\n".to_vec()).await;
            let rest = arguments.get(1..).unwrap_or_default().join(" ");
            send.write_all(format!("third {rest}\n").into_bytes()).await;
        });
        wasip3::cli::stdout::write_via_stream(receive).await.map_err(|_| ())
    }
}

fn main() {}
