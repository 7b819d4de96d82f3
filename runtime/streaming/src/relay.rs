//! Two connections joined: what a proxy does with a stream that it does not understand.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, sink, split};

/// How long a client may go on sending when the server has said all.
const LINGER: Duration = Duration::from_secs(5);

/// Copies both ways until the server has said all, or both are gone.
///
/// A program that has ended reads no more, and its last words are still on their way: input that cannot be delivered is
/// dropped, and does not end the connection. Nor is it closed on input that waits to be read, of which a client would learn
/// by a reset before it has those words.
pub async fn relay(client: impl AsyncRead + AsyncWrite, server: impl AsyncRead + AsyncWrite) {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_server, mut to_server) = split(server);
    let up = async {
        if copy(&mut from_client, &mut to_server).await.is_err() {
            let _ = copy(&mut from_client, &mut sink()).await;
        }
        let _ = to_server.shutdown().await;
    };
    let down = async {
        let _ = copy(&mut from_server, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => down.await,
        () = &mut down => drop(tokio::time::timeout(LINGER, up).await),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_last_words_come_although_the_client_still_sends() {
        for _ in 0..20 {
            let ((client, near), (far, mut server)) = (pair().await, pair().await);
            let relayed = tokio::spawn(relay(near, far));
            let (mut reader, mut writer) = client.into_split();
            // More than the buffers hold, so that some of it meets a server that is gone.
            let sent = tokio::spawn(async move { while writer.write_all(&[0; 65536]).await.is_ok() {} });
            server.read_exact(&mut [0; 65536]).await.unwrap();
            server.write_all(&[7; 300_000]).await.unwrap();
            server.shutdown().await.unwrap();
            // It hangs up in order, as the streaming server does; what is on its way then is refused.
            let gone = tokio::spawn(async move {
                let _ = tokio::time::timeout(Duration::from_millis(20), copy(&mut server, &mut sink())).await;
            });
            let mut words = Vec::new();
            reader.read_to_end(&mut words).await.unwrap();
            assert_eq!(words.len(), 300_000);
            sent.abort();
            gone.await.unwrap();
            relayed.abort();
        }
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_it() {
        let ((client, near), (far, mut server)) = (pair().await, pair().await);
        let relayed = tokio::spawn(relay(near, far));
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        drop(server);
        relayed.await.unwrap();
    }
}
