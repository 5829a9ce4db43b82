//! The first process of a virtual machine that `cargo xtask vm` boots: makes a system of what the machine
//! has in memory, runs what `/commands` says, and ends the machine.
//!
//! A line of `/commands` is a name, a program and its arguments, with tabs between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};

/// The port of qemu's `isa-debug-exit`: a number `n` written to it ends qemu with the code `2n + 1`.
const EXIT_PORT: u16 = 0xf4;
const ALL_WELL: u8 = 1;
const FAILED: u8 = 2;

/// The serial line that is read for results; the first is the console.
const LINE: &str = "/dev/ttyS1";

fn main() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is the first process of a virtual machine, and no other"
    );
    let code = match work() {
        Ok(true) => ALL_WELL,
        Ok(false) => FAILED,
        Err(error) => {
            eprintln!("guest: {error:#}");
            FAILED
        }
    };
    end(code);
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

/// Ends the machine with a code.
#[cfg(target_arch = "x86_64")]
fn end(code: u8) {
    // SAFETY: the call takes no pointer; it lets this process write to one port.
    if unsafe { nix::libc::ioperm(EXIT_PORT.into(), 1, 1) } != 0 {
        eprintln!("guest: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: writing to the port touches no memory. On a machine without the device it does nothing.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") code, options(nomem, nostack));
    }
}

/// Other machines have no ports: the last line tells.
#[cfg(not(target_arch = "x86_64"))]
fn end(_: u8) {}

/// Whether all commands ended well.
fn work() -> Result<bool> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {place}"))?;
    }
    load_modules()?;
    // Else each new namespace has the tunnels that modules make by themselves.
    fs::write("/proc/sys/net/core/fb_tunnels_only_for_init_net", "1")?;
    setrlimit(Resource::RLIMIT_NOFILE, 65_536, 65_536)?;
    let mut line = File::options().write(true).open(LINE).context("no second serial line")?;
    let mut all_well = true;
    for command in fs::read_to_string("/commands")?.lines() {
        let mut words = command.split('\t');
        let name = words.next().context("a command without a name")?;
        let program = words.next().context("a command without a program")?;
        let ended = Command::new(program)
            .args(words)
            .env("PATH", "/bin")
            .env("DETECTOR_BIN", "/programs/detector")
            .stdin(Stdio::null())
            .stdout(line.try_clone()?)
            .stderr(line.try_clone()?)
            .status();
        match ended {
            Ok(status) => {
                writeln!(line, "guest: {name}: {status}")?;
                all_well &= status.success();
            }
            Err(error) => {
                writeln!(line, "guest: {name} cannot start: {error}")?;
                all_well = false;
            }
        }
    }
    Ok(all_well)
}

/// Loads all there are, in their order. What a kernel has already, or cannot have, is passed over.
fn load_modules() -> Result<()> {
    let mut paths = Vec::new();
    for entry in fs::read_dir("/modules")? {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        if let Err(error) = finit_module(File::open(&path)?, c"", ModuleInitFlags::empty()) {
            eprintln!("guest: {} is not loaded: {error}", path.display());
        }
    }
    Ok(())
}
