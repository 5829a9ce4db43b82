//! `RTM_NEWLINK`, `RTM_DELLINK`: `struct ifinfomsg` and `IFLA_…` of linux/if_link.h.

use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::route::{IfIndex, Table};

use crate::source::kernel::wire::{DecodeError, array, attributes, u32_at};

const HEADER: usize = 16;

/// `AF_UNSPEC`: the interface itself. Others speak of an aspect of it: a bridge announces that a
/// port has left it by a `RTM_DELLINK` of `AF_BRIDGE`, and the interface stands.
const AF_UNSPEC: u8 = 0;

const IFF_UP: u32 = 1;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VRF_TABLE: u16 = 1;

/// The interface that a message is about.
pub(super) fn read(body: &[u8]) -> Result<Option<Link>, DecodeError> {
    let Some(index) = index(body)? else { return Ok(None) };
    let header: &[u8; HEADER] = array(body, "a link")?;
    let mut name = None;
    // No link info means no kind: hardware, or the loopback device.
    let mut kind = LinkKind::from_name("");
    for attribute in attributes(&body[HEADER..]) {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => name = Some(interface_name(attribute.value)?),
            IFLA_LINKINFO => kind = link_kind(attribute.value)?,
            _ => {}
        }
    }
    let name = name.ok_or(DecodeError::Missing("the name of an interface"))?;
    Ok(Some(Link { index, name, kind, up: u32_at(header, 8) & IFF_UP != 0 }))
}

/// The index of the interface that a message is about.
pub(super) fn index(body: &[u8]) -> Result<Option<IfIndex>, DecodeError> {
    let header: &[u8; HEADER] = array(body, "a link")?;
    if header[0] != AF_UNSPEC {
        return Ok(None);
    }
    let index = IfIndex::new(u32_at(header, 4));
    index.map(Some).ok_or(DecodeError::Missing("the index of an interface"))
}

/// A name from its bytes, which end at the first zero.
///
/// The kernel takes any byte but a few (`dev_valid_name`), so what is not ASCII is shown as `?`, a
/// byte each: the name keeps its length and stays one.
pub(in crate::source::kernel) fn interface_name(
    bytes: &[u8],
) -> Result<InterfaceName, DecodeError> {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let shown = |byte: &u8| if byte.is_ascii() { char::from(*byte) } else { '?' };
    let text: String = text.iter().map(shown).collect();
    InterfaceName::new(&text).ok_or(DecodeError::Name)
}

fn link_kind(info: &[u8]) -> Result<LinkKind, DecodeError> {
    let mut kind = LinkKind::from_name("");
    let mut data: &[u8] = &[];
    for attribute in attributes(info) {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_INFO_KIND => {
                let name = attribute.value.split(|byte| *byte == 0).next().unwrap_or_default();
                // A kind that is not even text is none that we know.
                kind = LinkKind::from_name(std::str::from_utf8(name).unwrap_or("?"));
            }
            IFLA_INFO_DATA => data = attribute.value,
            _ => {}
        }
    }
    // Each kind has its own data, so they are looked into only once the kind is known.
    if let LinkKind::Vrf(table) = &mut kind {
        for attribute in attributes(data) {
            let attribute = attribute?;
            if attribute.kind == IFLA_VRF_TABLE {
                *table = Some(Table(attribute.u32("the table of a VRF")?));
            }
        }
    }
    Ok(kind)
}
