use std::net::{Ipv4Addr, SocketAddrV4};

use http_body_util::StreamBody;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::{protocol::SandboxSpec, routes::Ranges};

const SOON: Duration = Duration::from_secs(20);
const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const SOCKET: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

type Sending = mpsc::Sender<Result<Frame<Bytes>, Error>>;

/// A request of a pod at this address to a peer on its own loopback, which says only this, and reads no more than the head.
struct Asked {
    egress: Egress,
    life: CancellationToken,
    sending: Sending,
    response: Response<WasiBody>,
    _peer: TcpStream,
}

async fn asked(pod_ip: Ipv4Addr, answer: &'static str) -> Asked {
    let spec = SandboxSpec {
        id: "s".into(),
        name: "web".into(),
        namespace: "default".into(),
        uid: "u".into(),
        hostname: "web".into(),
        pod_ip,
        netns: None,
        dns: Default::default(),
        annotations: Default::default(),
    };
    let network = Arc::new(PodNetwork::new(&spec, Ranges::default(), Arc::default()).unwrap());
    let listener = TcpListener::bind(SocketAddrV4::new(network.loopback, 0)).await.unwrap();
    let to = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    let peer = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.read_u8().await.unwrap());
        }
        peer.write_all(answer.as_bytes()).await.unwrap();
        peer
    });
    let (sending, body) = mpsc::channel(1);
    let mut request = match answer {
        SOCKET => Request::get(to)
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        _ => Request::post(to),
    };
    request = request.header("host", "peer");
    let request = request.body(StreamBody::new(ReceiverStream::new(body)).boxed_unsync()).unwrap();
    let life = CancellationToken::new();
    let egress = Egress::new(network);
    let sent = egress.living(life.clone()).send_request(request, None, Box::new(async { Ok(()) }));
    let (response, _) = tokio::time::timeout(SOON, Pin::from(sent)).await.unwrap().unwrap();
    let _peer = peer.await.unwrap();
    Asked { egress, life, sending, response, _peer }
}

/// Waits until nothing of a pod is under way.
async fn quiet(egress: &Egress) {
    let all = egress.room.acquire_many(MAX_OUTGOING as u32);
    drop(tokio::time::timeout(SOON, all).await.expect("something goes on").unwrap());
}

#[tokio::test]
async fn a_request_is_under_way_until_both_bodies_have_ended() {
    for (n, answer) in [PLAIN, SOCKET].into_iter().enumerate() {
        let asked = asked(Ipv4Addr::new(127, 81, 1, n as u8 + 1), answer).await;
        // The guest wants nothing of the answer, but is not done with its own body.
        drop(asked.response);
        tokio::task::yield_now().await;
        assert_eq!(asked.egress.room.available_permits(), MAX_OUTGOING - 1, "{answer}");
        drop(asked.sending);
        quiet(&asked.egress).await;
    }
}

#[tokio::test]
async fn a_socket_whose_peer_does_not_read_ends_with_its_guest() {
    let asked = asked(Ipv4Addr::new(127, 81, 1, 3), SOCKET).await;
    let piece = Bytes::from(vec![0; 1 << 20]);
    let mut stuck = false;
    for _ in 0..256 {
        let sent = asked.sending.send(Ok(Frame::data(piece.clone())));
        stuck = tokio::time::timeout(Duration::from_millis(500), sent).await.is_err();
        if stuck {
            break;
        }
    }
    assert!(stuck, "the peer reads");
    drop((asked.sending, asked.response));
    asked.life.cancel();
    quiet(&asked.egress).await;
}
