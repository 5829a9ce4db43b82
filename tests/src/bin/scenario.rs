//! Runs scenario files in the engine alone and on the real kernel, and prints expected against
//! found. Exit code 1 where they differ. With `--table` it prints the table of docs/scenarios.md.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use detector_tests::scenario::compare::{AllSeen, differences};
use detector_tests::scenario::engine::{self, StartOrder};
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{Family, Named, all_paths, catalogue, load, node};

/// Scenarios that run at once on the real kernel: they mostly wait.
const AT_ONCE: usize = 6;

/// One scenario in one family at one rung.
struct Case<'a> {
    named: &'a Named,
    family: Family,
    rung: Rung,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rung {
    Engine,
    Ebpf,
    Netlink,
}

/// What came of a case.
enum Outcome {
    Held { found: usize, slowest: Duration },
    Differs { differences: Vec<String>, seen: AllSeen },
    Skipped(String),
    Failed(String),
}

fn main() -> Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some("--table") {
        print!("{}", catalogue::table(&load(&all_paths()?)?));
        return Ok(ExitCode::SUCCESS);
    }
    let mut files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        files = all_paths()?;
    }
    let scenarios = load(&files)?;
    if scenarios.is_empty() {
        bail!("no scenario files: give some, or run this in the project's folder");
    }
    let cases = cases(&scenarios);
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(cases.iter().map(|_| None).collect());
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(at) else { return };
                    let outcome = run(case);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes[at] = Some(outcome);
                    }
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_default();
    Ok(report(&cases, &outcomes, started.elapsed()))
}

fn cases(scenarios: &[Named]) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for rung in [Rung::Engine, Rung::Ebpf, Rung::Netlink] {
        for named in scenarios {
            for family in &named.scenario.families {
                cases.push(Case { named, family: *family, rung });
            }
        }
    }
    cases
}

fn run(case: &Case<'_>) -> Outcome {
    let words = Words { scenario: &case.named.scenario, family: case.family };
    let seen = match case.rung {
        Rung::Engine => engine::run(words, StartOrder::KernelFirst),
        rung => {
            if let Some(why) = &case.named.scenario.engine_only {
                return Outcome::Skipped(why.clone());
            }
            if !nix::unistd::geteuid().is_root() {
                return Outcome::Skipped("the real kernel's rung needs root".to_owned());
            }
            node::run(words, if rung == Rung::Ebpf { "ebpf" } else { "netlink" })
        }
    };
    let compared = seen.and_then(|seen| differences(words, &seen).map(|differ| (seen, differ)));
    match compared {
        Ok((seen, differences)) if differences.is_empty() => Outcome::Held {
            found: seen.len(),
            slowest: seen.values().map(|seen| seen.latency).max().unwrap_or_default(),
        },
        Ok((seen, differences)) => Outcome::Differs { differences, seen },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

fn report(cases: &[Case<'_>], outcomes: &[Option<Outcome>], took: Duration) -> ExitCode {
    let (mut held, mut failed, mut skipped) = (0, 0, 0);
    for (case, outcome) in cases.iter().zip(outcomes) {
        let rung = match case.rung {
            Rung::Engine => "engine",
            Rung::Ebpf => "kernel, ebpf",
            Rung::Netlink => "kernel, netlink",
        };
        let name = format!(
            "{:<5} {} ({}, {rung})",
            case.named.scenario.id,
            case.named.name,
            case.family.as_str()
        );
        match outcome {
            Some(Outcome::Held { found, slowest }) => {
                held += 1;
                let slowest = if *found == 0 || case.rung == Rung::Engine {
                    String::new()
                } else {
                    format!(", after {slowest:.1?}")
                };
                println!("ok    {name}: {found} found as expected{slowest}");
            }
            Some(Outcome::Differs { differences, seen }) => {
                failed += 1;
                println!("WRONG {name}: {}", case.named.scenario.title);
                for difference in differences {
                    println!("        {difference}");
                }
                for seen in seen.values() {
                    println!("        found: {seen}");
                }
            }
            Some(Outcome::Skipped(why)) => {
                skipped += 1;
                println!("skip  {name}: {why}");
            }
            Some(Outcome::Failed(why)) => {
                failed += 1;
                println!("WRONG {name}: {why}");
            }
            None => {
                failed += 1;
                println!("WRONG {name}: it has not run");
            }
        }
    }
    println!("in {:.1} s", took.as_secs_f64());
    println!("{held} passed, {failed} failed, {skipped} skipped");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
