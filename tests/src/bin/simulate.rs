//! Random stories in the engine alone, with the truth known: see `detector_tests::simulator`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use detector_tests::simulator::{KINDS, Outcome, Theme, run};

/// Failures that are named; of the others only the number is told.
const NAMED: usize = 20;

/// Tells random stories of legitimate pods and of attacks, and compares what the engine finds with
/// the truth.
#[derive(Parser)]
#[command(name = "cargo xtask simulate", max_term_width = 100)]
struct Arguments {
    /// How many legitimate lives of pods to tell in stories without an attack.
    #[arg(long, default_value_t = 1_000_000)]
    lives: u64,
    /// How many attacks to tell, of all kinds alike.
    #[arg(long, default_value_t = 100_000)]
    attacks: u64,
    /// The seed of the first story; the others follow. By chance where it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Tell one story, the one of --seed, line by line: `peace` or a kind of attack.
    #[arg(long, value_name = "THEME", value_parser = theme, requires = "seed")]
    story: Option<Theme>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(theme) = arguments.story {
        return Ok(story(arguments.seed.context("--story needs --seed")?, theme));
    }
    // A seed that people can type.
    let first = arguments.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    println!("the first seed is {first}");
    let mut failed = 0;
    failed += tell(Theme::Peace, first, |told, _| told.lifecycles >= arguments.lives)?;
    let kinds = u64::try_from(KINDS.len())?;
    for (n, kind) in (0..).zip(KINDS) {
        let share = arguments.attacks / kinds + u64::from(n < arguments.attacks % kinds);
        failed += tell(Theme::Attack(kind), first, |_, stories| stories >= share)?;
    }
    if failed > 0 {
        bail!("{failed} stories ended wrong; each can be told again as shown");
    }
    Ok(ExitCode::SUCCESS)
}

/// What a theme's stories came to.
#[derive(Default)]
struct Told {
    lifecycles: u64,
    observations: u64,
    failures: Vec<(u64, String)>,
}

/// Tells stories of one theme until it is enough; gives how many ended wrong.
fn tell(theme: Theme, first: u64, enough: impl Fn(&Told, u64) -> bool + Sync) -> Result<usize> {
    let begun = Instant::now();
    let next = AtomicU64::new(0);
    let told = Mutex::new(Told::default());
    let lock = || told.lock().map_err(|_| anyhow::anyhow!("a story panicked"));
    std::thread::scope(|scope| {
        let tellers: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        if enough(&*lock()?, next.load(Ordering::Relaxed)) {
                            return Ok(());
                        }
                        let seed = first.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
                        let Outcome { lifecycles, observations, failure, .. } =
                            run(seed, theme, false);
                        let mut told = lock()?;
                        told.lifecycles += lifecycles;
                        told.observations += observations;
                        told.failures.extend(failure.map(|failure| (seed, failure)));
                    }
                })
            })
            .collect();
        tellers.into_iter().try_for_each(|teller| match teller.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("a story of {theme} panicked"),
        })
    })?;
    let told = lock()?;
    let stories = next.load(Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{theme}: {stories} stories, {} legitimate lives, {} observations, {} wrong, {seconds:.1} s",
        told.lifecycles,
        told.observations,
        told.failures.len(),
    );
    for (seed, failure) in told.failures.iter().take(NAMED) {
        println!("  {failure}");
        println!("  again: cargo xtask simulate --seed {seed} --story {theme}");
    }
    Ok(told.failures.len())
}

/// Tells one story line by line.
fn story(seed: u64, theme: Theme) -> ExitCode {
    let outcome = run(seed, theme, true);
    for line in outcome.log {
        println!("{line}");
    }
    match outcome.failure {
        Some(failure) => {
            println!("wrong: {failure}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn theme(word: &str) -> Result<Theme, String> {
    if word == "peace" {
        return Ok(Theme::Peace);
    }
    let kind = KINDS.into_iter().find(|kind| kind.as_str() == word);
    kind.map(Theme::Attack).ok_or_else(|| {
        let all: Vec<&str> = KINDS.iter().map(|kind| kind.as_str()).collect();
        format!("write peace, or one of {}", all.join(", "))
    })
}
