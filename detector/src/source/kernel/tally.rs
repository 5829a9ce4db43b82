//! From bytes to observations, with every message accounted for.

use std::collections::BTreeSet;

use detector_core::observation::{Observation, What};
use detector_core::route::IfIndex;
use detector_core::time::BootTime;

use super::wire::{DecodeError, Message};
use super::{Counters, Loss, decode, uplink};

/// What became of the messages that were read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) counters: Counters,
    loss: Option<Loss>,
}

impl Tally {
    /// Tells what the messages of a datagram say, but for what is left out.
    pub(super) fn tell(
        &mut self,
        at: BootTime,
        datagram: &[u8],
        uplinks: &BTreeSet<IfIndex>,
        each: &mut dyn FnMut(Observation),
    ) {
        for message in Message::all(datagram) {
            self.counters.seen += 1;
            match message.and_then(|message| decode::change(&message)) {
                Ok(Some(change)) if !uplink::is_transit_change(&change, uplinks) => {
                    self.counters.written += 1;
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
