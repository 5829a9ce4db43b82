//! Processes that end when the test does.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

/// Makes the command end with the thread that starts it.
pub fn end_with_thread(command: &mut Command) {
    let parent = nix::unistd::getpid();
    let bind = move || {
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        // The parent may have ended before the line above.
        if nix::unistd::getppid() == parent {
            Ok(())
        } else {
            Err(io::Error::other("the test has ended"))
        }
    };
    // SAFETY: between fork and exec `bind` makes two system calls and allocates nothing but an
    // error on its way out.
    unsafe { command.pre_exec(bind) };
}

/// Starts processes that end with it, whichever thread asks for them.
///
/// The kernel ends a process with the thread that started it, not with the program. Threads of a
/// runtime come and go; this has one that stays.
#[derive(Debug)]
pub struct Keeper {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

struct Order {
    command: Command,
    started: SyncSender<io::Result<Child>>,
}

// === impl Keeper ===

impl Keeper {
    /// A keeper of no process yet.
    pub fn new() -> Result<Self> {
        let (orders, ordered) = channel::<Order>();
        let thread = std::thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                for Order { mut command, started } in ordered {
                    end_with_thread(&mut command);
                    // Whoever asked waits for it.
                    let _ = started.send(command.spawn());
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Starts a process.
    pub fn start(&self, command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let (started, answer) = sync_channel(1);
        let orders = self.orders.as_ref().context("the keeper has ended")?;
        orders.send(Order { command, started }).ok().context("the keeper's thread has ended")?;
        let child = answer.recv().context("the keeper's thread has ended")?;
        Ok(Process(child.with_context(|| format!("cannot start {program}"))?))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // It ends when there are no more orders; where it panicked it has ended already.
            let _ = thread.join();
        }
    }
}

/// A process that is killed, and waited for, when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

// === impl Process ===

impl Process {
    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it ended, where it has.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.0.try_wait().context("cannot ask after a process")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds of CPU that the process has used.
#[expect(clippy::cast_precision_loss, reason = "figures for people have three digits")]
pub fn cpu(pid: Pid) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("a command")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(ticks as f64 / per_second as f64)
}

/// A figure of the process's memory, in KiB.
pub fn memory(pid: Pid, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).context("a figure of memory")?;
    Ok(line.split_whitespace().nth(1).context("its value")?.parse()?)
}
