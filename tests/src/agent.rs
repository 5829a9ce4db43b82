//! The real agent, started in a namespace and listened to.

use std::ffi::CString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use detector_core::time::BootTime;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Namespace;

/// How long the agent may take to be ready, on a machine that is busy with other tests, or emulated.
const READY: Duration = Duration::from_mins(2);

/// A file that has no name, for what other programs must read from a path.
#[derive(Debug)]
pub struct MemoryFile(OwnedFd);

impl MemoryFile {
    /// A file with this text.
    pub fn new(text: &str) -> Result<Self> {
        let name = CString::new("detector-test")?;
        let file =
            nix::sys::memfd::memfd_create(name.as_c_str(), nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        let mut file = std::fs::File::from(file);
        file.write_all(text.as_bytes())?;
        Ok(Self(file.into()))
    }

    /// The path by which it can be read as long as this lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A finding that the agent wrote, and when its line arrived.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The finding.
    pub finding: Value,
    /// The line, as it was written.
    pub line: String,
    /// When the line was read.
    pub at: BootTime,
}

/// What an agent that has ended leaves.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it had found and nobody had heard yet.
    pub found: Vec<Heard>,
    /// All that it logged.
    pub logged: Vec<Value>,
}

/// A running agent.
pub struct Agent {
    child: Child,
    findings: Receiver<Heard>,
    log: Receiver<Value>,
    logged: Vec<Value>,
    /// What it may read again as long as it runs. A file that is gone would leave its path to
    /// whatever this process opens next.
    files: Vec<MemoryFile>,
    /// Whether its standard output is read.
    ear: Arc<(Mutex<bool>, Condvar)>,
}

/// The agent's program: the one named by `DETECTOR_BIN`, else the one beside this program.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DETECTOR_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = |folder: &Path| Some(folder.join("detector")).filter(|path| path.is_file());
    own.ancestors()
        .skip(1)
        .take(2)
        .find_map(beside)
        .context("the agent is not built: run `cargo build -p detector`")
}

impl Agent {
    /// Starts the agent in the namespace with these arguments, its log as JSON. It ends with the
    /// thread that starts it.
    pub fn start(namespace: &Namespace, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program()?);
        // What all agents of a machine would share is none of a test's, unless it says so.
        let own = ["--listen", "--socket", "--state"];
        let own = own.into_iter().filter(|flag| !arguments.contains(flag));
        command
            .arg("run")
            .args(arguments)
            .args(own.flat_map(|flag| [flag, "none"]))
            .args(["--log-format", "json"])
            .env_remove("KUBECONFIG")
            .env_remove("NODE_NAME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::launch(namespace, command)
    }

    /// Starts the agent by a command that ends with it and pipes its output: its own, or that of a
    /// container runtime.
    pub fn launch(namespace: &Namespace, mut command: Command) -> Result<Self> {
        namespace.hold(&mut command);
        let mut child = command.spawn().context("cannot start the agent")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = stdout.zip(stderr).context("the agent's output is piped")?;
        let (tell, findings) = channel();
        let ear = Arc::new((Mutex::new(true), Condvar::new()));
        let listening = Arc::clone(&ear);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let (open, opened) = &*listening;
                let open = open.lock().unwrap_or_else(PoisonError::into_inner);
                drop(opened.wait_while(open, |open| !*open));
                let at = now();
                let finding = serde_json::from_str(&line)
                    .unwrap_or_else(|_| Value::String(format!("not JSON: {line}")));
                if tell.send(Heard { finding, line, at }).is_err() {
                    return;
                }
            }
        });
        let (tell, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let entry = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if tell.send(entry).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, findings, log, logged: Vec::new(), files: Vec::new(), ear })
    }

    /// Keeps files that the agent was given the paths of.
    pub fn keep(&mut self, files: impl IntoIterator<Item = MemoryFile>) {
        self.files.extend(files);
    }

    /// Reads its standard output, or lets it wait.
    pub fn listen(&self, listen: bool) {
        let (open, opened) = &*self.ear;
        *open.lock().unwrap_or_else(PoisonError::into_inner) = listen;
        opened.notify_all();
    }

    /// The process: the one that was started, or that which a container runtime started in turn.
    pub fn pid(&self) -> Pid {
        let started = Pid::from_raw(self.child.id().cast_signed());
        descendant(started, "detector").unwrap_or(started)
    }

    /// Waits until the log says `message`; gives the entry.
    pub fn wait_for_log(&mut self, message: &str) -> Result<Value> {
        let says = |entry: &Value| entry["fields"]["message"] == message;
        if let Some(entry) = self.logged.iter().find(|entry| says(entry)) {
            return Ok(entry.clone());
        }
        let end = Instant::now() + READY;
        loop {
            match self.log.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(entry) => {
                    self.logged.push(entry.clone());
                    if says(&entry) {
                        return Ok(entry);
                    }
                }
                Err(_) => bail!("the agent never said {message:?}; it said: {:#?}", self.logged),
            }
        }
    }

    /// Waits until every source has told all there is.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        self.wait_for_log("ready").map(drop)
    }

    /// The next finding; `None` where none comes in time.
    pub fn next_finding(&self, patience: Duration) -> Result<Option<Heard>> {
        match self.findings.recv_timeout(patience) {
            Ok(heard) => Ok(Some(heard)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the agent has ended"),
        }
    }

    /// Whether the log has said `message` so far.
    pub fn has_logged(&mut self, message: &str) -> bool {
        self.logged.extend(self.log.try_iter());
        self.logged.iter().any(|entry| entry["fields"]["message"] == message)
    }

    /// Whether the log has said something with these words in it so far.
    pub fn has_logged_with(&mut self, words: &str) -> bool {
        self.logged.extend(self.log.try_iter());
        let message = |entry: &Value| entry["fields"]["message"].as_str().map(str::to_owned);
        self.logged.iter().filter_map(message).any(|message| message.contains(words))
    }

    /// Ends the agent by a signal that it cannot survive; gives how it ended, what it had found and
    /// nobody had heard yet, and all that it logged.
    pub fn end(mut self, signal: Signal) -> Result<Ended> {
        kill(self.pid(), signal)?;
        let status = self.child.wait()?;
        let found = self.findings.iter().collect();
        let mut logged = std::mem::take(&mut self.logged);
        logged.extend(self.log.iter());
        Ok(Ended { status, found, logged })
    }

    /// Ends the agent as Kubernetes would; gives all that it logged.
    pub fn stop(mut self) -> Result<Vec<Value>> {
        kill(self.pid(), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        let mut logged = std::mem::take(&mut self.logged);
        logged.extend(self.log.iter());
        if !status.success() {
            bail!("the agent ended with {status}: {logged:#?}");
        }
        Ok(logged)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended already where it was stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process of this name below `parent`, where there is one; `parent` itself is none.
fn descendant(parent: Pid, name: &str) -> Option<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).ok()?;
    let children: Vec<String> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .collect();
    children.iter().flat_map(|children| children.split_whitespace()).find_map(|child| {
        let child = Pid::from_raw(child.parse().ok()?);
        let command = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if command.trim_end() == name { Some(child) } else { descendant(child, name) }
    })
}

/// Now, on the clock of the kernel's records.
///
/// # Panics
/// Where the kernel has no such clock, on which the agent does not run either.
pub fn now() -> BootTime {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .expect("every kernel of this century has the boot clock");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
    BootTime::from_nanos(
        seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or_default(),
    )
}
