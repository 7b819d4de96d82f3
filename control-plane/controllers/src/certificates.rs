//! Certificates for those who ask: approving the requests of nodes, signing what was approved, and forgetting old requests.
//!
//! `plan` decides (pure), `controller` acts. The key of the authority stays with whoever starts the controllers: it is
//! reached through a [`Sign`].

pub mod controller;
pub mod plan;

use std::sync::Arc;

pub use controller::run;

/// Issues a certificate: the request (PEM), what its key may be used for, and for how long, in seconds. Answers the
/// certificate as PEM.
pub type Sign = Arc<dyn Fn(&str, &[String], i64) -> anyhow::Result<String> + Send + Sync>;

/// The identity of these controllers.
pub const IDENTITY: &str = "certificate-controller";
