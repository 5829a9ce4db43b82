//! Real components that take in what the agent gives: journald, Prometheus, Alertmanager, and a
//! receiver of webhooks that fails as it is told.
//!
//! Each ends, and its folder vanishes, when it is dropped; whatever becomes of the test, the kernel
//! ends what runs. The agent of a test lives in a network namespace, so what it has to reach, or
//! what has to reach it, runs there too, and is asked from there.
//!
//! Reading order: [`journald`], [`prometheus`], [`alertmanager`], [`receiver`]; under them `place`
//! (where things run), [`http`] (how they are asked) and `server` (what servers have in common).

pub mod alertmanager;
pub mod http;
pub mod journald;
mod place;
pub mod prometheus;
pub mod receiver;
mod server;

use std::io::Write as _;
use std::path::Path;

/// Whether there is what a test needs: root, and these programs. Where not, says that `what` is
/// skipped, and why, where cargo does not hide it.
pub fn found_or_skip(what: &str, programs: &[&str]) -> bool {
    let why = if nix::unistd::geteuid().is_root() {
        let Some(missing) = programs.iter().find(|program| !is_found(program)) else {
            return true;
        };
        format!("there is no {missing}: run `cargo xtask test`, which installs it")
    } else {
        "it makes namespaces: be root".to_owned()
    };
    // Not by `eprintln`, which is not heard of a test that passes. Where nobody can hear it, there
    // is nobody to tell.
    let _ = writeln!(std::io::stderr(), "skipped: {what}: {why}");
    false
}

/// Whether there is a program: at its path, or by its name where programs are.
fn is_found(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}
