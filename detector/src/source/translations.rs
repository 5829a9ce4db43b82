//! Rules of netfilter that translate destinations: nftables, and with it iptables on top of it, and
//! iptables as it was.
//!
//! The whole of the rules is read in a thread of its own, again when nftables tells of a change, and
//! now and then since iptables tells of none. What is told are pairs: these destinations become that
//! address. Which of the pairs matter depends on who is watched, so all are kept.

mod chains;
mod kept;
mod legacy;
mod nft;

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use detector_core::traffic::TranslationRule;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use self::kept::Kept;
use crate::source::interests::Interests;
use crate::source::kernel::socket;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const CHANGES: u32 = 7;

/// The least time between the beginnings of two readings.
const PACE: Duration = Duration::from_secs(1);

/// How much longer the rules are left alone than it took to read them: of one core it is 4 %.
const PAUSE: u32 = 25;

/// How often iptables is looked at, which tells of no change.
const POLL: Duration = Duration::from_secs(5);

/// What a reading comes to.
#[derive(Debug, Default)]
struct Reading {
    rules: Vec<TranslationRule>,
    /// What could not be read, and why.
    blind: Option<String>,
}

/// What the agent is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// These are all rules that matter, now.
    Rules(Vec<TranslationRule>),
    /// Something cannot be read.
    Blind(String),
    /// All can be read again.
    Sees,
}

/// All rules that translate destinations, kept true.
pub struct Translations {
    changes: Option<AsyncFd<Socket>>,
    reading: Option<oneshot::Receiver<(Reading, Duration)>>,
    next: Instant,
    /// Something has changed since the last reading began.
    dirty: bool,
    rested: Instant,
    kept: Kept,
    told: Vec<TranslationRule>,
    blind: Option<String>,
    /// Other destinations matter than did.
    asked: bool,
    first: bool,
}

/// All rules that translate destinations, as they were once.
pub struct Once {
    kept: Kept,
}

// === impl Once ===

impl Once {
    /// Reads them in the network namespace of the calling thread, in a thread of its own. Gives what
    /// could not be read as well.
    pub async fn read(interests: &Interests) -> (Self, Option<String>) {
        let (tell, told) = oneshot::channel();
        let work = move || {
            // It fails where nobody wants to know any more.
            let _ = tell.send(read());
        };
        let begun = thread::Builder::new().name("translations".into()).spawn(work);
        let reading = if begun.is_ok() { told.await.ok() } else { None };
        let reading = reading.unwrap_or_else(|| {
            let blind = Some("the reading of rules broke off".to_owned());
            Reading { blind, ..Reading::default() }
        });
        let mut kept = Kept::default();
        let overflow = kept.take(reading.rules, reading.blind.is_some(), interests);
        (Self { kept }, reading.blind.or(overflow))
    }

    /// What matters of them.
    pub fn that_matter(&self, interests: &Interests) -> Vec<TranslationRule> {
        self.kept.that_matter(interests)
    }
}

// === impl Translations ===

impl Translations {
    /// Begins to read in the network namespace of the calling thread.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open() -> Self {
        let now = Instant::now();
        Self {
            changes: changes().ok(),
            reading: None,
            next: now,
            dirty: false,
            rested: now,
            kept: Kept::default(),
            told: Vec::new(),
            blind: None,
            asked: false,
            first: true,
        }
    }

    /// Other ranges matter from now on.
    pub fn reconsider(&mut self) {
        self.asked = true;
    }

    /// This address matters from now on, or no longer.
    pub fn reconsider_address(&mut self, address: IpAddr) {
        self.asked |= self.kept.concerns(address);
    }

    /// The next news. Safe to cancel.
    pub async fn next(&mut self, interests: &Interests) -> Told {
        loop {
            if std::mem::take(&mut self.asked)
                && let Some(told) = self.news(interests)
            {
                return told;
            }
            if let Some(reading) = &mut self.reading {
                let done = reading.await;
                self.reading = None;
                let (reading, took) = done.unwrap_or_else(|_| {
                    let blind = Some("the reading of rules broke off".to_owned());
                    (Reading { blind, ..Reading::default() }, PACE)
                });
                let now = Instant::now();
                self.rested = now + (took * PAUSE).max(PACE);
                self.next = now + POLL.max(took * PAUSE);
                if self.dirty {
                    self.next = self.rested;
                }
                self.asked = true;
                let overflow = self.kept.take(reading.rules, reading.blind.is_some(), interests);
                let blind = reading.blind.or(overflow);
                if blind != self.blind {
                    self.blind.clone_from(&blind);
                    return blind.map_or(Told::Sees, Told::Blind);
                }
                if std::mem::take(&mut self.first) && self.blind.is_none() {
                    return Told::Sees;
                }
                continue;
            }
            tokio::select! {
                () = sleep_until(self.next) => self.begin(),
                () = changed(self.changes.as_mut()) => {
                    self.dirty = true;
                    self.next = self.next.min(self.rested.max(Instant::now()));
                }
            }
        }
    }

    fn begin(&mut self) {
        self.dirty = false;
        let (tell, told) = oneshot::channel();
        let work = move || {
            let start = std::time::Instant::now();
            let reading = read();
            // It fails where nobody wants to know any more.
            let _ = tell.send((reading, start.elapsed()));
        };
        match thread::Builder::new().name("translations".into()).spawn(work) {
            Ok(_) => self.reading = Some(told),
            Err(_) => self.next = Instant::now() + POLL,
        }
    }

    /// What matters of all rules, if that is news.
    fn news(&mut self, interests: &Interests) -> Option<Told> {
        let matters = self.kept.that_matter(interests);
        if matters == self.told {
            return None;
        }
        self.told.clone_from(&matters);
        Some(Told::Rules(matters))
    }
}

/// What reads the rules of one sort.
type Reader = fn() -> io::Result<Vec<TranslationRule>>;

/// Reads all rules.
fn read() -> Reading {
    let mut reading = Reading::default();
    let sources: [(&str, Reader); 3] = [
        ("nftables", nft::read),
        ("iptables", legacy::read_ipv4),
        ("ip6tables", legacy::read_ipv6),
    ];
    for (what, read) in sources {
        match read() {
            Ok(rules) => reading.rules.extend(rules),
            Err(error) => {
                reading.blind = Some(format!("the rules of {what} cannot be read: {error}"));
            }
        }
    }
    reading
}

fn changes() -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.add_membership(CHANGES)?;
    // SAFETY: the socket owns its descriptor, and is never replaced.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(Into::into)
}

/// Waits for a word of a change; for ever where there is none to be had. What it says is read from the
/// rules themselves, and so a word that was lost is one as well.
async fn changed(changes: Option<&mut AsyncFd<Socket>>) {
    let Some(changes) = changes else { return std::future::pending().await };
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(mut ready) = changes.readable_mut().await else {
            return std::future::pending().await;
        };
        let mut told = false;
        while let Ok(read) = ready.try_io(|changes| {
            socket::receive(changes.get_ref(), &mut buffer, libc::MSG_DONTWAIT).map(drop)
        }) {
            // An error of lost messages says that there were many.
            told = true;
            if read.is_err_and(|error| error.raw_os_error() != Some(libc::ENOBUFS)) {
                return std::future::pending().await;
            }
        }
        if told {
            return;
        }
    }
}
