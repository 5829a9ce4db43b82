//! What servers have in common: a port that stays theirs, a log, a word when they are ready.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::http::{Answer, Request, ask};
use super::place::{Place, Port};
use crate::process::{Keeper, Process};

/// How long a server may take to be ready, on a machine that is busy with other tests.
const READY: Duration = Duration::from_mins(1);

/// How often it is asked whether it is.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The lines of a log that an error shows.
const LAST_LINES: usize = 15;

/// A server that can be stopped and started again. It ends, and its folder vanishes, when it is
/// dropped.
#[derive(Debug)]
pub(super) struct Server {
    // Dropped in this order: the process first, the folder last.
    process: Mutex<Option<Process>>,
    keeper: Keeper,
    program: &'static str,
    arguments: Vec<String>,
    port: Port,
    place: Place,
    folder: TempDir,
}

// === impl Server ===

impl Server {
    /// Starts a program at a place, to listen on a port, and waits until it is ready. Its
    /// configuration is given as JSON, which its YAML includes.
    pub(super) fn start(
        program: &'static str,
        place: Place,
        port: Port,
        config: &Value,
        arguments: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("detector-server-")
            .tempdir()
            .context("cannot make a folder")?;
        let path = folder.path().join("config.yml");
        fs::write(&path, config.to_string()).context("cannot write a configuration")?;
        let mut all = vec![
            format!("--config.file={}", path.display()),
            format!("--web.listen-address={}", port.addr()),
            "--log.level=warn".to_owned(),
        ];
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let process = Mutex::new(None);
        let keeper = Keeper::new()?;
        let server = Self { process, keeper, program, arguments: all, port, place, folder };
        server.restart()?;
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.port.addr()
    }

    /// Kills the program: connections break off, and new ones are refused.
    pub(super) fn stop(&self) {
        drop(self.process().take());
    }

    /// Starts the program, killing the one that runs, and waits until it is ready.
    pub(super) fn restart(&self) -> Result<()> {
        self.stop();
        let log = self.folder.path().join("log");
        let mut process = self.keeper.start(self.command(&log)?)?;
        let end = Instant::now() + READY;
        loop {
            let Err(unready) = self.ask(&Request::get("/-/ready")) else { break };
            if let Some(status) = process.ended()? {
                bail!("{} ended with {status}; it said last:\n{}", self.program, last_lines(&log));
            }
            ensure!(
                Instant::now() < end,
                "{} is not ready after {READY:?} ({unready:#}); it said last:\n{}",
                self.program,
                last_lines(&log)
            );
            std::thread::sleep(ASK_EVERY);
        }
        *self.process() = Some(process);
        Ok(())
    }

    /// Asks it; an answer other than 200 is an error.
    pub(super) fn ask(&self, request: &Request) -> Result<Answer> {
        let answer = ask(self.place.connect(self.addr())?, request)?;
        ensure!(
            answer.status == 200,
            "{} answers {} {} with {}: {}",
            self.program,
            request.method,
            request.target,
            answer.status,
            answer.text().trim()
        );
        Ok(answer)
    }

    fn command(&self, log: &Path) -> Result<Command> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .context("cannot make a log file")?;
        let mut command = Command::new(self.program);
        command
            .args(&self.arguments)
            // Each keeps its data in a folder beside the configuration.
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.place.hold(&mut command);
        Ok(command)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a log, where there is one.
fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
