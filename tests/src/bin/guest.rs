//! The first process of a virtual machine that `cargo xtask vm` boots: makes a system of what the machine
//! has in memory, runs what `/commands` says, and ends the machine. Where a whole system is in memory, it
//! only makes way for that one's first process.
//!
//! A line of `/commands` is a name, a program and its arguments, with tabs between them.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use detector_tests::machine::{LINE, USERLAND, end};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, chroot, execv};

fn main() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is the first process of a virtual machine, and no other"
    );
    let done = if Path::new(USERLAND).is_dir() { go_on() } else { work() };
    let all_well = done.unwrap_or_else(|error| {
        eprintln!("guest: {error:#}");
        false
    });
    end(all_well);
    reboot(RebootMode::RB_POWER_OFF)?;
    Ok(())
}

/// Makes the system in the machine's memory its root, and goes on as its first process.
fn go_on() -> Result<bool> {
    // A mount of its own: services get roots of their own by `pivot_root`, which cannot leave the first.
    mount(Some(USERLAND), USERLAND, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    chdir(USERLAND)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    let Err(error) = execv(c"/sbin/init", &[c"/sbin/init"]);
    Err(error).context("cannot go on as /sbin/init")
}

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
        // Each look at all connections goes through the whole table, be there any or none.
        let is_tracking = path.to_string_lossy().ends_with("-nf_conntrack");
        let parameters = if is_tracking { c"hashsize=1024" } else { c"" };
        if let Err(error) = finit_module(File::open(&path)?, parameters, ModuleInitFlags::empty()) {
            eprintln!("guest: {} is not loaded: {error}", path.display());
        }
    }
    Ok(())
}
