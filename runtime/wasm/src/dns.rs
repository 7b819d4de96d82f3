//! The cluster's DNS server: what [`crate::names`] answers, over UDP and TCP, for Linux containers and programs of the host.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_server::{
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Edns, Message, Metadata, Query, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{CNAME, PTR, SOA, SRV},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{
    affinity::Directory,
    names::{Answer, Question, Value},
    protocol::{Dns, Transport},
    routes::Ranges,
    services::shared_socket,
};

/// How long answers may be kept, in seconds.
const TTL: u32 = 5;
/// How long a server of another domain may take.
const UPSTREAM: Duration = Duration::from_secs(3);
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// What is sent at most over UDP, whatever the client says it takes.
const MAX_PAYLOAD: u16 = 1232;

/// A server that answers until it is dropped.
pub(crate) struct Server {
    pub config: Dns,
    _server: hickory_server::Server<Cluster>,
}

impl Server {
    /// Listens; several hosts may share the address.
    ///
    /// # Errors
    /// Of the socket that could not be bound.
    pub fn start(
        config: Dns,
        directory: Arc<Directory>,
        ranges: Ranges,
    ) -> Result<Server, (Transport, io::Error)> {
        let socket = |transport| shared_socket(transport, config.listen).map_err(|e| (transport, e));
        let udp = UdpSocket::from_std(socket(Transport::Udp)?.into()).map_err(|e| (Transport::Udp, e))?;
        let tcp = TcpListener::from_std(socket(Transport::Tcp)?.into()).map_err(|e| (Transport::Tcp, e))?;
        let upstreams = config.upstreams.clone();
        let mut server = hickory_server::Server::new(Cluster { directory, ranges, upstreams });
        server.register_socket(udp);
        server.register_listener(tcp, IDLE, 16);
        Ok(Server { config, _server: server })
    }
}

/// Answers with what the table knows.
struct Cluster {
    directory: Arc<Directory>,
    ranges: Ranges,
    upstreams: Vec<SocketAddr>,
}

/// What goes into a response.
#[derive(Default)]
struct Response {
    code: ResponseCode,
    authoritative: bool,
    truncated: bool,
    answers: Vec<Record>,
    soa: Option<Record>,
}

impl Response {
    fn failed(code: ResponseCode) -> Response {
        Response { code, ..Response::default() }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Cluster {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut respond: R,
    ) -> ResponseInfo {
        let response = match request.request_info() {
            Ok(info) => {
                let name = Name::from(info.query.name());
                self.answer(&name, info.query.query_type(), request).await
            }
            Err(_) => Response::failed(ResponseCode::FormErr),
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = response.authoritative;
        metadata.response_code = response.code;
        metadata.truncation = response.truncated;
        metadata.recursion_available = !self.upstreams.is_empty();
        let mut edns = Edns::new();
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(asked) = &request.edns {
            edns.set_max_payload(asked.max_payload().clamp(512, MAX_PAYLOAD));
            builder.edns(&edns);
        }
        let message = builder.build(metadata, &response.answers, [], &response.soa, []);
        match respond.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "answering a DNS question");
                ResponseInfo::from(hickory_server::proto::op::Header {
                    metadata: Metadata::response_from_request(&request.metadata),
                    counts: Default::default(),
                })
            }
        }
    }
}

impl Cluster {
    async fn answer(&self, name: &Name, kind: RecordType, request: &Request) -> Response {
        let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let question = match kind {
            RecordType::A => Question::Address,
            RecordType::SRV => Question::Service,
            RecordType::PTR => Question::Pointer,
            RecordType::CNAME => Question::Alias,
            _ => Question::Other,
        };
        let ours = [self.ranges.pods, self.ranges.services];
        let (answer, domain) = {
            let routes = self.directory.load();
            let answer = routes.names.answer(&text, question, &ours, &self.ranges.pods);
            (answer, routes.names.domain.clone())
        };
        let ours = |code, records: Vec<crate::names::Record>| Response {
            code,
            authoritative: true,
            soa: if records.is_empty() { authority(&domain) } else { None },
            answers: records.iter().filter_map(record).collect(),
            truncated: false,
        };
        match answer {
            Answer::Records(records) => ours(ResponseCode::NoError, records),
            Answer::Unknown => ours(ResponseCode::NXDomain, Vec::new()),
            Answer::Elsewhere => self.forward(request.as_slice(), request.protocol()).await,
            Answer::Onward(records, target) => {
                let mut response = ours(ResponseCode::NoError, records);
                let more = Name::from_ascii(&target).ok().and_then(|target| question_about(target, kind));
                if let (Some(more), false) = (more, self.upstreams.is_empty()) {
                    response.answers.extend(self.forward(&more, request.protocol()).await.answers);
                }
                response
            }
        }
    }

    /// Asks the servers of other domains in turn.
    async fn forward(&self, question: &[u8], protocol: Protocol) -> Response {
        for upstream in &self.upstreams {
            let answer = tokio::time::timeout(UPSTREAM, exchange(*upstream, question, protocol)).await;
            if let Ok(Ok(message)) = answer {
                return Response {
                    code: message.metadata.response_code,
                    truncated: message.metadata.truncation,
                    answers: message.answers,
                    ..Response::default()
                };
            }
        }
        Response::failed(if self.upstreams.is_empty() {
            ResponseCode::Refused
        } else {
            ResponseCode::ServFail
        })
    }
}

async fn exchange(upstream: SocketAddr, question: &[u8], protocol: Protocol) -> io::Result<Message> {
    let mut answer = vec![0; 65_535];
    let length = match protocol {
        Protocol::Udp => {
            let any: IpAddr =
                if upstream.is_ipv4() { [0, 0, 0, 0].into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
            // A port of its own for each question makes answers of others hard to forge.
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(upstream).await?;
            socket.send(question).await?;
            socket.recv(&mut answer).await?
        }
        _ => {
            let mut stream = TcpStream::connect(upstream).await?;
            let length = u16::try_from(question.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
            let length = usize::from(stream.read_u16().await?);
            stream.read_exact(answer.get_mut(..length).unwrap_or_default()).await?
        }
    };
    let message = Message::from_vec(answer.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
    let asked = Message::from_vec(question).map_err(io::Error::other)?;
    if message.metadata.id != asked.metadata.id || message.queries != asked.queries {
        return Err(io::Error::other("an answer to another question"));
    }
    Ok(message)
}

fn question_about(name: Name, kind: RecordType) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message.to_vec().ok()
}

fn record(record: &crate::names::Record) -> Option<Record> {
    let parse = |name: &str| Name::from_ascii(format!("{name}.")).ok();
    let data = match &record.value {
        Value::Address(ip) => RData::A((*ip).into()),
        Value::Alias(target) => RData::CNAME(CNAME(parse(target)?)),
        Value::Service(srv) => RData::SRV(SRV::new(0, 100, srv.port, parse(&srv.target)?)),
        Value::Pointer(target) => RData::PTR(PTR(parse(target)?)),
    };
    Some(Record::from_rdata(parse(&record.name)?, TTL, data))
}

/// Says for how long a name that does not exist may be remembered as such.
fn authority(domain: &str) -> Option<Record> {
    let zone = Name::from_ascii(format!("{domain}.")).ok()?;
    let (server, owner) = (
        Name::from_ascii(format!("ns.dns.{domain}.")).ok()?,
        Name::from_ascii(format!("hostmaster.{domain}.")).ok()?,
    );
    Some(Record::from_rdata(zone, TTL, RData::SOA(SOA::new(server, owner, 1, 7200, 1800, 86_400, TTL))))
}
