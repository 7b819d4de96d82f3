//! `coracle bench hollow-nodes` beside a node that is real.

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile};

/// Row: scheduler: coracle bench hollow-nodes makes as many pods as asked, on its own nodes, and leaves nothing
/// Profile: loopback
#[test]
fn a_bench_leaves_the_cluster_as_it_was() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    for _ in 0..2 {
        let said = cluster.coracle(&["bench", "hollow-nodes", "3", "--pods", "105", "--patience", "60"])?;
        ensure!(said.contains("3 hollow nodes are ready") && said.contains("105 pods in "), "{said}");
        let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?;
        ensure!(nodes.lines().count() == 1, "{nodes}");
        let leases = cluster.kubectl(&["get", "leases", "-n", "kube-node-lease", "-o", "name"])?;
        ensure!(!leases.contains("hollow"), "{leases}");
        let namespaces = cluster.kubectl(&["get", "namespaces", "-o", "name"])?;
        ensure!(!namespaces.contains("hollow"), "{namespaces}");
    }
    cluster.stop()
}
