//! What the service manager that started the agent is told, by the protocol of sd_notify(3): systemd,
//! or whoever else set `NOTIFY_SOCKET`. Where nobody did, nothing is said.
//!
//! - `READY=1` once routes are watched and the first dump of the kernel's tables is in. An API server
//!   that does not answer keeps no unit from starting: what it tells is missing, and `STATUS=` says so.
//! - `STATUS=` when what it says has changed, looked at each second.
//! - `WATCHDOG=1` by the loop that judges, at half the time that the manager allows, at the same place at
//!   which it gives the sign of life of `/livez`. No other thread speaks for it.
//! - `STOPPING=1` when the loop has ended.
//!
//! What crates there are for this open a socket for each word, and wait for a manager that is busy; the
//! loop waits for nobody. So the socket is one that refuses, and what it had no room for is said again.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::doors::Watching;
use crate::health::Degraded;

/// How many names of one kind a status shows.
const NAMES: usize = 8;

/// When a sign of life is given again that the service manager had no room for.
const AGAIN: Duration = Duration::from_secs(1);

/// The service manager, where there is one.
#[derive(Debug, Default)]
pub(super) struct Supervisor(Option<Line>);

/// The way to it.
#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    to: SocketAddr,
    /// Whether it knows that the agent is ready.
    ready: bool,
    /// What it was told last.
    status: String,
    watchdog: Option<Watchdog>,
    /// Whether the log has said that it cannot be told.
    failed: bool,
}

/// How often it wants a sign of life.
#[derive(Debug)]
struct Watchdog {
    every: Duration,
    due: Instant,
}

// === impl Supervisor ===

impl Supervisor {
    /// The one that the environment names. What makes no sense there is worth a line in the log, and no
    /// reason not to guard the node.
    pub(super) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Self(None);
        };
        let [allowed, whose] = ["WATCHDOG_USEC", "WATCHDOG_PID"].map(|name| env::var(name).ok());
        let every = half_of(allowed.as_deref(), whose.as_deref(), std::process::id());
        let every = every.unwrap_or_else(|why| {
            warn!(why, "the service manager gets no signs of life, and may end the agent");
            None
        });
        match Line::to(&name, every) {
            Ok(line) => Self(Some(line)),
            Err(error) => {
                let socket = name.to_string_lossy();
                warn!(
                    %error, %socket,
                    "the service manager cannot be told that the agent is ready: NOTIFY_SOCKET must \
                     be an absolute path, or a name after @"
                );
                Self(None)
            }
        }
    }

    /// When it is to be told that the loop goes on.
    pub(super) fn due(&self) -> Option<Instant> {
        Some(self.0.as_ref()?.watchdog.as_ref()?.due)
    }

    /// The loop goes on.
    pub(super) fn beat(&mut self) {
        let Some(line) = &mut self.0 else { return };
        let now = Instant::now();
        if line.watchdog.as_ref().is_none_or(|watchdog| watchdog.due > now) {
            return;
        }
        let said = line.say("WATCHDOG=1");
        if let Some(watchdog) = &mut line.watchdog {
            // At the next turn but one there might be no time left.
            let wait = if said { watchdog.every } else { watchdog.every.min(AGAIN) };
            watchdog.due = now + wait;
        }
    }

    /// Says how the agent is, where that is news. It is ready once it has read the tables.
    pub(super) fn show(&mut self, ready: bool, status: impl FnOnce() -> String) {
        let Some(line) = &mut self.0 else { return };
        let status = status();
        let (becomes_ready, changed) = (ready && !line.ready, status != line.status);
        let words = match (becomes_ready, changed) {
            (true, _) => format!("READY=1\nSTATUS={status}"),
            (false, true) => format!("STATUS={status}"),
            (false, false) => return,
        };
        if line.say(&words) {
            line.ready |= becomes_ready;
            line.status = status;
        }
    }

    /// The loop has ended, and for this reason where it was not asked to.
    pub(super) fn stopping(&mut self, why: Option<&anyhow::Error>) {
        let Some(line) = &mut self.0 else { return };
        let status = why.map_or_else(|| "stopping".to_owned(), |why| one_line(&format!("{why:#}")));
        line.say(&format!("STOPPING=1\nSTATUS={status}"));
    }
}

// === impl Line ===

impl Line {
    fn to(name: &OsStr, every: Option<Duration>) -> io::Result<Self> {
        let to = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // At once, so that the first sign does not come later than the others.
        let watchdog = every.map(|every| Watchdog { every, due: Instant::now() });
        Ok(Self { socket, to, ready: false, status: String::new(), watchdog, failed: false })
    }

    /// Says it, if there is room; the log says once where it cannot be heard at all.
    fn say(&mut self, words: &str) -> bool {
        match self.socket.send_to_addr(words.as_bytes(), &self.to) {
            Ok(_) => {
                self.failed = false;
                true
            }
            Err(error) => {
                let busy = error.kind() == io::ErrorKind::WouldBlock;
                if !busy && !self.failed {
                    self.failed = true;
                    warn!(%error, "the service manager does not hear: it may end the agent");
                }
                false
            }
        }
    }
}

/// Half the time that the manager allows between two signs of life; `None` where it wants none of this
/// process.
fn half_of(
    allowed: Option<&str>,
    whose: Option<&str>,
    own: u32,
) -> Result<Option<Duration>, &'static str> {
    let Some(allowed) = allowed.filter(|text| !text.is_empty()) else { return Ok(None) };
    if let Some(whose) = whose.filter(|text| !text.is_empty()) {
        let whose: u32 = whose.parse().map_err(|_| "WATCHDOG_PID is no process")?;
        if whose != own {
            return Ok(None);
        }
    }
    match allowed.parse() {
        Ok(0) | Err(_) => Err("WATCHDOG_USEC is no number of microseconds"),
        Ok(allowed) => Ok(Some(Duration::from_micros(allowed) / 2)),
    }
}

/// How the agent is, in one line for `systemctl status`: short, and true for now.
pub(super) fn status(watching: &Watching, awaited: &[&str], degraded: &[Degraded]) -> String {
    let Watching { routes, holdings, dumps, .. } = watching;
    let mut line = if *dumps == 0 {
        format!("reading the kernel's tables, routes by {routes}")
    } else {
        let standing = holdings.standing;
        let findings = if standing == 1 { "finding stands" } else { "findings stand" };
        format!("watching routes by {routes}, {standing} {findings}")
    };
    if !awaited.is_empty() {
        line.push_str("; not yet told of ");
        line.push_str(&listed(awaited.iter().copied()));
    }
    if !degraded.is_empty() {
        line.push_str("; degraded: ");
        line.push_str(&listed(degraded.iter().map(|one| one.capability.as_str())));
        line.push_str(" (`detector status` says why)");
    }
    one_line(&line)
}

/// Names, and how many more there are.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(NAMES);
    let shown = names.take(NAMES).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// A line break would begin another word to the manager.
fn one_line(text: &str) -> String {
    text.replace(|character: char| character.is_control(), " ")
}

#[cfg(test)]
mod tests;
