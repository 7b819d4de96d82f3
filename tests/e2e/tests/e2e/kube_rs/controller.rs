//! A controller as kube-rs' users write them: a derived custom kind, finalizers, owned objects, server-side apply, status.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::SOON;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, Event, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Api, Client, CustomResource, CustomResourceExt, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

const FINALIZER: &str = "boats.example.com/sunk";
const MANAGER: &str = "boatyard";

/// A boat.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "example.com",
    version = "v1",
    kind = "Boat",
    namespaced,
    status = "BoatStatus",
    shortname = "bt"
)]
struct BoatSpec {
    /// How many sit in it.
    #[schemars(range(min = 1, max = 8))]
    seats: i32,
    /// Its color.
    #[serde(default)]
    color: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct BoatStatus {
    #[serde(default)]
    observed_generation: i64,
}

type Failure = Box<finalizer::Error<kube::Error>>;

/// Keeps a ConfigMap beside each boat, and notes in another which boats are gone.
async fn reconcile(boat: Arc<Boat>, client: Arc<Client>) -> Result<Action, Failure> {
    let client = Client::clone(&client);
    let boats: Api<Boat> = Api::namespaced(client.clone(), "default");
    let done = finalizer(&boats, FINALIZER, boat, |event| async {
        match event {
            Event::Apply(boat) => kept(&boat, &client).await,
            Event::Cleanup(boat) => sunk(&boat, &client).await,
        }
    });
    done.await.map_err(Box::new)
}

async fn kept(boat: &Boat, client: &Client) -> Result<Action, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": boat.name_any(), "ownerReferences": [boat.controller_owner_ref(&())]},
        "data": {"seats": boat.spec.seats.to_string()},
    });
    let params = PatchParams::apply(MANAGER).force();
    maps.patch(&boat.name_any(), &params, &Patch::Apply(&map)).await?;
    let status = json!({
        "apiVersion": "example.com/v1", "kind": "Boat",
        "status": {"observedGeneration": boat.meta().generation},
    });
    let boats: Api<Boat> = Api::namespaced(client.clone(), "default");
    boats.patch_status(&boat.name_any(), &params, &Patch::Apply(&status)).await?;
    Ok(Action::await_change())
}

async fn sunk(boat: &Boat, client: &Client) -> Result<Action, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sunk"}, "data": {boat.name_any(): "yes"}});
    maps.patch("sunk", &PatchParams::apply(MANAGER), &Patch::Apply(&map)).await?;
    Ok(Action::await_change())
}

/// Waits until something is so.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let wait = async {
        while !holds().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SOON, wait).await.with_context(|| format!("{what}: not within {SOON:?}"))?
}

/// Defines the kind, runs the controller, and sees a boat through its life.
pub async fn drive(client: Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(MANAGER).force();
    definitions.patch(Boat::crd_name(), &params, &Patch::Apply(Boat::crd())).await?;
    let established = await_condition(definitions, Boat::crd_name(), conditions::is_crd_established());
    tokio::time::timeout(SOON, established).await.context("not established")??;

    let boats: Api<Boat> = Api::namespaced(client.clone(), "default");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let again = |_: Arc<Boat>, _: &Failure, _: Arc<Client>| Action::requeue(Duration::from_millis(200));
    let controller = Controller::new(boats.clone(), watcher::Config::default())
        .owns(maps.clone(), watcher::Config::default())
        .run(reconcile, again, Arc::new(client));
    let controller = tokio::spawn(controller.for_each(|_| std::future::ready(())));

    let refused =
        boats.create(&PostParams::default(), &Boat::new("big", BoatSpec { seats: 9, color: None })).await;
    let words = "spec.seats in body should be less than or equal to 8";
    ensure!(refused.is_err_and(|e| e.to_string().contains(words)), "nine seats were accepted");
    boats.create(&PostParams::default(), &Boat::new("coracle", BoatSpec { seats: 1, color: None })).await?;
    let seats = async |wanted: &str| {
        until(&format!("the map says {wanted}"), async || {
            let map = maps.get_opt("coracle").await?;
            Ok(map.and_then(|m| m.data).is_some_and(|d| d.get("seats").is_some_and(|s| s == wanted)))
        })
        .await
    };
    seats("1").await?;
    let boat = boats.get("coracle").await?;
    ensure!(boat.finalizers() == [FINALIZER], "{:?}", boat.finalizers());
    boats.patch("coracle", &PatchParams::default(), &Patch::Merge(json!({"spec": {"seats": 2}}))).await?;
    seats("2").await?;
    until("the status follows", async || {
        let boat = boats.get("coracle").await?;
        Ok(boat.status.is_some_and(|s| s.observed_generation == 2) && boat.metadata.generation == Some(2))
    })
    .await?;
    // What is owned comes back.
    maps.delete("coracle", &DeleteParams::default()).await?;
    seats("2").await?;
    boats.delete("coracle", &DeleteParams::default()).await?;
    until("the boat is gone", async || Ok(boats.get_opt("coracle").await?.is_none())).await?;
    ensure!(maps.get("sunk").await?.data.is_some_and(|d| d.contains_key("coracle")), "not cleaned up");
    until("its map is gone", async || Ok(maps.get_opt("coracle").await?.is_none())).await?;
    controller.abort();
    let left = boats.list(&ListParams::default()).await?;
    ensure!(left.items.is_empty());
    Ok(())
}
