//! iptables as it was: the table `nat` as the kernel gives it, entry by entry
//! (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h, linux/netfilter/x_tables.h).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use detector_core::route::Prefix;
use detector_core::traffic::TranslationRule;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::chains::{Action, Destination, Rule, Table};
use crate::source::netfilter::printable;

/// One of the two tables.
struct Family {
    ipv6: bool,
    /// Tables that there are in this network namespace: asking for one that is not would make it.
    names: &'static str,
    /// `IPPROTO_IP` or `IPPROTO_IPV6`.
    level: libc::c_int,
    /// Bytes of the entry before its counters and matches.
    head: usize,
    name: &'static str,
}

const IPV4: Family = Family {
    ipv6: false,
    names: "/proc/thread-self/net/ip_tables_names",
    level: libc::IPPROTO_IP,
    // `struct ip`, then `nfcache` and the offsets.
    head: 84,
    name: "iptables-legacy nat",
};

const IPV6: Family = Family {
    ipv6: true,
    names: "/proc/thread-self/net/ip6_tables_names",
    level: libc::IPPROTO_IPV6,
    head: 136,
    name: "ip6tables-legacy nat",
};

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`; the same numbers for both families.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;

/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `struct ipt_getinfo`: name, valid hooks, five entries, five underflows, entries, size.
const INFO: usize = NAME + 4 + 20 + 20 + 4 + 4;
/// `struct ipt_get_entries` before the entries: name and size, padded to 8.
const ENTRIES: usize = 40;

/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`, at which destinations are translated.
const HOOKS: [usize; 2] = [0, 3];

/// `IPT_INV_DSTIP`.
const INVERTED: u8 = 0x10;

/// Bytes of `struct xt_entry_target` before what the target itself has.
const TARGET: usize = 32;

/// The most that is read: 64 MiB of rules.
const MOST: usize = 64 << 20;

/// Reads the IPv4 table.
pub(super) fn read_ipv4() -> io::Result<Vec<TranslationRule>> {
    read(&IPV4)
}

/// Reads the IPv6 table.
pub(super) fn read_ipv6() -> io::Result<Vec<TranslationRule>> {
    read(&IPV6)
}

fn read(family: &Family) -> io::Result<Vec<TranslationRule>> {
    let names = std::fs::read_to_string(family.names);
    // Without the file there is no such module.
    if !names.is_ok_and(|names| names.lines().any(|name| name == "nat")) {
        return Ok(Vec::new());
    }
    let of = if family.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let socket = socket(of, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    // Between the two questions the table may have grown: then the kernel says EAGAIN.
    for _ in 0..8 {
        let mut info = [0u8; INFO];
        info[..3].copy_from_slice(b"nat");
        ask(&socket, family.level, GET_INFO, &mut info)?;
        let size = number(&info, NAME + 4 + 20 + 20 + 4).unwrap_or(0) as usize;
        if size > MOST {
            return Err(io::Error::other(format!("the table has {size} bytes")));
        }
        let mut entries = vec![0u8; ENTRIES + size];
        entries[..3].copy_from_slice(b"nat");
        let length = u32::try_from(size).map_err(io::Error::other)?;
        entries[NAME..NAME + 4].copy_from_slice(&length.to_ne_bytes());
        match ask(&socket, family.level, GET_ENTRIES, &mut entries) {
            Ok(()) => return Ok(table(family, &info, &entries[ENTRIES..]).translations()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the table changes faster than it can be read"))
}

fn ask(socket: &OwnedFd, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes to the
    // buffer that it is given the address of, which has so many.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An entry, as far as it matters.
struct Entry {
    next: usize,
    destination: Destination,
    target: String,
    /// What the target has, behind its name.
    info: Vec<u8>,
}

/// The chains that the entries make up: a base chain begins where a hook enters, and one of somebody's
/// own where an entry says so (`ERROR` with the chain's name).
fn table(family: &Family, info: &[u8], bytes: &[u8]) -> Table {
    let mut starts: BTreeMap<usize, String> = BTreeMap::new();
    let mut bases = Vec::new();
    for hook in HOOKS {
        let at = number(info, NAME + 4 + hook * 4).unwrap_or(0) as usize;
        let name = if hook == 0 { "PREROUTING" } else { "OUTPUT" };
        starts.insert(at, name.to_owned());
        bases.push(name.to_owned());
    }
    let mut entries: BTreeMap<usize, Entry> = BTreeMap::new();
    let mut at = 0;
    while let Some(entry) = entry(family, bytes, at) {
        let next = at + entry.next;
        if entry.target == "ERROR"
            && let Some(name) = printable(&entry.info)
        {
            starts.insert(next, name);
        }
        entries.insert(at, entry);
        at = next;
    }
    let mut chains: HashMap<String, Vec<Rule>> = HashMap::new();
    let mut chain = None;
    for (at, entry) in &entries {
        if let Some(name) = starts.get(at) {
            chain = Some(name.clone());
        }
        // The beginnings of other base chains end one as well; those lead nowhere that matters.
        let Some(chain) = &chain else { continue };
        let Some(action) = action(family, entry, &starts) else { continue };
        let rule = Rule { destination: entry.destination.clone(), action };
        chains.entry(chain.clone()).or_default().push(rule);
    }
    Table { name: family.name.to_owned(), chains, bases }
}

fn action(family: &Family, entry: &Entry, starts: &BTreeMap<usize, String>) -> Option<Action> {
    match entry.target.as_str() {
        // The standard target has no name: its verdict is where to go on, if it is not below zero.
        "" => {
            let to = number(&entry.info, 0)?.cast_signed();
            let to = usize::try_from(to).ok()?;
            starts.get(&to).map(|chain| Action::Jump(chain.clone()))
        }
        // The revision stands in the name's last byte.
        "DNAT" => {
            let revision = entry.info.first().copied()?;
            let (least, most) = xt_dnat(revision.into(), &entry.info[1..], family.ipv6)?;
            Some(Action::Translate(least, most))
        }
        _ => None,
    }
}

fn entry(family: &Family, bytes: &[u8], at: usize) -> Option<Entry> {
    let head = bytes.get(at..at + family.head + 12)?;
    let (target_at, next) = (half(head, family.head + 4)?, half(head, family.head + 6)?);
    let (target_at, next) = (usize::from(target_at), usize::from(next));
    if next < family.head + 12 {
        return None;
    }
    let entry = bytes.get(at..at + next)?;
    let target = entry.get(target_at..)?;
    let name = printable(target.get(2..TARGET - 1)?).unwrap_or_default();
    let revision = *target.get(TARGET - 1)?;
    let mut info = target.get(TARGET..)?.to_vec();
    if name == "DNAT" {
        info.insert(0, revision);
    }
    Some(Entry { next, destination: destination(family, entry)?, target: name, info })
}

fn destination(family: &Family, entry: &[u8]) -> Option<Destination> {
    let (address, mask, inverted): (IpAddr, u32, u8) = if family.ipv6 {
        // source, destination, and their masks.
        let address = Ipv6Addr::from(*entry.get(16..32)?.first_chunk::<16>()?);
        let mask = u128::from_be_bytes(*entry.get(48..64)?.first_chunk()?);
        let length = mask.leading_ones();
        let length =
            if length == mask.count_ones() { length } else { return Some(Destination::Other) };
        (address.into(), length, *entry.get(132)?)
    } else {
        let address = Ipv4Addr::from(*entry.get(4..8)?.first_chunk::<4>()?);
        let mask = u32::from_be_bytes(*entry.get(12..16)?.first_chunk()?);
        let length = mask.leading_ones();
        let length =
            if length == mask.count_ones() { length } else { return Some(Destination::Other) };
        (address.into(), length, *entry.get(83)?)
    };
    if inverted & INVERTED != 0 {
        return Some(Destination::Other);
    }
    if mask == 0 {
        return Some(Destination::Any);
    }
    let prefix = Prefix::new(address, u8::try_from(mask).ok()?)?;
    Some(Destination::In(vec![prefix]))
}

/// The addresses that the target `DNAT` translates to, by its revision. `None` where it translates
/// ports only.
pub(super) fn xt_dnat(revision: u32, info: &[u8], ipv6: bool) -> Option<(IpAddr, IpAddr)> {
    /// `NF_NAT_RANGE_MAP_IPS`.
    const ADDRESSES: u32 = 1;
    // Revision 0 has a number of ranges first (`nf_nat_ipv4_multi_range_compat`), and IPv4 only.
    let (flags, least, most) = match revision {
        0 => (number(info, 4)?, 8, 12),
        _ => (number(info, 0)?, 4, 20),
    };
    if flags & ADDRESSES == 0 {
        return None;
    }
    let address = |at: usize| -> Option<IpAddr> {
        if ipv6 {
            Some(Ipv6Addr::from(*info.get(at..)?.first_chunk::<16>()?).into())
        } else {
            Some(Ipv4Addr::from(*info.get(at..)?.first_chunk::<4>()?).into())
        }
    };
    Some((address(least)?, address(most)?))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}
