//! gRPC's health service (`grpc.health.v1.Health/Check`), its two messages written by hand.

use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// The one answer that is healthy.
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks once.
pub async fn check(ip: &str, port: u16, service: &str) -> Result<(), String> {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let address = format!("http://{host}:{port}");
    let failed = |e: &dyn std::fmt::Display| {
        format!("timeout: failed to connect service \"{host}:{port}\" within its time: {e}")
    };
    let channel = Endpoint::from_shared(address).map_err(|e| failed(&e))?.connect().await;
    let mut client = tonic::client::Grpc::new(channel.map_err(|e| failed(&e))?);
    client.ready().await.map_err(|e| failed(&e))?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
        Ok(answer) => Err(format!("service unhealthy (responded with {:?})", word(answer.get_ref().status))),
        Err(status) if status.code() == Code::Unimplemented => {
            Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned())
        }
        Err(status) => Err(format!("health rpc failed: {}", status.message())),
    }
}

fn word(status: i32) -> &'static str {
    match status {
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "something else",
    }
}
