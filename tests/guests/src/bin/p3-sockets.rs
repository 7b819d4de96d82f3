//! A command of WASI 0.3 that holds as many connections as it can: those that it makes (`connect HOST:PORT`), of each only
//! the stream of what it receives, or those that it accepts (`accept PORT`).

use wasip3::sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};

wasip3::cli::command::export!(Command);

struct Command;

async fn say(line: String) {
    let (mut send, receive) = wasip3::wit_stream::new();
    let told = wasip3::cli::stdout::write_via_stream(receive);
    send.write_all(format!("{line}\n").into_bytes()).await;
    drop(send);
    let _ = told.await;
}

fn address(text: &str) -> IpSocketAddress {
    let at: std::net::SocketAddrV4 = text.parse().unwrap();
    let [a, b, c, d] = at.ip().octets();
    IpSocketAddress::Ipv4(Ipv4SocketAddress { port: at.port(), address: (a, b, c, d) })
}

async fn connect(to: &str) {
    for round in ["first", "again"] {
        let mut held = Vec::new();
        while held.len() < 3000 {
            let socket = match TcpSocket::create(IpAddressFamily::Ipv4) {
                Ok(socket) => socket,
                // The host hears of what was let go when this gives it time.
                Err(_) if held.is_empty() => {
                    wasip3::clocks::monotonic_clock::wait_for(10_000_000).await;
                    continue;
                }
                Err(_) => break,
            };
            socket.connect(address(to)).await.unwrap();
            held.push(socket.receive());
        }
        say(format!("{round}: {}", held.len())).await;
    }
}

async fn accept(port: &str) {
    let socket = TcpSocket::create(IpAddressFamily::Ipv4).unwrap();
    socket.bind(address(&format!("0.0.0.0:{port}"))).unwrap();
    let mut accepted = socket.listen().unwrap();
    say("listens".into()).await;
    let mut held = Vec::new();
    while let Some(socket) = accepted.next().await {
        held.push(socket);
    }
}

impl wasip3::exports::cli::run::Guest for Command {
    async fn run() -> Result<(), ()> {
        let arguments = wasip3::cli::environment::get_arguments();
        match arguments[1].as_str() {
            "connect" => connect(&arguments[2]).await,
            _ => accept(&arguments[2]).await,
        }
        Ok(())
    }
}

fn main() {}
