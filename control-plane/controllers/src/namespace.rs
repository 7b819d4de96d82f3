//! Namespaces: what is in one goes before it does; and what each one has from the start.

mod controller;
mod defaults;

pub use controller::NamespaceController;
pub use defaults::NamespaceDefaults;
