//! `RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP`: `struct nhmsg` and `NHA_…` of linux/nexthop.h.

use detector_core::route::{IfIndex, NextHop, NextHopId, NextHopObject};

use crate::source::kernel::wire::{Attribute, DecodeError, array, attributes, u32_at};

const HEADER: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// The object that a message is about.
pub(super) fn read(body: &[u8]) -> Result<(NextHopId, NextHopObject), DecodeError> {
    let header: &[u8; HEADER] = array(body, "a next hop")?;
    let [family, ..] = *header;
    let mut id = None;
    let mut leg = NextHop { interface: None, gateway: None };
    let mut blackhole = false;
    let mut group = None;
    for attribute in attributes(&body[HEADER..]) {
        let attribute = attribute?;
        match attribute.kind {
            NHA_ID => id = NextHopId::new(attribute.u32(ID)?),
            NHA_GROUP => group = Some(members(&attribute)?),
            NHA_BLACKHOLE => blackhole = true,
            NHA_OIF => leg.interface = IfIndex::new(attribute.u32("an interface")?),
            NHA_GATEWAY => leg.gateway = Some(attribute.address("a gateway", family)?),
            _ => {}
        }
    }
    let object = match group {
        Some(members) => NextHopObject::Group(members),
        None if blackhole => NextHopObject::Blackhole,
        None => NextHopObject::Leg(leg),
    };
    Ok((id.ok_or(DecodeError::Missing(ID))?, object))
}

/// The id of the object that a message is about.
pub(super) fn id(body: &[u8]) -> Result<NextHopId, DecodeError> {
    let _: &[u8; HEADER] = array(body, "a next hop")?;
    for attribute in attributes(&body[HEADER..]) {
        let attribute = attribute?;
        if attribute.kind == NHA_ID {
            return NextHopId::new(attribute.u32(ID)?).ok_or(DecodeError::Missing(ID));
        }
    }
    Err(DecodeError::Missing(ID))
}

const ID: &str = "the id of a next hop";

/// The members of an `NHA_GROUP`: `struct nexthop_grp`, of which the weight decides only how much
/// traffic each of them takes.
fn members(group: &Attribute<'_>) -> Result<Vec<NextHopId>, DecodeError> {
    const MEMBER: usize = 8;
    let (members, rest) = group.value.as_chunks::<MEMBER>();
    if !rest.is_empty() {
        let what = "a member of a next-hop group";
        return Err(DecodeError::Short { what, needed: MEMBER, got: rest.len() });
    }
    let id = |member| NextHopId::new(u32_at(member, 0)).ok_or(DecodeError::Missing(ID));
    members.iter().map(id).collect()
}
