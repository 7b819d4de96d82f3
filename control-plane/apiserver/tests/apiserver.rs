//! The generic server over test resources: in process with plain calls and kube-rs, and over TLS.

#[path = "apiserver/audit.rs"]
mod audit;
#[path = "apiserver/deadlines.rs"]
mod deadlines;
#[path = "apiserver/fixture.rs"]
mod fixture;
#[path = "apiserver/golden.rs"]
mod golden;
#[path = "apiserver/kube_client.rs"]
mod kube_client;
#[path = "apiserver/lists.rs"]
mod lists;
#[path = "apiserver/load.rs"]
mod load;
#[path = "apiserver/node_proxy.rs"]
mod node_proxy;
#[path = "apiserver/paths.rs"]
mod paths;
#[path = "apiserver/sealed.rs"]
mod sealed;
#[path = "apiserver/tls.rs"]
mod tls;
#[path = "apiserver/verbs.rs"]
mod verbs;
#[path = "apiserver/watches.rs"]
mod watches;
