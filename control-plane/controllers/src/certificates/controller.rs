//! Acts on requests for certificates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestStatus};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher::Config;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Sign;
use super::plan::{self, Approval, Subject};
use crate::write::is_conflict;

/// How long until a failed attempt is repeated.
const RETRY: Duration = Duration::from_secs(2);

struct Context {
    client: Client,
    /// Reads nodes.
    nodes: Client,
    sign: Sign,
}

/// An error of one attempt.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct Failed(anyhow::Error);

/// Approves, signs and forgets requests until `shutdown`. `nodes` is a client that may list nodes.
pub async fn run(client: Client, nodes: Client, sign: Sign, shutdown: CancellationToken) {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let context = Arc::new(Context { client, nodes, sign });
    Controller::new(requests, Config::default())
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(
            |csr, context| async move { reconcile(&context, &csr).await.map_err(Failed) },
            |csr, error, _| {
                tracing::warn!(request = csr.name_any(), %error, "a certificate request");
                Action::requeue(RETRY)
            },
            context,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn reconcile(context: &Context, csr: &CertificateSigningRequest) -> anyhow::Result<Action> {
    let requests: Api<CertificateSigningRequest> = Api::all(context.client.clone());
    let wait = plan::forgotten_in(csr, Timestamp::now());
    if wait == 0 {
        let preconditions = Some(Preconditions { uid: csr.uid(), resource_version: None });
        let how = DeleteParams { preconditions, ..DeleteParams::default() };
        match requests.delete(&csr.name_any(), &how).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => return Err(error).context("forget an old request"),
        }
        return Ok(Action::await_change());
    }
    let again = Action::requeue(Duration::from_secs(wait.unsigned_abs()));
    if plan::is_issued(csr) || plan::has_condition(csr, "Denied") || plan::has_condition(csr, "Failed") {
        return Ok(again);
    }
    let Some(subject) = plan::subject(&csr.spec.request.0) else { return Ok(again) };
    let written = if plan::has_condition(csr, "Approved") {
        issue(context, &requests, csr, &subject).await
    } else {
        approve(context, &requests, csr, &subject).await
    };
    match written {
        Err(error) if error.downcast_ref().is_some_and(is_conflict) => Ok(Action::requeue(RETRY / 8)),
        other => other.map(|()| again),
    }
}

async fn approve(
    context: &Context,
    requests: &Api<CertificateSigningRequest>,
    csr: &CertificateSigningRequest,
    subject: &Subject,
) -> anyhow::Result<()> {
    let message = match plan::approval(csr, subject) {
        None => return Ok(()),
        Some(Approval::IfAllowed { subresource, message }) => {
            if !allowed(context, csr, subresource).await? {
                return Ok(());
            }
            message
        }
        Some(Approval::IfOwnNames) => {
            if !names_are_own(context, subject).await? {
                return Ok(());
            }
            "Auto approving kubelet serving certificate: its names are those of the node that asks."
        }
    };
    let mut new = csr.clone();
    add_condition(&mut new, "Approved", "AutoApproved", message)?;
    requests.replace_subresource("approval", &csr.name_any(), &PostParams::default(), &new).await?;
    Ok(())
}

async fn issue(
    context: &Context,
    requests: &Api<CertificateSigningRequest>,
    csr: &CertificateSigningRequest,
    subject: &Subject,
) -> anyhow::Result<()> {
    if !plan::is_ours(&csr.spec.signer_name) {
        return Ok(());
    }
    let mut new = csr.clone();
    match plan::refusal(csr, subject) {
        Some(why) => add_condition(&mut new, "Failed", "SignerValidationFailure", why)?,
        None => {
            let pem = String::from_utf8(csr.spec.request.0.clone()).context("the request is not PEM")?;
            let usages = csr.spec.usages.clone().unwrap_or_default();
            match (context.sign)(&pem, &usages, plan::seconds(csr)) {
                Ok(certificate) => {
                    let status = new.status.get_or_insert_with(CertificateSigningRequestStatus::default);
                    status.certificate = Some(ByteString(certificate.into_bytes()));
                }
                Err(error) => {
                    add_condition(&mut new, "Failed", "SignerValidationFailure", &format!("{error:#}"))?;
                }
            }
        }
    }
    requests.replace_status(&csr.name_any(), &PostParams::default(), &new).await?;
    Ok(())
}

fn add_condition(
    csr: &mut CertificateSigningRequest,
    kind: &str,
    reason: &str,
    message: &str,
) -> anyhow::Result<()> {
    let condition = serde_json::from_value(
        json!({"type": kind, "status": "True", "reason": reason, "message": message}),
    )?;
    let status = csr.status.get_or_insert_with(CertificateSigningRequestStatus::default);
    status.conditions.get_or_insert_with(Vec::new).push(condition);
    Ok(())
}

/// Asks the API server whether the one who asks may have such a certificate.
async fn allowed(
    context: &Context,
    csr: &CertificateSigningRequest,
    subresource: &str,
) -> anyhow::Result<bool> {
    let review: SubjectAccessReview = serde_json::from_value(json!({"metadata": {}, "spec": {
        "user": csr.spec.username, "uid": csr.spec.uid, "groups": csr.spec.groups, "extra": csr.spec.extra,
        "resourceAttributes": {"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
            "verb": "create", "subresource": subresource},
    }}))?;
    let reviews: Api<SubjectAccessReview> = Api::all(context.client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await.context("ask about rights")?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

async fn names_are_own(context: &Context, subject: &Subject) -> anyhow::Result<bool> {
    let nodes: Api<Node> = Api::all(context.nodes.clone());
    let nodes = nodes.list(&ListParams::default()).await.context("list nodes")?;
    let known: Vec<(String, Vec<IpAddr>)> = nodes
        .items
        .iter()
        .map(|node| {
            let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
            (node.name_any(), addresses.filter_map(|a| a.address.parse().ok()).collect())
        })
        .collect();
    Ok(plan::own_names(subject, known.iter().map(|(name, addresses)| (name.as_str(), addresses.as_slice()))))
}
