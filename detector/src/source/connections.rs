//! Connections whose destination was translated, as the kernel's connection tracking tells of them.
//!
//! A socket in the kernel's group for new connections, with an eBPF filter on it that lets through
//! only those that matter; where the kernel takes no eBPF program, the same filter is here. What was
//! there before is read once, and again when there is reason to.

mod decode;
mod dump;
mod filter;

use std::io;
use std::net::IpAddr;

use detector_core::route::Prefix;
use detector_core::traffic::Translated;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use self::decode::connection;
pub use self::dump::{DumpedConnections, dump};
use self::filter::Filter;
use crate::source::interests::Interests;
use crate::source::kernel::Message;
use crate::source::kernel::socket::{self, Datagram};

/// `NFNLGRP_CONNTRACK_NEW` of linux/netfilter/nfnetlink_compat.h: a connection is told when its first
/// packet has passed all rules, translations included.
const NEW: u32 = 1;

/// Room for what was not yet read, in bytes: some thousands of connections.
const ROOM: usize = 4 << 20;

/// The longest notification: one takes some 200 bytes.
const BUFFER: usize = 8 << 10;

/// Where an operator can switch notifications off altogether.
const SWITCH: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// Why connections are not seen.
#[derive(thiserror::Error, Debug)]
pub enum ConnectionsError {
    /// There is no socket.
    #[error(
        "no netlink socket for connections ({0}); does the kernel have nf_conntrack_netlink, and the \
         agent the capability NET_ADMIN?"
    )]
    Socket(#[source] io::Error),
    /// The kernel tells nothing.
    #[error("the kernel does not tell of connections: {SWITCH} is 0; set it to 1")]
    Off,
}

/// What became of what the kernel told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ConnectionCounters {
    /// Connections that were read.
    pub read: u64,
    /// Of those, what was told.
    pub told: u64,
    /// What there was no room for.
    pub lost: u64,
    /// What could not be read.
    pub unparsed: u64,
}

/// A socket that is told of new connections.
pub struct Connections {
    socket: AsyncFd<Socket>,
    buffer: Box<[u8]>,
    filter: Option<Filter>,
    counters: ConnectionCounters,
    loss: Option<String>,
    drops: u32,
}

// === impl Connections ===

impl Connections {
    /// Opens the socket in the network namespace of the calling thread; gives also why it is not
    /// filtered in the kernel, where it is not.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open(
        ebpf: bool,
        interests: &Interests,
    ) -> Result<(Self, Option<String>), ConnectionsError> {
        if std::fs::read_to_string(SWITCH).is_ok_and(|switch| switch.trim() == "0") {
            return Err(ConnectionsError::Off);
        }
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket::set_room(&socket, ROOM)?;
            socket.bind_auto()?;
            Ok(socket)
        };
        let socket = open().map_err(ConnectionsError::Socket)?;
        let (filter, degraded) = match ebpf.then(|| Filter::attach(&socket)) {
            Some(Ok(filter)) => (Some(filter), None),
            Some(Err(error)) => (None, Some(error.to_string())),
            None => (None, Some("eBPF is not to be used".to_owned())),
        };
        // Last, so that nothing reaches the socket but through the filter.
        socket.add_membership(NEW).map_err(ConnectionsError::Socket)?;
        // SAFETY: the socket owns its descriptor, and nothing below replaces or closes it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
            .map_err(|error| ConnectionsError::Socket(error.into()))?;
        let mut connections = Self {
            socket,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            filter,
            counters: ConnectionCounters::default(),
            loss: None,
            drops: 0,
        };
        connections.ranges(&[], interests.ranges());
        interests.watched().for_each(|address| connections.watch(address));
        Ok((connections, degraded))
    }

    /// Waits until there may be something to read. Safe to cancel.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.socket.readable().await.map(drop)
    }

    /// Reads at most `budget` connections, without waiting for more; gives those that matter.
    pub fn drain(
        &mut self,
        budget: usize,
        interests: &Interests,
        each: &mut dyn FnMut(Translated),
    ) {
        for _ in 0..budget {
            match socket::receive_ready(&self.socket, &mut self.buffer) {
                Ok(Datagram { length, from_kernel: true }) => self.read(length, interests, each),
                // Whoever may send here may forge; the kernel did not say it.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    let drops = socket::drops(self.socket.get_ref()).unwrap_or(self.drops + 1);
                    let new = drops.wrapping_sub(std::mem::replace(&mut self.drops, drops));
                    self.counters.lost += u64::from(new);
                    self.loss =
                        Some(format!("{new} connections lost: the socket's queue was full"));
                }
                Err(error) => {
                    self.loss = Some(format!("the socket for connections: {error}"));
                    return;
                }
            }
        }
    }

    /// Why something was lost since the last call. The table has then to be read anew ([`dump`]).
    pub fn take_loss(&mut self) -> Option<String> {
        self.loss.take()
    }

    /// Tells of connections to an address that somebody may be taking, wherever it is.
    pub fn watch(&mut self, address: IpAddr) {
        self.filtered(|filter| filter.watch(address));
    }

    /// Tells of them no longer, unless they are in a range.
    pub fn unwatch(&mut self, address: IpAddr) {
        self.filtered(|filter| filter.unwatch(address));
    }

    /// Tells of connections to these prefixes, and no longer to those before.
    pub fn ranges(&mut self, before: &[Prefix], ranges: &[Prefix]) {
        self.filtered(|filter| filter.ranges(before, ranges));
    }

    /// What became of what the kernel told.
    pub fn counters(&self) -> ConnectionCounters {
        self.counters
    }

    fn filtered(&mut self, change: impl FnOnce(&mut Filter) -> io::Result<()>) {
        let Some(filter) = &mut self.filter else { return };
        if let Err(error) = change(filter) {
            // The filter knows too little now; without it nothing is left out.
            self.loss = Some(format!("the filter for connections is full ({error})"));
            filter.detach(self.socket.get_ref());
            self.filter = None;
        }
    }

    fn read(&mut self, length: usize, interests: &Interests, each: &mut dyn FnMut(Translated)) {
        let Some(bytes) = self.buffer.get(..length) else {
            self.counters.unparsed += 1;
            self.loss = Some("a connection longer than any".to_owned());
            return;
        };
        for message in Message::all(bytes) {
            self.counters.read += 1;
            match message.and_then(|message| connection(&message)) {
                Ok(Some(translated)) if matters(&translated, interests) => {
                    self.counters.told += 1;
                    each(translated);
                }
                Ok(_) => {}
                Err(error) => {
                    self.counters.unparsed += 1;
                    self.loss = Some(format!("a connection that cannot be read: {error}"));
                }
            }
        }
    }
}

/// Whether a connection is translated, and to whom matters.
fn matters(connection: &Translated, interests: &Interests) -> bool {
    connection.address != connection.to && interests.contain(connection.address)
}
