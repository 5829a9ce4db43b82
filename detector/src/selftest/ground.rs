//! The network namespace of a selftest: a new one, or the one that it runs in where that is private.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nameindex;
use nix::sched::{CloneFlags, unshare};

use super::canary;
use crate::source::questions::Questions;
use crate::source::writer::counts_like_the_kernel;

/// The number that newer kernels give the host's network namespace (`NET_NS_INIT_INO` in the kernel's
/// uapi/linux/nsfs.h); older ones give it any.
const FIRST: u64 = 0xEFFF_FFF9;

/// The name of the socket that says that a selftest runs in a network namespace. It is of the abstract
/// kind: each network namespace has its own, and it ends with the process.
const LOCK: &[u8] = b"detector-selftest";

/// Why there is no ground to test on.
#[derive(Debug)]
pub(super) enum GroundError {
    /// It was asked for what must not be done.
    Refused(String),
    /// It cannot be had.
    Failed(String),
}

/// A network namespace that the canary may be made in.
pub(super) struct Ground {
    /// The way to its kernel, whichever thread uses it.
    pub(super) kernel: Questions,
    /// Whether it is the one that the process runs in.
    pub(super) here: bool,
    /// Held as long as the selftest lasts.
    _lock: Option<UnixListener>,
}

// === impl Ground ===

impl Ground {
    /// Moves the calling thread into a new network namespace, which ends with what is in it.
    pub(super) fn new() -> Result<Self, GroundError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
            GroundError::Failed(format!(
                "none can be made ({error}), which takes the capability SYS_ADMIN: be root on the \
                 node, or in a pod with a network namespace of its own give --here"
            ))
        })?;
        let kernel = open()?;
        Ok(Self { kernel, here: false, _lock: None })
    }

    /// Takes the network namespace of the process, where it is private as far as can be seen from
    /// within, and clears away what a selftest left that was killed.
    pub(super) fn here(prefixes: &[Box<str>]) -> Result<Self, GroundError> {
        if is_the_hosts() {
            return Err(refused("it is the host's"));
        }
        let failed = |error: io::Error| GroundError::Failed(format!("it cannot be read: {error}"));
        let lock = lock()?;
        let mut kernel = open()?;
        let names = interfaces().map_err(failed)?;
        if let Some(pods) = names.iter().find(|name| is_a_pods(name, prefixes)) {
            return Err(refused(&format!("the interface {pods} in it is a pod's")));
        }
        for stale in names.iter().filter(|name| canary::is_peer(name)) {
            canary::remove(&mut kernel, stale).map_err(|error| {
                GroundError::Failed(format!(
                    "{stale} in it, which an earlier selftest has left, cannot be taken away \
                     ({error}), which takes the capability NET_ADMIN"
                ))
            })?;
        }
        Ok(Self { kernel, here: true, _lock: Some(lock) })
    }

    /// What it is, for people.
    pub(super) fn describe(&self) -> &'static str {
        if self.here { "the one that this runs in, which is private" } else { "a new one" }
    }
}

/// The refusal to test in a network namespace that others use.
pub(super) fn refused(why: &str) -> GroundError {
    GroundError::Refused(format!(
        "--here is for a network namespace that nobody else uses, and {why}: run this in a pod \
         without hostNetwork, or without --here as root"
    ))
}

/// Addresses that this network namespace has itself.
pub(super) fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut all = BTreeSet::new();
    for address in getifaddrs()?.filter_map(|interface| interface.address) {
        if let Some(address) = address.as_sockaddr_in() {
            all.insert(address.ip().into());
        } else if let Some(address) = address.as_sockaddr_in6() {
            all.insert(address.ip().into());
        }
    }
    Ok(all)
}

/// Addresses at the other end of TCP connections of this network namespace.
pub(super) fn peers() -> BTreeSet<IpAddr> {
    let of_table = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let tables = ["tcp", "tcp6"].map(|name| of_table(name).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    lines.filter_map(|line| peer(line.split_whitespace().nth(2)?)).collect()
}

/// The address of `0A00010A:01BB`: words of 32 bits as the machine has them, in hexadecimal digits.
fn peer(text: &str) -> Option<IpAddr> {
    let (digits, _) = text.split_once(':').filter(|(digits, _)| digits.len() % 8 == 0)?;
    let words = digits.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.concat();
    let address: IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(address.to_canonical()).filter(|address| !address.is_unspecified())
}

fn open() -> Result<Questions, GroundError> {
    Questions::open(NETLINK_ROUTE).map_err(|error| {
        GroundError::Failed(format!(
            "no netlink socket ({error}): does a seccomp filter or the sandbox forbid AF_NETLINK?"
        ))
    })
}

/// Whether the network namespace is certain to be the host's. In a container that is seldom certain.
fn is_the_hosts() -> bool {
    let number = |path: &str| fs::metadata(path).ok().map(|file| file.ino());
    let own = number("/proc/thread-self/ns/net");
    // The first process is the host's where processes are numbered as the kernel does.
    own == Some(FIRST)
        || (counts_like_the_kernel() && own.is_some() && own == number("/proc/1/ns/net"))
}

fn lock() -> Result<UnixListener, GroundError> {
    let bound = SocketAddr::from_abstract_name(LOCK).and_then(|at| UnixListener::bind_addr(&at));
    bound.map_err(|error| {
        GroundError::Failed(match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another selftest runs in it: wait until that is over".to_owned()
            }
            _ => format!("it cannot be locked for others ({error}): are unix sockets forbidden?"),
        })
    })
}

fn interfaces() -> io::Result<Vec<String>> {
    let all = if_nameindex()?;
    Ok(all.iter().map(|one| one.name().to_string_lossy().into_owned()).collect())
}

/// Whether an interface has the name of a pod's, and is no canary.
fn is_a_pods(name: &str, prefixes: &[Box<str>]) -> bool {
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(&**prefix));
    rest.is_some_and(|rest| !canary::is_canary(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_read_from_the_kernels_table() {
        let is = |text: &str, address: &str| assert_eq!(peer(text), Some(address.parse().unwrap()));
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        is(&format!("{}:01BB", word([10, 96, 0, 1])), "10.96.0.1");
        let (zero, mapped) = (word([0; 4]), word([0, 0, 0xff, 0xff]));
        is(&format!("{zero}{zero}{mapped}{}:01BB", word([10, 96, 0, 1])), "10.96.0.1");
        let first = word([0xfd, 0, 0, 0x10]);
        is(&format!("{first}{zero}{zero}{}:01BB", word([0, 0, 0, 1])), "fd00:10::1");
        for nobody in ["00000000:0000", "0A:1", "", "0A00010A", "ZZ00010A:01BB"] {
            assert_eq!(peer(nobody), None, "{nobody}");
        }
    }

    #[test]
    fn a_canary_is_no_pods() {
        let prefixes = ["cali".into(), "tap".into()];
        let is = |name| is_a_pods(name, &prefixes);
        assert!(is("cali0a1b2c3d4e5") && is("tap1") && is("calitest") && is("calitest12345g"));
        assert!(!is("eth0") && !is("calitest0a1b2c") && !is("selftest-0a1b2c") && !is("lo"));
    }
}
