//! Notifications by a plain netlink socket, for nodes whose kernel takes no eBPF program.
//!
//! They are the same notifications, but they wait in a queue that can overflow. The kernel counts
//! what it dropped, and that is told as a loss.

use std::collections::BTreeSet;
use std::io;

use detector_core::observation::Observation;
use detector_core::route::IfIndex;
use netlink_sys::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket;
use super::tally::Tally;
use super::{Counters, Drained, GULP, Loss};
use crate::clock;
use crate::source::writer::Writers;
use detector_ebpf::writer::Task;

/// The groups that are joined, `RTNLGRP_…` of linux/rtnetlink.h. Links are joined on the same socket
/// as routes, so that the order between the two is the kernel's own.
const GROUPS: u32 = group(LINK)
    | group(NEIGHBOUR)
    | group(IPV4_ROUTE)
    | group(IPV4_RULE)
    | group(IPV6_ROUTE)
    | group(IPV6_RULE)
    | group(NEXTHOP);
const LINK: u32 = 1;
const NEIGHBOUR: u32 = 3;
const IPV4_ROUTE: u32 = 7;
const IPV4_RULE: u32 = 8;
const IPV6_ROUTE: u32 = 11;
const IPV6_RULE: u32 = 19;
const NEXTHOP: u32 = 32;

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

/// The longest notification that is read whole. An interface takes about 1,500 bytes, and a few
/// hundred more for each of its virtual functions.
const BUFFER: usize = 64 << 10;

/// What the smallest message takes of the queue, at the least; the kernel doubles the room that it
/// is asked for, to make up for such overhead.
const SMALLEST: usize = 512;

/// A socket that is told of every change in the kernel's tables.
pub(super) struct Notifications {
    socket: AsyncFd<Socket>,
    buffer: Box<[u8]>,
    uplinks: BTreeSet<IfIndex>,
    writers: Writers,
    tally: Tally,
    /// The kernel's count of what it dropped, as far as it has been told. It wraps.
    drops: u32,
    /// An overflow was reported. The kernel does so once, and goes on dropping in silence until the
    /// queue has been read to its end (`NETLINK_S_CONGESTED` in net/netlink/af_netlink.c), so it is
    /// asked again then.
    congested: bool,
    /// The most messages that the queue can hold.
    most: usize,
}

impl Notifications {
    /// Joins the groups, with `room` bytes for what was not yet read.
    pub(super) fn open(room: usize) -> io::Result<Self> {
        let socket = socket::open(GROUPS)?;
        socket::set_room(&socket, room)?;
        // SAFETY: the socket owns its descriptor, and nothing below replaces or closes it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        let buffer = vec![0; BUFFER].into_boxed_slice();
        let (uplinks, tally) = (BTreeSet::new(), Tally::default());
        let most = room.saturating_mul(2) / SMALLEST;
        let (drops, congested, writers) = (0, false, Writers::by_port());
        Ok(Self { socket, buffer, uplinks, writers, tally, drops, congested, most })
    }

    pub(super) async fn ready(&self) -> io::Result<()> {
        self.socket.readable().await.map(drop)
    }

    pub(super) fn drain(&mut self, budget: usize, each: &mut dyn FnMut(Observation)) -> Drained {
        for _ in 0..budget {
            let datagram = match socket::receive_ready(&self.socket, &mut self.buffer) {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if std::mem::take(&mut self.congested) {
                        self.count_drops();
                    }
                    return Drained::Empty;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.congested = true;
                    self.count_drops();
                    continue;
                }
                Err(error) => {
                    self.tally.lose(0, || format!("the netlink socket: {error}"));
                    return Drained::Empty;
                }
            };
            // The time of reading: a plain socket says nothing of when a message was sent.
            let at = clock::now();
            if !datagram.from_kernel {
                // Forged, and no loss: the kernel did not say it.
                self.tally.counters.seen += 1;
                self.tally.counters.filtered += 1;
            } else if let Some(bytes) = self.buffer.get(..datagram.length) {
                let mut writer = |port| self.writers.writer(at, &Task::default(), port);
                self.tally.tell(at, bytes, &self.uplinks, &mut writer, each);
            } else {
                self.tally.cut_short(self.buffer.len());
            }
        }
        Drained::More
    }

    /// Reads all that was in the queue at the call, and what comes meanwhile, up to as much again.
    pub(super) fn catch_up(&mut self, each: &mut dyn FnMut(Observation)) {
        // More than the queue can hold, so it ends however fast it is filled.
        for _ in 0..=self.most / GULP {
            if self.drain(GULP, each) == Drained::Empty {
                return;
            }
        }
    }

    pub(super) fn take_loss(&mut self) -> Option<Loss> {
        self.tally.take_loss()
    }

    pub(super) fn counters(&self) -> Counters {
        self.tally.counters
    }

    pub(super) fn set_uplinks(&mut self, uplinks: BTreeSet<IfIndex>) {
        self.uplinks = uplinks;
    }

    /// Accounts for what the kernel dropped.
    fn count_drops(&mut self) {
        // Where the kernel does not say how much, it is at least one.
        let drops = socket::drops(self.socket.get_ref()).unwrap_or(self.drops.wrapping_add(1));
        let new = drops.wrapping_sub(std::mem::replace(&mut self.drops, drops));
        if new > 0 {
            self.tally.overflowed(new.into(), "the queue of the netlink socket");
        }
    }
}
