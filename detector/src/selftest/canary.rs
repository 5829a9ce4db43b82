//! The canary: an interface that looks like a pod's, and a route to somebody else's address by it.
//!
//! Nothing is behind the interface, so nothing receives what the route diverts. In a network namespace
//! of its own both end with it; in that of a pod they are taken away when the selftest ends, by
//! another process where it is killed, and by the next selftest where that was killed too.

use std::io;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use detector_core::link::InterfaceName;
use detector_core::route::Prefix;
use nix::sys::signal::{SigSet, Signal};

use super::ground::Ground;

/// What follows the configured prefix in a canary's name: then come six hexadecimal digits. The CNI
/// plugin writes hexadecimal digits only, so no pod has such an interface.
const NAME: &str = "test";

/// What the name of its other end begins with; the same digits follow.
const PEER: &str = "selftest-";

/// How many digits.
const DIGITS: usize = 6;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// `NLM_F_EXCL | NLM_F_CREATE`.
const CREATE: u16 = 0x200 | 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;

/// A canary. It is taken away when it is dropped.
pub(super) struct Canary {
    ground: Ground,
    name: InterfaceName,
    index: u32,
    route: Option<Prefix>,
    /// Who takes it away where this process cannot.
    janitor: Option<Child>,
}

/// A name for a canary that no interface has, by chance.
pub(super) fn name(prefix: &str) -> Option<InterfaceName> {
    let number = fastrand::u32(..1 << (4 * DIGITS));
    InterfaceName::new(&format!("{prefix}{NAME}{number:0DIGITS$x}"))
}

/// Whether a name without the configured prefix is a canary's.
pub(super) fn is_canary(rest: &str) -> bool {
    rest.strip_prefix(NAME).is_some_and(are_digits)
}

/// Whether a name is that of a canary's other end.
pub(super) fn is_peer(name: &str) -> bool {
    name.strip_prefix(PEER).is_some_and(are_digits)
}

fn are_digits(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == DIGITS && text.bytes().all(digit)
}

/// Takes an interface away, and with it its other end and its routes.
pub(super) fn remove(
    kernel: &mut crate::source::questions::Questions,
    name: &str,
) -> io::Result<()> {
    let mut body = link(0);
    attribute(&mut body, IFLA_IFNAME, name.as_bytes());
    kernel.order(RTM_DELLINK, 0, &body)
}

/// Waits until standard input ends, and takes the interface away then, if it is still there: the work
/// of the process that outlives a selftest. What ends others does not end it.
pub(super) fn sweep(name: &str) -> io::Result<()> {
    let mut deaf = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        deaf.add(signal);
    }
    deaf.thread_block()?;
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let mut kernel =
        crate::source::questions::Questions::open(netlink_sys::protocols::NETLINK_ROUTE)?;
    match remove(&mut kernel, name) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

// === impl Canary ===

impl Canary {
    /// Makes the interface. In the network namespace of a pod, whoever would take it away is there
    /// before it is.
    pub(super) fn make(ground: Ground, name: InterfaceName) -> io::Result<Self> {
        let janitor = ground.here.then(|| hire(&name)).transpose()?;
        let digits = &name.as_str()[name.as_str().len() - DIGITS..];
        let peer = format!("{PEER}{digits}");
        let mut canary = Self { index: 0, route: None, janitor, name, ground };
        let kernel = &mut canary.ground.kernel;
        kernel.order(RTM_NEWLINK, CREATE, &pair(canary.name.as_str(), &peer))?;
        for end in [&*peer, canary.name.as_str()] {
            let mut up = link(IFF_UP);
            attribute(&mut up, IFLA_IFNAME, end.as_bytes());
            kernel.order(RTM_NEWLINK, 0, &up)?;
        }
        let mut question = link(0);
        attribute(&mut question, IFLA_IFNAME, canary.name.as_str().as_bytes());
        let mut index = None;
        kernel.get(RTM_GETLINK, &question, &mut |message| {
            index = message.body.get(4..8).and_then(<[u8]>::first_chunk).copied();
        })?;
        let index = index.ok_or(io::ErrorKind::InvalidData)?;
        canary.index = u32::from_ne_bytes(index);
        Ok(canary)
    }

    /// The name of the interface.
    pub(super) fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// Whether it is in the network namespace that the process runs in.
    pub(super) fn is_here(&self) -> bool {
        self.ground.here
    }

    /// Makes the route. One that is there already is left alone, and that is an error.
    pub(super) fn divert(&mut self, to: Prefix) -> io::Result<()> {
        self.ground.kernel.order(RTM_NEWROUTE, CREATE, &route(to, self.index))?;
        self.route = Some(to);
        Ok(())
    }

    /// Takes the route away.
    pub(super) fn withdraw(&mut self) -> io::Result<()> {
        match self.route.take() {
            Some(to) => self.ground.kernel.order(RTM_DELROUTE, 0, &route(to, self.index)),
            None => Ok(()),
        }
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        // Where it cannot be done, the janitor tries, and the namespace does.
        let _ = self.withdraw();
        let _ = remove(&mut self.ground.kernel, self.name.as_str());
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// Starts the process that takes the interface away when this one has ended in whatever way: then its
/// standard input ends.
fn hire(name: &InterfaceName) -> io::Result<Child> {
    use std::os::unix::process::CommandExt as _;

    Command::new("/proc/self/exe")
        .args(["selftest", "--sweep", name.as_str()])
        .env_clear()
        // Whoever ends the group from a terminal ends the selftest, and it the janitor.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// A pair of veth interfaces (`struct ifinfomsg` and attributes, rtnetlink(7)). The kernel sets up none
/// that has no other end yet, so they are down at first (`veth_open` in drivers/net/veth.c).
fn pair(name: &str, peer: &str) -> Vec<u8> {
    let mut other = link(0);
    attribute(&mut other, IFLA_IFNAME, peer.as_bytes());
    let mut data = Vec::new();
    attribute(&mut data, VETH_INFO_PEER, &other);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, b"veth");
    attribute(&mut info, IFLA_INFO_DATA, &data);
    let mut body = link(0);
    attribute(&mut body, IFLA_IFNAME, name.as_bytes());
    attribute(&mut body, IFLA_LINKINFO, &info);
    body
}

/// An interface that is known by its name, with these flags set (`struct ifinfomsg`).
fn link(flags: u32) -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(flags.to_ne_bytes());
    // Which flags are changed.
    body.extend(flags.to_ne_bytes());
    body
}

/// A route as Felix makes those of pods (`struct rtmsg` and attributes): of the main table, on the
/// link.
fn route(to: Prefix, index: u32) -> Vec<u8> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let family = u8::try_from(family).unwrap_or_default();
    let mut body = vec![
        family,
        to.length(),
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_LINK,
        libc::RTN_UNICAST,
    ];
    body.extend([0; 4]);
    match to.address() {
        IpAddr::V4(address) => attribute(&mut body, RTA_DST, &address.octets()),
        IpAddr::V6(address) => attribute(&mut body, RTA_DST, &address.octets()),
    }
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    body
}

/// Adds an attribute (`struct nlattr`), which begins at a multiple of four bytes and is filled up to
/// one.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // None of them has more than a hundred bytes.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_known_by_its_name() {
        let name = name("cali").unwrap();
        assert!(is_canary(name.as_str().strip_prefix("cali").unwrap()), "{}", name.as_str());
        assert!(is_peer("selftest-0a1b2c") && !is_peer("selftest-0A1B2C") && !is_peer("selftest"));
        assert_eq!("selftest-0a1b2c".len(), 15, "the longest name that the kernel takes");
    }

    #[test]
    fn attributes_are_filled_up() {
        let mut body = Vec::new();
        attribute(&mut body, 3, b"abcde");
        assert_eq!(body.len(), 12);
        assert_eq!(body[..2], 9u16.to_ne_bytes());
    }
}
