//! helm, of the releases that come beside the oldest and the newest kubectl, with a chart that has hooks, a test and a custom
//! resource. Profile: loopback.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, root, succeed};
use serde_json::Value;

use super::pods;

struct Helm {
    path: PathBuf,
    cluster: Cluster,
    chart: String,
}

impl Helm {
    /// The helm beside the kubectl in an environment variable.
    fn of(variable: &str) -> Result<Self> {
        let kubectl = std::env::var_os(variable)
            .with_context(|| format!("{variable} is not set: run `cargo xtask test`"))?;
        let (cluster, _) = pods::cluster(&["steps", "hello"])?;
        let chart = cluster.data_dir().with_file_name("chart");
        // Where its user can read it.
        succeed(Command::new("cp").arg("-r").arg(root().join("tests/e2e/manifests/chart")).arg(&chart))?;
        Ok(Self {
            path: PathBuf::from(kubectl).with_file_name("helm"),
            chart: chart.display().to_string(),
            cluster,
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let home = self.cluster.data_dir().with_file_name("helm").display().to_string();
        let mut command = self.cluster.command(&self.path);
        command.args(args);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, format!("{home}/{name}"));
        }
        command
    }

    fn says(&self, args: &[&str], words: &[&str]) -> Result<String> {
        let said = succeed(&mut self.command(args))?;
        pods::has(&said, words).with_context(|| format!("helm {}", args.join(" ")))?;
        Ok(said)
    }

    fn map(&self) -> Result<Value> {
        Ok(self.cluster.get(&["configmap", "shop"])?["data"].clone())
    }

    /// The hook of this name ran to its end.
    fn ran(&self, hook: &str) -> Result<()> {
        let job = self.cluster.get(&["job", &format!("shop-{hook}")])?;
        ensure!(job["status"]["succeeded"] == 1, "{hook}: {}", job["status"]);
        Ok(())
    }
}

fn the_life_of_a_release(variable: &str) -> Result<Ended> {
    let mut helm = Helm::of(variable)?;
    let chart = helm.chart.clone();
    helm.says(&["lint", &chart], &["0 chart(s) failed"])?;
    helm.says(&["template", "shop", &chart], &["kind: Deployment"])?;
    let wait = ["--wait", "--timeout=90s"];
    helm.says(
        &[&["install", "shop", &chart][..], &wait].concat(),
        &["STATUS: deployed", "shop says hello."],
    )?;
    helm.ran("pre-install")?;
    helm.ran("post-install")?;
    ensure!(helm.cluster.get(&["offer", "shop"])?["spec"]["price"] == 5);
    let data = helm.map()?;
    ensure!(
        data["greeting"] == "hello" && data["server"].as_str().is_some_and(|v| v.starts_with("v1.36")),
        "{data}"
    );
    let again = helm.command(&["install", "shop", &chart]).output()?;
    ensure!(!again.status.success(), "a release was installed twice");
    helm.says(&["test", "shop"], &["Phase:", "Succeeded"])?;
    helm.says(&["list"], &["shop", "deployed", "shop-0.1.0"])?;
    helm.says(&["status", "shop"], &["STATUS: deployed"])?;
    helm.says(&["get", "manifest", "shop"], &["kind: Offer"])?;

    let upgrade = ["upgrade", "shop", &chart, "--set", "greeting=welcome,replicas=2"];
    helm.says(&[&upgrade[..], &wait].concat(), &["REVISION: 2", "shop says welcome."])?;
    helm.ran("post-upgrade")?;
    ensure!(helm.map()?["greeting"] == "welcome");
    ensure!(helm.cluster.get(&["deployment", "shop"])?["status"]["readyReplicas"] == 2);
    helm.says(&["history", "shop"], &["superseded", "deployed"])?;
    helm.says(&[&["rollback", "shop", "1"][..], &wait].concat(), &["Rollback was a success"])?;
    ensure!(helm.map()?["greeting"] == "hello");
    helm.ran("pre-rollback")?;

    helm.says(&[&["uninstall", "shop"][..], &wait].concat(), &["uninstalled"])?;
    helm.ran("pre-delete")?;
    let gone = helm.cluster.kubectl_fails(&["get", "deployment", "shop"])?;
    ensure!(gone.contains("NotFound"), "{gone}");
    ensure!(helm.says(&["list"], &[])?.lines().count() == 1);
    // Custom resource definitions stay.
    helm.cluster.kubectl(&["get", "crd", "offers.shop.example.com"])?;
    helm.cluster.stop()
}

/// Row: clients: helm 3: install, test, upgrade, rollback and uninstall of a chart with hooks and a custom resource
#[test]
fn helm_3_installs_upgrades_and_removes() -> Result<Ended> {
    the_life_of_a_release("CORACLE_KUBECTL_OLDEST")
}

/// Row: clients: helm 4: install, test, upgrade, rollback and uninstall of a chart with hooks and a custom resource
#[test]
fn helm_4_installs_upgrades_and_removes() -> Result<Ended> {
    the_life_of_a_release("CORACLE_KUBECTL_NEWEST")
}
