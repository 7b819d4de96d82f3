//! Thirty faults on three servers. Profile: routed.

use anyhow::Result;
use coracle_faults::run::{Options, run};

/// Row: state: thirty faults (killed, paused, cut off both ways and one way, delayed, clocks moved, disks filled) under clients: the history is linearizable, no acknowledged write is lost, watchers see each revision once and in order
#[test]
fn thirty_faults() -> Result<()> {
    // Another crate of the tree brings a second provider, so that rustls cannot choose by itself.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let seed = std::env::var("CORACLE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let report = run(Options { seed, count: 30 })?;
    println!("{report:?}");
    assert!(report.changes > 200, "{report:?}");
    Ok(())
}
