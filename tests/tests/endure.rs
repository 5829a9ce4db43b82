//! A short run of what `cargo xtask endure` does at length.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write as _;

use detector_tests::agent;
use detector_tests::cluster::programs::Programs;
use detector_tests::endure::{Plan, run};

const ROUNDS: u32 = 4;
const SEED: u64 = 1;

#[test]
fn an_agent_is_right_while_it_and_the_api_server_are_killed_now_and_then() {
    let Some(programs) = Programs::find_or_skip("all of endure") else { return };
    let skip = |why: &str| {
        // Not by `eprintln`, which is not heard of a test that passes.
        let _ = writeln!(std::io::stderr(), "skipped: all of endure: {why}");
    };
    if !nix::unistd::geteuid().is_root() {
        return skip("it makes network namespaces: be root");
    }
    if let Err(why) = agent::program() {
        return skip(&format!("{why:#}"));
    }
    run(programs, Plan { seed: SEED, rounds: ROUNDS }).unwrap();
}
