//! What each built-in kind adds to the generic API server: one file a kind. Adding a kind is a new file and a line in [`builtin`].
//!
//! Nothing here speaks HTTP but the few subresource handlers, and nothing here knows how objects are stored.
#![forbid(unsafe_code)]

pub mod admission;
pub mod admission_cel;
pub mod admission_policy;
pub mod admission_rules;
pub mod admission_webhook;
pub mod aggregation;
pub mod api_service;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod certificate_signing_request;
pub mod check;
pub mod component_status;
pub mod config_map;
pub mod controller_revision;
pub mod cron_job;
pub mod custom_resource_definition;
pub mod daemonset;
pub mod deployment;
pub mod devices;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod flow_control;
pub mod gangs;
mod go_struct;
pub mod horizontal_pod_autoscaler;
pub mod job;
pub mod lease;
pub mod limit_range;
mod names;
pub mod namespace;
pub mod networking;
pub mod node;
mod options;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_disruption_budget;
pub mod pod_template;
pub mod priority_class;
pub mod replicaset;
pub mod replication_controller;
pub mod resource_quota;
pub mod role;
pub mod role_binding;
pub mod runtime_class;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod statefulset;
pub mod storage;
pub mod streams;
pub mod subject_access_review;
pub mod subresource;
pub mod table;
pub mod token_review;
pub mod token_secrets;
pub mod value;
mod workload;

use std::sync::Arc;

pub use authz::Authorizers;
pub use bootstrap::bootstrap;
pub use check::Cidr;
use coracle_apiserver::authn::{Anonymous, TokenAuthenticator};
use coracle_apiserver::{Admission, ApiServerBuilder, ResourceDef};
use coracle_store::Store;
pub use options::{FRONT_PROXY, OptionsError, RegistryOptions};

/// The built-in kinds and what goes with them.
pub struct Builtin {
    /// Every resource.
    pub resources: Vec<ResourceDef>,
    /// The admission chain, in the order in which it runs.
    pub admission: Vec<Arc<dyn Admission>>,
    /// Whose a bearer token is.
    pub authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    /// Who may call without credentials.
    pub anonymous: Anonymous,
    /// Who may do what.
    pub authorizer: Arc<Authorizers>,
    /// Who serves the groups that this server does not.
    pub aggregator: Arc<aggregation::Aggregator>,
    /// Where webhooks that are Services are found.
    services: Arc<admission_webhook::services::Services>,
    /// Fills Secrets with the tokens of accounts.
    pub token_secrets: Arc<token_secrets::TokenSecrets>,
    /// Pages that are no resources, by path.
    pub mounts: Vec<(&'static str, axum::Router)>,
}

impl Builtin {
    /// Adds everything to a server.
    pub fn install(self, builder: ApiServerBuilder) -> ApiServerBuilder {
        let builder =
            self.admission.into_iter().fold(builder.resources(self.resources), ApiServerBuilder::admission);
        let builder = self.authenticators.into_iter().fold(builder, ApiServerBuilder::authenticator);
        let builder =
            builder.anonymous(self.anonymous).authorizer(self.authorizer).delegates(self.aggregator.clone());
        let builder = builder.follower(self.aggregator).follower(self.token_secrets);
        let builder = builder.source(Arc::new(custom_resource_definition::Source::new(self.services)));
        let builder = builder.flows(Arc::new(flow_control::Source));
        self.mounts.into_iter().fold(builder, |builder, (path, router)| builder.mount(path, router))
    }
}

/// The built-in kinds. Call it once a server.
///
/// # Errors
/// Options that cannot hold together.
pub fn builtin(options: &RegistryOptions, store: &Store) -> Result<Builtin, OptionsError> {
    options.check()?;
    let tokens = authn::Tokens::new(options, store)?;
    let authorizer = Authorizers::new(store);
    let resources = resources(options, store, &tokens, &authorizer);
    let services = Arc::new(admission_webhook::services::Services::default());
    let aggregator = Arc::new(aggregation::Aggregator::new(&resources, options.front_proxy.clone()));
    Ok(Builtin {
        resources,
        aggregator,
        token_secrets: Arc::new(token_secrets::TokenSecrets::new(
            tokens.service_accounts.clone(),
            options.ca_pem.clone(),
        )),
        admission: admission::chain(options, &services),
        services,
        mounts: tokens.mounts(options.api_server),
        authenticators: tokens.authenticators(),
        anonymous: options.anonymous.clone(),
        authorizer,
    })
}

/// Every kind, core first, then group by group in the order of Kubernetes: a client that looks for a short name takes the
/// first.
fn resources(
    options: &RegistryOptions,
    store: &Store,
    tokens: &authn::Tokens,
    authorizer: &Arc<Authorizers>,
) -> Vec<ResourceDef> {
    let mut all = vec![
        pod::bind::resource(),
        component_status::resource(store),
        config_map::resource(),
        endpoints::resource(options),
        event::core(),
        limit_range::resource(),
        namespace::resource(),
        node::resource(options),
        persistent_volume::resource(),
        persistent_volume_claim::resource(),
        pod::resource(options),
        pod_template::resource(),
        replication_controller::resource(),
        resource_quota::resource(),
        secret::resource(),
        service_account::resource(tokens.service_accounts.clone()),
        service::resource(options),
        api_service::resource(),
        controller_revision::resource(),
        daemonset::resource(),
        deployment::resource(),
        replicaset::resource(),
        statefulset::resource(),
        event::grouped(),
    ];
    all.extend(token_review::resources(tokens));
    all.extend(subject_access_review::resources(authorizer));
    all.extend([
        horizontal_pod_autoscaler::v2(),
        horizontal_pod_autoscaler::v1(),
        cron_job::resource(),
        job::resource(),
        certificate_signing_request::resource(authorizer),
    ]);
    all.extend(networking::resources(options.legacy_manifests));
    all.push(pod_disruption_budget::resource());
    all.extend(role::resources(authorizer));
    all.extend(role_binding::resources(authorizer));
    all.extend(storage::resources());
    all.extend(admission_webhook::resources());
    all.extend(admission_policy::resources());
    all.extend([custom_resource_definition::resource(), priority_class::resource()]);
    all.extend(gangs::resources());
    all.extend([lease::resource(), runtime_class::resource(), endpoint_slice::resource(options)]);
    all.extend(flow_control::resources());
    all.extend(devices::resources());
    all
}
