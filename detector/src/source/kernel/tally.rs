//! From bytes to observations, with every message accounted for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use detector_core::observation::{KernelChange, Observation, What};
use detector_core::route::{IfIndex, Prefix, Protocol, Table};
use detector_core::time::BootTime;
use detector_core::writer::{Process, Refusal, Writer};

use super::wire::{DecodeError, Message};
use super::{Counters, Loss, decode, uplink};

/// What became of the messages that were read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) counters: Counters,
    loss: Option<Loss>,
}

impl Tally {
    /// Tells what the messages of a datagram say, but for what is left out; `writer` says who has
    /// caused them, by the port that they name.
    pub(super) fn tell(
        &mut self,
        at: BootTime,
        datagram: &[u8],
        uplinks: &BTreeSet<IfIndex>,
        writer: &mut dyn FnMut(u32) -> Option<Arc<Process>>,
        each: &mut dyn FnMut(Observation),
    ) {
        for message in Message::all(datagram) {
            self.counters.seen += 1;
            match message.and_then(|message| decode::change(&message)) {
                Ok(Some(mut change)) if !uplink::is_transit_change(&change, uplinks) => {
                    self.counters.written += 1;
                    attribute(&mut change, writer);
                    each(Observation { at, what: What::Kernel(change) });
                }
                Ok(_) => self.counters.filtered += 1,
                Err(error) => self.misread(&error),
            }
        }
    }

    /// Takes a message that arrived cut short.
    pub(super) fn cut_short(&mut self, kept: usize) {
        self.counters.seen += 1;
        self.counters.unparsed += 1;
        self.lose(1, || format!("a message longer than the {kept} bytes kept of it"));
    }

    /// Takes the kernel's word that it had no room for so many messages.
    pub(super) fn overflowed(&mut self, messages: u64, of: &str) {
        self.counters.seen += messages;
        self.counters.lost += messages;
        self.lose(messages, || format!("{of} was full"));
    }

    /// What was lost since the last call.
    pub(super) fn take_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    fn misread(&mut self, error: &DecodeError) {
        self.counters.unparsed += 1;
        self.lose(1, || error.to_string());
    }

    /// Adds to what is lost. The first reason is kept: the others follow from it, or are the same.
    pub(super) fn lose(&mut self, records: u64, why: impl FnOnce() -> String) {
        let loss = self.loss.get_or_insert_with(|| Loss { records: 0, why: why() });
        loss.records += records;
    }
}

/// Adds who wrote a route. What the kernel makes itself it makes in whatever task it has interrupted.
fn attribute(change: &mut KernelChange, writer: &mut dyn FnMut(u32) -> Option<Arc<Process>>) {
    // `RTPROT_REDIRECT`, `RTPROT_KERNEL`, `RTPROT_RA` of linux/rtnetlink.h.
    const OWN: [Protocol; 3] = [Protocol(1), Protocol(2), Protocol(9)];
    if let KernelChange::Route { route, writer: known, .. } = change
        && (known.port != 0 || !OWN.contains(&route.protocol))
    {
        known.process = writer(known.port);
    }
}

/// Tells of a refused write.
pub(super) fn refused(
    at: BootTime,
    refusal: &detector_ebpf::writer::Refusal,
    process: Option<Arc<Process>>,
    each: &mut dyn FnMut(Observation),
) {
    let [a, b, c, d, ..] = refusal.address;
    let address = if i32::from(refusal.family) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(refusal.address))
    };
    // A length that no prefix has is one of the reasons to refuse.
    let Some(prefix) = Prefix::new(address, refusal.length) else { return };
    let refusal = Refusal {
        prefix,
        // Who names none means the main table (`fib_new_table` in net/ipv4/fib_frontend.c).
        table: if refusal.table == 0 { Table::MAIN } else { Table(refusal.table) },
        interface: IfIndex::new(refusal.interface),
        protocol: Protocol(refusal.protocol),
        error: refusal.error,
        writer: Writer { port: refusal.port, process },
    };
    each(Observation { at, what: What::Refused(refusal) });
}
