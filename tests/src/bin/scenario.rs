//! Runs scenario files in the engine alone, on the real kernel, and on the real kernel with a real
//! API server, and prints expected against found. Exit code 1 where they differ.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Parser as _;
use detector_tests::cluster::Cluster;
use detector_tests::cluster::programs::Programs;
use detector_tests::scenario::compare::{AllSeen, Shown, differences};
use detector_tests::scenario::engine::{self, StartOrder};
use detector_tests::scenario::step::{ApiState, Step};
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{Family, Named, all_paths, catalogue, load, node, recorded};

const NEEDS_ROOT: &str = "the real kernel's rung needs root";

/// Scenarios that run with a real API server where no files are named: those of the bulletin, and
/// innocent days of each sort. They run one after the other, in one cluster.
const IN_CLUSTER: [&str; 13] = [
    "e01-floating-ip-feature-off",
    "e02-floating-ip-not-allowed",
    "e02-floating-ip-of-nobody",
    "e05-forged-status-and-annotation",
    "e06-forged-status",
    "e08-past-ipam",
    "e13-the-next-owner-here",
    "e31-prefix-annotation",
    "twin-address-reused",
    "twin-approved-floating-ip",
    "twin-finished-job",
    "twin-host-network-pod",
    "twin-pod-deleted",
];

/// One scenario in one family at one rung.
struct Case<'a> {
    named: &'a Named,
    family: Family,
    rung: Rung,
}

impl Case<'_> {
    fn name(&self) -> String {
        let rung = match self.rung {
            Rung::Engine => "engine",
            Rung::Ebpf => "kernel, ebpf",
            Rung::Netlink => "kernel, netlink",
            Rung::Cluster => "kernel, real API server",
        };
        let Named { name, scenario, .. } = self.named;
        format!("{:<5} {name} ({}, {rung})", scenario.id, self.family.as_str())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rung {
    Engine,
    Ebpf,
    Netlink,
    Cluster,
}

/// What came of a case.
enum Outcome {
    Held { found: usize, slowest: Duration },
    Differs { differences: Vec<String>, seen: AllSeen },
    Skipped(String),
    Failed(String),
}

/// Runs scenarios; without files, all of them.
#[derive(clap::Parser)]
struct Arguments {
    /// Print the table of docs/scenarios.md.
    #[arg(long)]
    table: bool,
    /// Run them on the real kernel only.
    #[arg(long)]
    kernel: bool,
    /// On the real kernel, trace nothing, and load no programs on interfaces where no packets count.
    #[arg(long)]
    lean: bool,
    /// Run only those whose names have this in them.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// How many run at once on the real kernel: they mostly wait.
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    jobs: usize,
    /// Make a scenario of this recording (`detector run --record`); `files` is its name.
    #[arg(long, value_name = "FILE")]
    from_recording: Option<PathBuf>,
    /// The row of the catalogue that the new scenario is for, or `twin`.
    #[arg(long, value_name = "ID", default_value = "twin")]
    id: String,
    /// Scenario files.
    files: Vec<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.table {
        print!("{}", catalogue::table(&load(&all_paths()?)?));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(recording) = &arguments.from_recording {
        let [name] = arguments.files.as_slice() else {
            bail!("name the new scenario: --from-recording FILE --id E01 NAME");
        };
        let made = recorded::make(recording, &name.to_string_lossy(), &arguments.id)?;
        println!("{}", made.display());
        println!("docs/scenarios.md wants its row: --table prints the table");
        return Ok(ExitCode::SUCCESS);
    }
    let named = !arguments.files.is_empty();
    let files = if named { arguments.files } else { all_paths()? };
    let mut scenarios = load(&files)?;
    if !arguments.only.is_empty() {
        let is_meant = |name: &str| arguments.only.iter().any(|part| name.contains(part));
        scenarios.retain(|named| is_meant(&named.name));
    }
    if scenarios.is_empty() {
        bail!("no scenario files: give some, or run this in the project's folder");
    }
    let mut cases = cases(&scenarios, named);
    if arguments.kernel {
        cases.retain(|case| matches!(case.rung, Rung::Ebpf | Rung::Netlink));
    }
    let report = Mutex::new(Report::new(&cases));
    let note = |at: usize, outcome: Outcome| {
        if let Ok(mut report) = report.lock() {
            report.note(at, outcome);
        }
    };
    let in_cluster = |case: &Case<'_>| case.rung == Rung::Cluster;
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    match cases.get(at) {
                        Some(case) if in_cluster(case) => {}
                        Some(case) => note(at, run(case, arguments.lean)),
                        None => return,
                    }
                }
            });
        }
        let cases: Vec<_> = cases.iter().enumerate().filter(|(_, case)| in_cluster(case)).collect();
        if !cases.is_empty() {
            let cluster = cluster();
            for (at, case) in cases {
                note(at, run_in_cluster(case, cluster.as_ref()));
            }
        }
    });
    let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("in {:.1} s", started.elapsed().as_secs_f64());
    Ok(report.finish())
}

fn cases(scenarios: &[Named], files_were_named: bool) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for rung in [Rung::Engine, Rung::Ebpf, Rung::Netlink, Rung::Cluster] {
        for named in scenarios {
            let listed = files_were_named || IN_CLUSTER.contains(&named.name.as_str());
            if rung == Rung::Cluster && !listed {
                continue;
            }
            for family in &named.scenario.families {
                cases.push(Case { named, family: *family, rung });
            }
        }
    }
    cases
}

/// The cluster, or what becomes of all that need it.
fn cluster() -> Result<Arc<Cluster>, Missing> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Missing::Skipped(NEEDS_ROOT.to_owned()));
    }
    let programs = Programs::find().map_err(|why| Missing::Skipped(format!("{why:#}")))?;
    let cluster = Cluster::start(programs);
    cluster.map(Arc::new).map_err(|error| Missing::Failed(format!("{error:#}")))
}

enum Missing {
    Skipped(String),
    Failed(String),
}

fn run_in_cluster(case: &Case<'_>, cluster: Result<&Arc<Cluster>, &Missing>) -> Outcome {
    if let Some(why) = &case.named.scenario.engine_only {
        return Outcome::Skipped(why.clone());
    }
    let mut steps = case.named.scenario.given.iter().chain(&case.named.scenario.steps);
    if steps.any(|step| matches!(step, Step::Api(ApiState::Held | ApiState::Released))) {
        return Outcome::Skipped("a real API server holds no watches back".to_owned());
    }
    let words = Words { scenario: &case.named.scenario, family: case.family };
    match cluster {
        Ok(cluster) => compare(words, node::run_in_cluster(words, Arc::clone(cluster))),
        Err(Missing::Skipped(why)) => Outcome::Skipped(why.clone()),
        Err(Missing::Failed(why)) => Outcome::Failed(why.clone()),
    }
}

fn run(case: &Case<'_>, lean: bool) -> Outcome {
    let words = Words { scenario: &case.named.scenario, family: case.family };
    if case.rung == Rung::Engine {
        return compare(words, engine::run(words, StartOrder::KernelFirst));
    }
    if let Some(why) = &case.named.scenario.engine_only {
        return Outcome::Skipped(why.clone());
    }
    if !nix::unistd::geteuid().is_root() {
        return Outcome::Skipped(NEEDS_ROOT.to_owned());
    }
    let shown = match case.rung {
        Rung::Netlink => node::run_by_netlink(words),
        _ => node::run(words, lean),
    };
    compare(words, shown)
}

fn compare(words: Words<'_>, shown: Result<Shown>) -> Outcome {
    let compared =
        shown.and_then(|shown| differences(words, &shown).map(|differ| (shown.seen, differ)));
    match compared {
        Ok((seen, differences)) if differences.is_empty() => Outcome::Held {
            found: seen.len(),
            slowest: seen.values().map(|seen| seen.latency).max().unwrap_or_default(),
        },
        Ok((seen, differences)) => Outcome::Differs { differences, seen },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// What has come of the cases so far. It prints them in their order, each as soon as those before it have
/// ended.
struct Report<'a> {
    cases: &'a [Case<'a>],
    outcomes: Vec<Option<Outcome>>,
    /// How many have been printed.
    printed: usize,
    held: usize,
    failed: usize,
    skipped: usize,
}

impl<'a> Report<'a> {
    fn new(cases: &'a [Case<'a>]) -> Self {
        let outcomes = cases.iter().map(|_| None).collect();
        Self { cases, outcomes, printed: 0, held: 0, failed: 0, skipped: 0 }
    }

    fn note(&mut self, at: usize, outcome: Outcome) {
        self.outcomes[at] = Some(outcome);
        while let Some(outcome) = self.outcomes.get_mut(self.printed).and_then(Option::take) {
            self.print(&self.cases[self.printed], outcome);
            self.printed += 1;
        }
    }

    fn print(&mut self, case: &Case<'_>, outcome: Outcome) {
        let name = case.name();
        match outcome {
            Outcome::Held { found, slowest } => {
                self.held += 1;
                let slowest = if found == 0 || case.rung == Rung::Engine {
                    String::new()
                } else {
                    format!(", after {slowest:.1?}")
                };
                println!("ok    {name}: {found} found as expected{slowest}");
            }
            Outcome::Differs { differences, seen } => {
                self.failed += 1;
                println!("WRONG {name}: {}", case.named.scenario.title);
                for difference in differences {
                    println!("        {difference}");
                }
                for seen in seen.values() {
                    println!("        found: {seen}");
                }
            }
            Outcome::Skipped(why) => {
                self.skipped += 1;
                println!("skip  {name}: {why}");
            }
            Outcome::Failed(why) => {
                self.failed += 1;
                println!("WRONG {name}: {why}");
            }
        }
    }

    fn finish(mut self) -> ExitCode {
        for case in &self.cases[self.printed..] {
            self.failed += 1;
            println!("WRONG {}: it has not run", case.name());
        }
        println!("{} passed, {} failed, {} skipped", self.held, self.failed, self.skipped);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
