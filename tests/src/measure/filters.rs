//! Notifications of the filters that the agent hangs on interfaces.

use anyhow::{Context as _, Result};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netns::Namespace;

/// How long the next notification may take before the measurement is given up, in seconds.
const PATIENCE: i64 = 5;

/// `RTMGRP_TC` of linux/rtnetlink.h, which tells of filters, and the message that does.
const TRAFFIC_CONTROL: u32 = 8;
const NEW_FILTER: u16 = 44;

/// What is told of filters from now on.
pub(super) struct Filters(Socket);

impl Filters {
    /// Listens in a namespace.
    pub(super) fn listen(namespace: &Namespace) -> Result<Self> {
        listen(namespace, TRAFFIC_CONTROL).map(Self)
    }

    /// Waits for the next filter; gives the interface that has it.
    pub(super) fn next(&self) -> Result<u32> {
        loop {
            let (datagram, _) = self.0.recv_from_full().context("no filter was hung in time")?;
            // A message is a datagram here: behind the header of netlink comes a `struct tcmsg`.
            let kind = datagram.get(4..6).context("no netlink header")?;
            if u16::from_ne_bytes([kind[0], kind[1]]) == NEW_FILTER {
                let index = datagram.get(20..24).context("no struct tcmsg")?;
                return Ok(u32::from_ne_bytes(index.try_into()?));
            }
        }
    }
}

/// Joins a group of notifications in a namespace.
pub(super) fn listen(namespace: &Namespace, group: u32) -> Result<Socket> {
    namespace.within(|| {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, group))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(socket)
    })
}
