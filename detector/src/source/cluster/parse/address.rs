//! Addresses and prefixes as Go and Calico read them.

use std::net::{IpAddr, Ipv6Addr};

use detector_core::route::Prefix;

use crate::source::cluster::rejection::Reason;

/// An address as Go's `net.ParseIP` takes it, IPv4-mapped ones as the IPv4 address in them.
pub(super) fn ip(text: &str) -> Result<IpAddr, Reason> {
    raw(text).map(|address| address.to_canonical())
}

fn raw(text: &str) -> Result<IpAddr, Reason> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address);
    }
    let octets = text.rsplit(':').next().unwrap_or(text).split('.');
    let numbers = octets.clone().all(|o| !o.is_empty() && o.bytes().all(|b| b.is_ascii_digit()));
    let padded = octets.clone().any(|octet| octet.len() > 1 && octet.starts_with('0'));
    Err(match text {
        _ if octets.count() == 4 && numbers && padded => Reason::LeadingZeros,
        _ if text.contains('%') => Reason::Zone,
        _ => Reason::NotAnAddress,
    })
}

/// An address with the length behind it, or alone, as Calico's `ParseCIDROrIP` takes it
/// (libcalico-go/lib/net/ipnet.go): the address itself, and the prefix that it names.
pub(super) fn cidr_or_ip(text: &str) -> Result<(IpAddr, Prefix), Reason> {
    let Some((address, length)) = text.split_once('/') else {
        return ip(text).map(|address| (address, Prefix::host(address)));
    };
    let address = raw(address)?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse::<u8>().ok().filter(|_| digits).ok_or(Reason::NotAnAddress)?;
    // To Go, the last 32 bits of an IPv4-mapped prefix are an IPv4 prefix, as `IPNet.String` shows;
    // where the length leaves some of `::ffff:` free, it is IPv6 like any other.
    let prefix = match address {
        IpAddr::V6(v6) if is_mapped(v6) && length >= 96 => {
            Prefix::new(address.to_canonical(), length - 96)
        }
        _ => Prefix::new(address, length),
    };
    Ok((address.to_canonical(), prefix.ok_or(Reason::NotAnAddress)?))
}

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// The prefix that such a text names.
pub(super) fn prefix(text: &str) -> Result<Prefix, Reason> {
    cidr_or_ip(text).map(|(_, prefix)| prefix)
}
