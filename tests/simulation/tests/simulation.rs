//! Two hundred seeds; and that mistakes made on purpose are found.

use std::path::Path;
use std::process::Command;

use coracle_simulation::each_alone;

const PROGRAM: &str = env!("CARGO_BIN_EXE_coracle-simulation");

/// `CORACLE_SEEDS` asks for more than those of CI, `CORACLE_SEED` for others.
#[test]
fn two_hundred_seeds() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (from, seeds) = (number("CORACLE_SEED", 1), number("CORACLE_SEEDS", 200));
    println!("seeds {from} to {}", from + seeds - 1);
    let said = each_alone(Path::new(PROGRAM), from, seeds, &["--count", "2"])
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(said.len() as u64, seeds);
    let kept_alive = |text: &String| {
        let (_, rest) = text.split_once("kept_alive: ")?;
        rest.split(',').next()?.parse::<u64>().ok()
    };
    let kept_alive: u64 = said.iter().map(|text| kept_alive(text).expect("the report of a run")).sum();
    assert!(seeds < 20 || kept_alive > seeds / 4, "leases were hardly ever kept alive: {kept_alive}");
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in [3, 4] {
        let run = || {
            let output = Command::new(PROGRAM)
                .args(["--alone", "--count", "4", "--seed", &seed.to_string()])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let first = run();
        assert!(first.contains("fingerprint"), "{first}");
        assert_eq!(first, run());
    }
}

#[test]
fn mistakes_made_on_purpose_are_found() {
    for plant in ["stale-reads", "lying-disks"] {
        let found = each_alone(Path::new(PROGRAM), 1, 10, &["--plant", plant]);
        assert!(found.is_err(), "ten seeds do not find {plant}");
    }
}
