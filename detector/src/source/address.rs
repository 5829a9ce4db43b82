//! Addresses and prefixes as the eBPF programs and their maps have them: both families in 16 bytes, an
//! IPv4 address mapped into IPv6.

use std::net::{IpAddr, Ipv6Addr};

use detector_core::route::Prefix;
use detector_ebpf::traffic::{Address, mapped};

/// Bits before an IPv4 address that is mapped into IPv6.
const MAPPED_BITS: u32 = 96;

/// The address as the programs write it.
pub(super) fn bytes(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The address that the programs wrote.
pub(super) fn ip(address: Address) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address)).to_canonical()
}

/// How many bits of the prefix's bytes are fixed.
pub(super) fn bits(prefix: Prefix) -> u32 {
    u32::from(prefix.length()) + if prefix.is_ipv4() { MAPPED_BITS } else { 0 }
}
