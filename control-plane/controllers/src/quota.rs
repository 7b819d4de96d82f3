//! ResourceQuotas: what a namespace uses, counted anew when something goes. Admission counts what comes.

mod controller;
mod plan;

pub use controller::QuotaController;
