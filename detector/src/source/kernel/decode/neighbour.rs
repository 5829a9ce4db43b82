//! `RTM_NEWNEIGH`, `RTM_DELNEIGH`: `struct ndmsg`, `NDA_…`, `NUD_…` and `NTF_…` of linux/neighbour.h.

use detector_core::observation::{Neighbour, NeighbourKind};
use detector_core::route::{IfIndex, Prefix};

use crate::source::kernel::wire::{
    AF_INET, AF_INET6, DecodeError, array, attributes, u16_at, u32_at,
};

/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;

const NDA_DST: u16 = 1;
/// Somebody made the entry, and it stays.
const NUD_PERMANENT: u16 = 0x80;
/// The node answers for the address.
pub(in crate::source::kernel) const NTF_PROXY: u8 = 0x08;

/// An entry that somebody made; `None` for those that the kernel has found out itself.
pub(super) fn read(body: &[u8]) -> Result<Option<Neighbour>, DecodeError> {
    let header: &[u8; HEADER] = array(body, "a neighbour")?;
    let made = u16_at(header, 8) & NUD_PERMANENT != 0 || header[10] & NTF_PROXY != 0;
    if made { gone(body) } else { Ok(None) }
}

/// An entry that is gone, whoever made it; the kernel no longer says.
pub(super) fn gone(body: &[u8]) -> Result<Option<Neighbour>, DecodeError> {
    let header: &[u8; HEADER] = array(body, "a neighbour")?;
    let family = header[0];
    // Bridges speak of their own neighbours by the same messages.
    if family != AF_INET && family != AF_INET6 {
        return Ok(None);
    }
    let Some(interface) = IfIndex::new(u32_at(header, 4)) else { return Ok(None) };
    let mut address = None;
    for attribute in attributes(&body[HEADER..]) {
        let attribute = attribute?;
        if attribute.kind == NDA_DST {
            address = Some(attribute.address("a neighbour", family)?);
        }
    }
    // A proxy can be for all addresses.
    let Some(address) = address.filter(|address| !Prefix::host(*address).is_link_scoped()) else {
        return Ok(None);
    };
    let proxy = header[10] & NTF_PROXY != 0;
    let kind = if proxy { NeighbourKind::Proxy } else { NeighbourKind::Permanent };
    Ok(Some(Neighbour { address, interface, kind }))
}
