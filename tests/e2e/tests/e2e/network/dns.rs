//! A client of the cluster's DNS server, for what a Linux program would ask.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::Cluster;
use coracle_e2e::slot::DNS_PORT;
use hickory_server::proto::op::{Message, Query};
use hickory_server::proto::rr::{Name, RecordType};

/// `ADDRESS:PORT` of the cluster's DNS server.
pub fn server(cluster: &Cluster) -> Result<String> {
    let service = cluster.get(&["-n", "kube-system", "service", "kube-dns"])?;
    let address = service["spec"]["clusterIP"].as_str().context("kube-dns has no address")?;
    Ok(format!("{address}:{DNS_PORT}"))
}

/// Asks over UDP and over TCP, which have to agree; the code and the records' data, sorted.
pub fn ask(server: &str, name: &str, kind: RecordType) -> Result<String> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name)?, kind));
    let question = question.to_vec()?;
    let (over_udp, over_tcp) = (shown(&udp(server, &question)?)?, shown(&tcp(server, &question)?)?);
    ensure!(over_udp == over_tcp, "UDP said {over_udp}, TCP {over_tcp}");
    Ok(over_udp)
}

fn udp(server: &str, question: &[u8]) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(server)?;
    socket.send(question)?;
    let mut answer = vec![0; 2048];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn tcp(server: &str, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
    stream.write_all(question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn shown(answer: &[u8]) -> Result<String> {
    let message = Message::from_vec(answer)?;
    let mut records: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    records.sort();
    Ok(format!("{:?} {}", message.metadata.response_code, records.join(", ")).trim().to_owned())
}
