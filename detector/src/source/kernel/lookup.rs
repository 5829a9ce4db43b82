//! Where the kernel sends a packet of the node's own: what `ip route get` asks.

use std::io;
use std::net::IpAddr;

use detector_core::link::InterfaceName;
use detector_core::route::Route;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_indextoname;

use super::decode;
use super::wire::Message;
use crate::source::questions::Questions;

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;

/// Say which table it was (`RTM_F_LOOKUP_TABLE`).
const LOOKUP_TABLE: u32 = 0x1000;
/// Show the route itself, not what becomes of it (`RTM_F_FIB_MATCH`, since Linux 4.13).
const FIB_MATCH: u32 = 0x2000;
/// What the answer is marked with: a route for this one packet (`RTM_F_CLONED`).
const CLONED: u32 = 0x200;

/// What the kernel does with a packet of the node's own for an address.
#[derive(Debug)]
pub enum Fate {
    /// It goes the way of this route.
    Goes {
        /// What becomes of the packet: one leg.
        way: Route,
        /// The route that is taken, with its prefix; `None` where it is gone by now.
        route: Option<Route>,
    },
    /// It is not sent, for this reason.
    Refused(io::Error),
}

/// Asks the kernel, in the network namespace of the calling thread.
pub fn lookup(address: IpAddr) -> io::Result<Fate> {
    let mut questions = Questions::open(NETLINK_ROUTE)?;
    let mut ask = |flags| {
        let mut found = None;
        questions.get(RTM_GETROUTE, &question(address, flags), &mut |message| {
            found = route(message);
        })?;
        Ok::<_, io::Error>(found)
    };
    match ask(LOOKUP_TABLE) {
        Ok(Some(way)) => {
            let route = ask(LOOKUP_TABLE | FIB_MATCH).ok().flatten();
            Ok(Fate::Goes { way, route })
        }
        Ok(None) => Err(io::Error::other("the kernel's answer is no route")),
        Err(error) => match error.raw_os_error() {
            Some(
                libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::EAGAIN,
            ) => Ok(Fate::Refused(error)),
            _ => Err(error),
        },
    }
}

/// The name of an interface, or its number where it has just gone.
pub fn interface_name(index: u32) -> String {
    let name = if_indextoname(index).ok();
    let name = name.and_then(|name| InterfaceName::new(&name.to_string_lossy()));
    name.map_or_else(|| index.to_string(), |name| name.to_string())
}

fn question(address: IpAddr, flags: u32) -> Vec<u8> {
    let (family, bytes) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let family = u8::try_from(family).unwrap_or_default();
    let bits = if address.is_ipv4() { 32 } else { 128 };
    // struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
    let mut body = vec![family, bits, 0, 0, 0, 0, 0, 0];
    body.extend(flags.to_ne_bytes());
    let length = u16::try_from(4 + bytes.len()).unwrap_or_default();
    body.extend(length.to_ne_bytes());
    body.extend(RTA_DST.to_ne_bytes());
    body.extend(bytes);
    body
}

fn route(message: &Message<'_>) -> Option<Route> {
    if message.kind != RTM_NEWROUTE {
        return None;
    }
    let mut body = message.body.to_vec();
    let flags = body.get_mut(8..12)?;
    let unmarked = u32::from_ne_bytes(flags.try_into().ok()?) & !CLONED;
    flags.copy_from_slice(&unmarked.to_ne_bytes());
    decode::route_of(&body)
}
