//! Netlink messages, read as what they say of the kernel's tables.
//!
//! Pure and total: the same bytes give the same answer, whatever the bytes. What does not concern
//! the detector is `None`, what it cannot read is an error, and neither hides the other. One reader
//! for what is notified and for what is dumped, so that both give the same words for the same thing.

mod link;
pub(super) mod neighbour;
mod nexthop;
mod route;
mod rule;
#[cfg(test)]
mod tests;

use detector_core::observation::{KernelChange, KernelState, Place};
use detector_core::route::Route;

use super::wire::{DecodeError, Message};

// `RTM_…` in linux/rtnetlink.h.
pub(super) const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
pub(super) const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
pub(super) const NEWRULE: u16 = 32;
const DELRULE: u16 = 33;
pub(super) const NEWNEXTHOP: u16 = 104;
const DELNEXTHOP: u16 = 105;
pub(super) const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;

/// What a notification says has changed; `None` where it is about something else: a bridge port, a
/// cached route, a table of another family.
pub fn change(message: &Message<'_>) -> Result<Option<KernelChange>, DecodeError> {
    let body = message.body;
    Ok(match message.kind {
        NEWLINK => link::read(body)?.map(KernelChange::Link),
        DELLINK => link::index(body)?.map(KernelChange::LinkGone),
        NEWROUTE => route::read(body)?.map(|route| {
            let place = Place::from_flags(message.flags);
            KernelChange::Route { route, place, writer: message.port.into() }
        }),
        DELROUTE => route::read(body)?.map(KernelChange::RouteGone),
        NEWRULE => rule::read(body)?.map(KernelChange::Rule),
        DELRULE => rule::read(body)?.map(KernelChange::RuleGone),
        NEWNEXTHOP => {
            let (id, object) = nexthop::read(body)?;
            Some(KernelChange::NextHop(id, object))
        }
        DELNEXTHOP => Some(KernelChange::NextHopGone(nexthop::id(body)?)),
        NEWNEIGH => neighbour::read(body)?.map(KernelChange::Neighbour),
        DELNEIGH => neighbour::gone(body)?.map(KernelChange::NeighbourGone),
        _ => None,
    })
}

/// The route that the body of a message is about.
pub(super) fn route_of(body: &[u8]) -> Option<Route> {
    route::read(body).ok().flatten()
}

/// What an answer to a dump says is there; `None` as for [`change`].
pub fn state(message: &Message<'_>) -> Result<Option<KernelState>, DecodeError> {
    let body = message.body;
    Ok(match message.kind {
        NEWLINK => link::read(body)?.map(KernelState::Link),
        NEWROUTE => route::read(body)?.map(KernelState::Route),
        NEWRULE => rule::read(body)?.map(KernelState::Rule),
        NEWNEXTHOP => {
            let (id, object) = nexthop::read(body)?;
            Some(KernelState::NextHop(id, object))
        }
        NEWNEIGH => neighbour::read(body)?.map(KernelState::Neighbour),
        _ => None,
    })
}
