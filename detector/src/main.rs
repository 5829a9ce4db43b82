//! `detector`: what was typed, done.

use std::io::{BufReader, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use detector::cli::{AuditArgs, Cli, Colour, Command, LogFormat, PolicyArgs, RunArgs, Shown};
use detector::config::{self, ConfigError, Output};
use detector::selftest::SelftestArgs;
use detector::{
    admission, agent, audit, client, probe, recording, runbook, seccomp, selftest, sink,
};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => return run(&args),
        Command::Audit(args) => return audit(&args),
        Command::Policy(args) => return policy(&args),
        Command::Config(command) => {
            let done = command.run(&mut std::io::stdout().lock(), &mut std::io::stderr().lock());
            done.map(ExitCode::from).map_err(Into::into)
        }
        Command::Probe { output, color } => probe(output, color),
        Command::Seccomp { file: None } => write(seccomp::PROFILE.as_bytes()),
        Command::Seccomp { file: Some(file) } => {
            seccomp::install(&file).map(|()| ExitCode::SUCCESS)
        }
        Command::Selftest(args) => return selftest(&args),
        Command::TestAlert(args) => return test_alert(&args),
        Command::Replay { file, output } => replay(&file, output),
        Command::Runbook { page } => runbook(page.as_deref()),
        Command::Completions { shell } => {
            let mut written = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "detector", &mut written);
            write(&written)
        }
        Command::Man { folder } => man(folder.as_deref()),
        asked => match client::run(&asked, &mut std::io::stdout().lock()) {
            // Told apart from what `findings --fail` ends with.
            Err(error) if !is_broken_pipe(&error) => return complain(&format!("{error:#}"), 2),
            done => done,
        },
    };
    match done {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

/// Nobody reads any more; there is nobody to tell.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn write(text: &[u8]) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn runbook(page: Option<&str>) -> anyhow::Result<ExitCode> {
    match runbook::page(page.unwrap_or("README")) {
        Some(text) => write(text.as_bytes()),
        None => Ok(complain(
            &format!("there is no such page: write one of {}", runbook::names().join(", ")),
            2,
        )),
    }
}

fn man(folder: Option<&Path>) -> anyhow::Result<ExitCode> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return write(&page);
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .with_context(|| format!("no man pages can be written to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn replay(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let opened = std::fs::File::open(file)
        .with_context(|| format!("the recording {} cannot be read", file.display()))?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let replayed = recording::replay(BufReader::new(opened), &mut |report| {
        let mut line = Vec::new();
        match output {
            Output::Json => report.write_json(&mut line),
            Output::Text => sink::write_text(&report, &mut line),
        }
        out.write_all(&line)
    })?;
    out.flush()?;
    let recording::Replayed { words, told, standing, torn } = replayed;
    let torn = if torn { "; the agent was ended in the middle" } else { "" };
    // Where stderr is gone there is nobody to tell.
    let _ = writeln!(
        std::io::stderr(),
        "replayed: {words} words to the engine, {told} findings told, {standing} standing{torn}"
    );
    Ok(ExitCode::SUCCESS)
}

fn probe(output: Shown, colour: Colour) -> anyhow::Result<ExitCode> {
    let probe = runtime()?.block_on(async { probe::run().await });
    let mut shown = Vec::new();
    client::show_probe(&probe, output, colour, &mut shown)?;
    write(&shown)?;
    Ok(if probe.is_enough() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn test_alert(args: &RunArgs) -> ExitCode {
    let config = match config::load(args) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), ConfigError::EXIT_CODE),
    };
    let tested = runtime().and_then(|runtime| {
        runtime.block_on(sink::test::run(config, &mut std::io::stderr().lock()))
    });
    match tested {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn selftest(args: &SelftestArgs) -> ExitCode {
    if let Some(interface) = &args.sweep {
        let swept = selftest::sweep(interface);
        return swept.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let run = args.run();
    let config = match config::load(&run) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), ConfigError::EXIT_CODE),
    };
    let _log = init_log(&run);
    keep_to_one_arena();
    let tested = runtime().and_then(|runtime| {
        // Not locked: standard output is a sink, which is tested too.
        let tested = runtime.block_on(selftest::run(config, args, &mut std::io::stdout()));
        runtime.shutdown_timeout(FAREWELL);
        tested
    });
    match tested {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<selftest::Refused>() => complain(&format!("{error:#}"), 2),
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn audit(args: &AuditArgs) -> ExitCode {
    keep_to_one_arena();
    let audited = runtime().and_then(|runtime| {
        runtime.block_on(audit::run(args, &mut std::io::stdout().lock(), &mut std::io::stderr()))
    });
    match audited {
        Ok(code) => ExitCode::from(code),
        // Nobody reads any more; that is told apart from findings, as is the rest.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(2),
        Err(error) => complain(&format!("{error:#}"), 2),
    }
}

fn policy(args: &PolicyArgs) -> ExitCode {
    let printed = runtime().and_then(|runtime| {
        runtime.block_on(admission::run(args, &mut std::io::stdout(), &mut std::io::stderr()))
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => complain(&format!("{error:#}"), 2),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no threads for the agent: raise the limit of processes")
}

/// How long what still goes on is waited for at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Lines of the log that wait for whoever reads standard error. More are dropped.
const LOG: usize = 8_192;

fn run(args: &RunArgs) -> ExitCode {
    let config = match config::load(args) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), ConfigError::EXIT_CODE),
    };
    // What the agent makes names pods and addresses: nobody else's to read.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let log = init_log(args);
    keep_to_one_arena();
    let ended = runtime().and_then(|runtime| {
        let ended = runtime.block_on(agent::run(config, args));
        // A look-up of a name, say, cannot be broken off.
        runtime.shutdown_timeout(FAREWELL);
        ended
    });
    let code = match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), 1),
    };
    // What is queued is written, if anybody reads it.
    let (tell, written) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        drop(log);
        let _ = tell.send(());
    });
    let _ = written.recv_timeout(3 * FAREWELL);
    code
}

/// Makes the allocator give all threads one arena: what listings leave behind in an arena for each
/// thread is a seventh of the agent's memory, and its threads allocate too little to be in each
/// other's way.
fn keep_to_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) changes a number that the allocator reads when a thread first allocates; it
    // takes no pointers, and at this point the process has no other thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// One line on stderr, and the exit code.
fn complain(line: &str, code: u8) -> ExitCode {
    // Where stderr is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "detector: {line}");
    ExitCode::from(code)
}

/// The agent's own log, on stderr, by a thread of its own: nobody who reads it slowly may hold the agent
/// up. Of other libraries only what they warn of: they log requests, and so what is in them. What is
/// queued is written when the guard is dropped.
fn init_log(args: &RunArgs) -> WorkerGuard {
    let level = LevelFilter::from_level(args.log_level.into());
    let filter =
        Targets::new().with_target("detector", level).with_default(level.min(LevelFilter::WARN));
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LOG)
        .lossy(true)
        .thread_name("log")
        .finish(std::io::stderr());
    let layer = match args.log_format {
        LogFormat::Text => fmt::layer()
            .with_writer(writer)
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_target(false)
            .boxed(),
        LogFormat::Json => fmt::layer().with_writer(writer).json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    guard
}
