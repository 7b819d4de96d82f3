//! Datagrams to a Service address: each client has a session with one endpoint, as long as it is not silent.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::net::UdpSocket;

use super::{Entry, tcp};

/// A session ends when nothing came back for so long.
const SILENCE: Duration = Duration::from_secs(60);
/// The most sessions of one listener; past it datagrams of new clients are dropped.
const MAX_SESSIONS: usize = 4096;
/// The largest datagram.
const MAX_DATAGRAM: usize = 65_535;

type Sessions = Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>>;

impl Entry {
    /// Relays until the listener is closed.
    pub(super) async fn relay(self: Arc<Entry>, socket: Arc<UdpSocket>) {
        let sessions = Sessions::default();
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let received = tokio::select! {
                received = socket.recv_from(&mut buffer) => received,
                () = self.closed.cancelled() => return,
            };
            // An error is about an earlier answer that could not be delivered.
            let Ok((length, client)) = received else { continue };
            let data = buffer.get(..length).unwrap_or_default();
            if let Some(session) = self.session(client, &socket, &sessions).await {
                let _ = session.send(data).await;
            }
        }
    }

    async fn session(
        &self,
        client: SocketAddr,
        socket: &Arc<UdpSocket>,
        sessions: &Sessions,
    ) -> Option<Arc<UdpSocket>> {
        let there = sessions.lock().get(&client).cloned();
        if let Some(session) = there {
            // One whose endpoint is no longer ready is replaced.
            let endpoint = session.peer_addr().ok()?;
            if self.service.load().endpoints.iter().any(|e| SocketAddr::V4(*e) == endpoint) {
                return Some(session);
            }
            sessions.lock().remove(&client);
        }
        let IpAddr::V4(from) = client.ip() else { return None };
        let endpoint = self.order(from).first().copied()?;
        if sessions.lock().len() >= MAX_SESSIONS {
            return None;
        }
        let session = Arc::new(open(from, endpoint).await.ok()?);
        sessions.lock().insert(client, session.clone());
        tokio::spawn(answers(session.clone(), client, socket.clone(), sessions.clone()));
        Some(session)
    }
}

async fn open(client: Ipv4Addr, endpoint: SocketAddrV4) -> io::Result<UdpSocket> {
    let hop = tcp::hop(client, endpoint);
    let socket = UdpSocket::bind((hop.from.unwrap_or(Ipv4Addr::UNSPECIFIED), 0)).await?;
    socket.connect(hop.to).await?;
    Ok(socket)
}

/// Brings an endpoint's datagrams back to the client.
async fn answers(session: Arc<UdpSocket>, client: SocketAddr, socket: Arc<UdpSocket>, sessions: Sessions) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(Ok(length)) = tokio::time::timeout(SILENCE, session.recv(&mut buffer)).await {
        let Some(data) = buffer.get(..length) else { break };
        if socket.send_to(data, client).await.is_err() {
            break;
        }
    }
    let mut sessions = sessions.lock();
    if sessions.get(&client).is_some_and(|now| Arc::ptr_eq(now, &session)) {
        sessions.remove(&client);
    }
}
