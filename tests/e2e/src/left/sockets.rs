//! Sockets as the kernel lists them.

use std::net::{Ipv4Addr, SocketAddrV4};

/// A connection, or something that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub protocol: &'static str,
    pub local: SocketAddrV4,
    pub remote: SocketAddrV4,
    /// 0: nobody holds it any more, the kernel ends it by itself.
    pub inode: u64,
    /// Whether it waits for others to connect, or to send.
    pub listens: bool,
}

/// In `/proc/net/tcp`: `TCP_LISTEN`.
const LISTEN: &str = "0A";

/// All IPv4 sockets of the network namespace that a process is in. Of one that has ended: none.
pub fn of(process: i32) -> Vec<Socket> {
    let read = |protocol: &'static str| {
        let text = std::fs::read_to_string(format!("/proc/{process}/net/{protocol}")).unwrap_or_default();
        text.lines().skip(1).filter_map(|line| parse(protocol, line)).collect::<Vec<_>>()
    };
    ["tcp", "tcp6", "udp", "udp6"].into_iter().flat_map(read).collect()
}

fn parse(protocol: &'static str, line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = fields.next()?;
    let inode = fields.nth(5)?.parse().ok()?;
    let listens = if protocol.starts_with("tcp") { state == LISTEN } else { remote.port() == 0 };
    Some(Socket { protocol, local, remote, inode, listens })
}

/// `0100007F:1F90`; of IPv6 those that are IPv4's.
fn address(text: &str) -> Option<SocketAddrV4> {
    const MAPPED: &str = "0000000000000000FFFF0000";
    let (ip, port) = text.split_once(':')?;
    let ip = if ip.len() == 32 { ip.strip_prefix(MAPPED)? } else { ip };
    // Written as a number of this machine.
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap();
        let all = of(std::process::id().cast_signed());
        let found = all.iter().find(|s| std::net::SocketAddr::from(s.local) == own).unwrap();
        assert!(found.listens && found.inode > 0, "{found:?}");
        let line = "  0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 7";
        assert_eq!(parse("tcp6", line), None);
        assert_eq!(address("0000000000000000FFFF00000100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
    }
}
