//! systemd's journald, which believes that it is the machine's own.
//!
//! It runs in a mount namespace whose /run is a folder of the test: there it makes its sockets, and
//! keeps its journal, and from there both are used. So neither does the machine need to run systemd,
//! nor does its own journal notice.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Keeper, Process, end_with_thread};

/// What it needs.
pub const PROGRAMS: &[&str] = &["/lib/systemd/systemd-journald", "journalctl"];

/// How long journald may take for anything, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often it is asked whether it has ended, or has what a test waits for.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Everything that is sent, and only that, is kept, and only here. `Audit` is empty so that the
/// kernel's auditing stays as it is: `no` would switch it off.
const CONFIG: &str = "[Journal]
Storage=volatile
RuntimeMaxUse=256M
RuntimeKeepFree=1M
RateLimitIntervalSec=0
RateLimitBurst=0
MaxLevelStore=debug
ReadKMsg=no
Audit=
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
";

/// A running journald. It ends, and all that it has, when it is dropped.
#[derive(Debug)]
pub struct Journald {
    // Dropped in this order: the process first, the folder last.
    process: Mutex<Option<Process>>,
    keeper: Keeper,
    socket: PathBuf,
    folder: TempDir,
}

// === impl Journald ===

impl Journald {
    /// Starts journald, and waits until it takes messages.
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("detector-journald-")
            .tempdir()
            .context("cannot make a folder")?;
        let run = folder.path().join("run");
        for path in ["systemd/journal", "systemd/journald.conf.d", "log/journal"] {
            fs::create_dir_all(run.join(path)).context("cannot make a folder")?;
        }
        // The last by name prevails over the machine's own.
        fs::write(run.join("systemd/journald.conf.d/zz-test.conf"), CONFIG)
            .context("cannot write a configuration")?;
        let socket = run.join("systemd/journal/socket");
        let process = Mutex::new(None);
        let journald = Self { process, keeper: Keeper::new()?, socket, folder };
        journald.restart()?;
        Ok(journald)
    }

    /// The socket of the native protocol.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes a command see this journald where programs look for one, under /run.
    pub fn show_to(&self, command: &mut Command) -> Result<()> {
        let run = CString::new(self.run().as_os_str().as_bytes()).context("an odd folder")?;
        let none = None::<&CStr>;
        let show = move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNS)?;
            // Else the machine would see it too.
            mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some(run.as_c_str()), c"/run", none, MsFlags::MS_BIND, none)?;
            Ok(())
        };
        // SAFETY: between fork and exec `show` makes three system calls and allocates nothing: what
        // it passes are C strings already.
        unsafe { command.pre_exec(show) };
        Ok(())
    }

    /// All that was sent before and that has all of these fields, such as `PRIORITY=4`; the oldest
    /// first. What was sent while nobody took messages is not waited for.
    pub fn entries(&self, fields: &[&str]) -> Result<Vec<Value>> {
        let parse = |line: &str| -> Result<Value> {
            serde_json::from_str(line).with_context(|| format!("journalctl prints {line:?}"))
        };
        self.journalctl("json", fields)?.lines().map(parse).collect()
    }

    /// The same as people see it.
    pub fn verbose(&self, fields: &[&str]) -> Result<String> {
        self.journalctl("verbose", fields)
    }

    /// Waits until there are so many entries with these fields, or more; gives all.
    pub fn wait_for(
        &self,
        count: usize,
        fields: &[&str],
        patience: Duration,
    ) -> Result<Vec<Value>> {
        let end = Instant::now() + patience;
        loop {
            let entries = self.entries(fields)?;
            if entries.len() >= count {
                return Ok(entries);
            }
            ensure!(
                Instant::now() < end,
                "{} entries and not {count} have {fields:?} after {patience:?}",
                entries.len()
            );
            std::thread::sleep(ASK_EVERY);
        }
    }

    /// Kills journald: whoever sends is refused, and who was connected has to connect again.
    pub fn stop(&self) {
        drop(self.process().take());
    }

    /// Starts journald, killing the one that runs, and waits until it takes messages. Its journal
    /// stays.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        let ready = self.folder.path().join("ready");
        // The one before may have left it.
        let _ = fs::remove_file(&ready);
        let told = UnixDatagram::bind(&ready).context("cannot make a socket")?;
        told.set_read_timeout(Some(ASK_EVERY))?;
        let log = self.folder.path().join("log");
        let mut process = self.keeper.start(self.command(&ready, &log)?)?;
        let end = Instant::now() + PATIENCE;
        let mut word = [0; 256];
        loop {
            let length = told.recv(&mut word).unwrap_or(0);
            if word[..length].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
                break;
            }
            let said = || fs::read_to_string(&log).unwrap_or_default();
            if let Some(status) = process.ended()? {
                bail!("journald ended with {status}; it said:\n{}", said());
            }
            ensure!(Instant::now() < end, "journald is not ready; it said:\n{}", said());
        }
        *self.process() = Some(process);
        Ok(())
    }

    /// Makes journald take no more messages, without refusing them, until [`Journald::thaw`]: a few
    /// wait in the socket, then whoever sends waits. So it is too where systemd starts it anew.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Makes journald take messages again, those that wait first.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process();
        let id = process.as_ref().context("journald does not run")?.id();
        kill(Pid::from_raw(id.cast_signed()), signal).context("cannot signal journald")
    }

    /// The folder that it takes for /run.
    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn command(&self, ready: &Path, log: &Path) -> Result<Command> {
        let log = File::create(log).context("cannot make a log file")?;
        let mut command = Command::new(PROGRAMS[0]);
        command
            .env("NOTIFY_SOCKET", ready)
            // What it says of itself would go to the kernel's log.
            .env("SYSTEMD_LOG_TARGET", "console")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.show_to(&mut command)?;
        Ok(command)
    }

    fn journalctl(&self, format: &str, fields: &[&str]) -> Result<String> {
        if self.process().is_some() {
            self.synchronize().context("journald does not say that it has written all")?;
        }
        let mut command = Command::new(PROGRAMS[1]);
        command
            .args(["--all", "--quiet", "--no-pager", "--output", format, "--directory"])
            .arg(self.run().join("log/journal"))
            .args(fields)
            .stdin(Stdio::null());
        end_with_thread(&mut command);
        let output = command.output().context("cannot start journalctl")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("journalctl: {}", said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until journald has written all that was sent before, as `journalctl --sync` does: it
    /// answers this when it has nothing else to do.
    fn synchronize(&self) -> Result<()> {
        let mut stream =
            UnixStream::connect(self.run().join("systemd/journal/io.systemd.journal"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"{\"method\":\"io.systemd.Journal.Synchronize\"}\0")?;
        let mut answer = Vec::new();
        BufReader::new(stream).read_until(0, &mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let answer: Value = serde_json::from_str(text.trim_end_matches('\0'))?;
        ensure!(answer.get("error").is_none(), "it answers {answer}");
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
