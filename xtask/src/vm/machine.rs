//! A machine while it runs.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::ramdisk::Ramdisk;
use crate::build;
use crate::setup::kernels::Fetched;

/// How long a machine may take in all, and how long it may say nothing.
const PATIENCE: Duration = Duration::from_hours(1);
const SILENCE: Duration = Duration::from_mins(8);

/// What a machine's exit code is where all was well: of the number 1 that the guest writes to
/// `isa-debug-exit`, qemu makes 3. A machine that is powered off otherwise ends with 0.
const ALL_WELL: i32 = 3;

/// What the guest writes where something failed.
const FAILED: i32 = 5;

/// What is dear to emulate and tests nothing is left out: instructions that copy byte by byte, wide
/// registers and the saving of them, page tables of five levels, guards that end each block of translated
/// code.
const CPU: &str = "max,-erms,-fsrm,-la57,-smap,-smep,-avx,-avx2,-xsave";

/// What the kernel is told, beside where its console is: programs lie at the same addresses each time, for
/// else all their code is translated anew for each process, which took two fifths of the time; and memory is not
/// cleared before anybody asks for that.
const KERNEL: &str = "norandmaps init_on_alloc=0";

/// Time in the machine passes with its instructions, a thousand million to a second, and where it only waits
/// it jumps to what it waits for. So its programs find a machine as quick as others, however busy the one is
/// that emulates it, and what happens one soon after the other does so there too.
const CLOCK: &str = "shift=0,sleep=off";

/// How much of the console is shown of a machine that ended otherwise.
const SHOWN: usize = 60;

pub(super) struct Machine {
    qemu: Child,
    console: PathBuf,
    /// All that it writes.
    log: PathBuf,
    /// What it is called in messages.
    name: String,
}

// === impl Machine ===

impl Machine {
    /// Boots a kernel. The name is of the files that are made for it.
    pub(super) fn boot(kernel: &Fetched, disk: &Ramdisk, name: &str) -> Result<Self> {
        let folder = build::target()?.join("vm");
        let file = |ending: &str| folder.join(format!("{name}.{ending}"));
        let (initrd, console, log) = (file("cpio"), file("console"), file("log"));
        disk.write(&initrd)?;
        let mut qemu = Command::new("qemu-system-x86_64");
        // Not KVM even where it seems to be there: by emulation it is the same everywhere.
        qemu.args(["-accel", "tcg", "-cpu", CPU, "-smp", "1", "-m", "2048", "-icount", CLOCK]);
        qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initrd);
        qemu.arg("-append");
        qemu.arg(format!("console=ttyS0 panic=-1 quiet random.trust_cpu=on {KERNEL}"));
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        qemu.args(["-serial", "stdio"]);
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let qemu = qemu.spawn().context("cannot start qemu-system-x86_64")?;
        Ok(Self { qemu, console, log, name: name.to_owned() })
    }

    /// Waits for its end; shows each line that it writes.
    pub(super) fn watch(mut self, mut line: impl FnMut(&str)) -> Result<()> {
        let stdout = self.qemu.stdout.take().context("the machine's output is piped")?;
        let (tell, told) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut log = fs::File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let end = Instant::now() + PATIENCE;
        let mut hangs = false;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match told.recv_timeout(left.min(SILENCE)) {
                Ok(said) => {
                    writeln!(log, "{said}")?;
                    line(said.trim_end());
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    hangs = true;
                    self.qemu.kill()?;
                    break;
                }
            }
        }
        let status = self.qemu.wait()?;
        if hangs {
            bail!("{} hangs; its console says:\n{}", self.name, self.shown());
        }
        match status.code() {
            Some(ALL_WELL) => Ok(()),
            Some(FAILED) => {
                bail!("something failed on {}: see {}", self.name, self.log.display())
            }
            _ => bail!("{} ended with {status}; its console says:\n{}", self.name, self.shown()),
        }
    }

    /// The end of what its console says.
    fn shown(&self) -> String {
        let said = fs::read(&self.console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already where it was watched.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
