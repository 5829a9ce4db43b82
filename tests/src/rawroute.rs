//! Routes by the hundred thousand: raw netlink messages, many in one send and none acknowledged, or one
//! after the other as routing daemons write them.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Messages in one send.
const BATCH: usize = 256;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_EXCL: u16 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;

/// Where the kernel's answer says what came of a request.
const ANSWER: std::ops::Range<usize> = 16..20;

/// Writes IPv4 routes of the main table.
pub struct RouteWriter {
    socket: Socket,
    buffer: Vec<u8>,
    queued: usize,
    /// Whether each change is sent alone, and its answer awaited.
    one_by_one: bool,
    /// Changes that were asked for.
    pub made: u64,
}

impl RouteWriter {
    /// A writer for the network namespace of the calling thread.
    pub fn new() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("no netlink socket")?;
        socket.bind_auto()?;
        let buffer = Vec::with_capacity(BATCH * 52);
        Ok(Self { socket, buffer, queued: 0, one_by_one: false, made: 0 })
    }

    /// One that sends each change alone and waits for its answer, as Felix, BIRD and `ip` do.
    pub fn one_by_one() -> Result<Self> {
        Ok(Self { one_by_one: true, ..Self::new()? })
    }

    /// Asks for a route to be made, or taken away.
    pub fn change(
        &mut self,
        present: bool,
        (to, length): (Ipv4Addr, u8),
        metric: u32,
        interface: u32,
    ) -> Result<()> {
        let (kind, flags) = if present {
            (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL)
        } else {
            (RTM_DELROUTE, NLM_F_REQUEST)
        };
        let flags = if self.one_by_one { flags | NLM_F_ACK } else { flags };
        let buffer = &mut self.buffer;
        buffer.extend_from_slice(&52u32.to_ne_bytes());
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&flags.to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        // Family, length, source length, TOS, table main, protocol boot, scope link, type unicast.
        buffer.extend_from_slice(&[2, length, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0]);
        for (kind, value) in [
            (RTA_DST, to.octets()),
            (RTA_OIF, interface.to_ne_bytes()),
            (RTA_PRIORITY, metric.to_ne_bytes()),
        ] {
            buffer.extend_from_slice(&8u16.to_ne_bytes());
            buffer.extend_from_slice(&kind.to_ne_bytes());
            buffer.extend_from_slice(&value);
        }
        self.queued += 1;
        self.made += 1;
        if self.one_by_one {
            self.flush()?;
            return self.answer();
        }
        if self.queued == BATCH { self.flush() } else { Ok(()) }
    }

    /// Takes the answer to the last change.
    fn answer(&mut self) -> Result<()> {
        let mut answer = [0; 128];
        let length = self.socket.recv(&mut &mut answer[..], 0)?;
        let error = answer[..length].get(ANSWER).context("an answer of no length")?;
        let error = i32::from_ne_bytes(error.try_into()?);
        ensure!(error == 0, "the kernel refuses a route: error {}", -error);
        Ok(())
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<()> {
        if self.queued > 0 {
            self.socket.send_to(&self.buffer, &SocketAddr::new(0, 0), 0)?;
            self.buffer.clear();
            self.queued = 0;
        }
        Ok(())
    }
}

/// The `n`th address from `first` on.
pub fn nth(first: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + n)
}
