//! Network namespaces that end by themselves.
//!
//! A namespace here has no name and no file: it lives as long as a descriptor of this process and
//! the processes in it do. Those are killed by the kernel when the thread that started them is
//! gone. So nothing is left behind, however a test ends.

mod netlink;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

pub use self::netlink::{LinkAddress, Netlink};
use crate::process::end_with_thread;

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    file: OwnedFd,
}

impl Namespace {
    /// Makes a namespace, with its loopback interface up. Needs root.
    ///
    /// # Panics
    /// Never: what is done in its thread gives errors.
    pub fn new() -> Result<Self> {
        let make = || -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("cannot make a network namespace: be root")?;
            Netlink::open()?.up("lo")?;
            Ok(File::open("/proc/thread-self/ns/net")?.into())
        };
        let file = std::thread::spawn(make).join().expect("making a namespace does not panic")?;
        Ok(Self { file })
    }

    /// A path by which other programs of this run can open the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Makes the command run in the namespace, and end with the thread that starts it.
    pub fn hold(&self, command: &mut Command) {
        let file = self.file.as_raw_fd();
        let enter = move || {
            // SAFETY: the descriptor stays open in the parent, of which this is a copy.
            let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(file) };
            Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
        };
        // SAFETY: between fork and exec `enter` makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
        end_with_thread(command);
    }

    /// Runs `work` in the namespace, in a thread of its own.
    ///
    /// # Panics
    /// Where `work` does.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace is open");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes changes in the namespace by netlink.
    pub fn netlink<T: Send>(&self, work: impl FnOnce(&Netlink) -> Result<T> + Send) -> Result<T> {
        self.within(|| work(&Netlink::open()?))
    }

    /// Runs a program in the namespace, with these words and this input; gives what it prints.
    pub fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.hold(&mut command);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {program}: `cargo xtask setup` installs it"))?;
        let mut stdin = child.stdin.take().context("its input is piped")?;
        // At once, so that it may print while it still reads. Where it ends early, what it says tells why.
        let (written, output) = std::thread::scope(|scope| {
            let written = scope.spawn(move || stdin.write_all(input.as_bytes()));
            let output = child.wait_with_output();
            (written.join().unwrap_or(Ok(())), output)
        });
        let output = output?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {}: {}", arguments.join(" "), said.trim());
        }
        written.with_context(|| format!("cannot write to {program}"))?;
        String::from_utf8(output.stdout).with_context(|| format!("{program} prints no text"))
    }

    /// Runs `ip` with these arguments in the namespace.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        self.run("ip", &arguments.split_whitespace().collect::<Vec<_>>(), "").map(drop)
    }

    /// Runs many `ip` commands in the namespace, by one process.
    pub fn ip_batch(&self, inet6: bool, commands: &[String]) -> Result<()> {
        let family = if inet6 { "-6" } else { "-4" };
        self.run("ip", &[family, "-batch", "-"], &(commands.join("\n") + "\n")).map(drop)
    }
}
