//! The netlink socket that the program hangs on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    sendto, socket,
};
use tracing::debug;

use super::WitnessError;

/// `NLMSG_NOOP` of linux/netlink.h, which says nothing.
const NOOP: u16 = 1;

/// `NLM_F_REQUEST | NLM_F_ACK`.
const WITH_ANSWER: u16 = 1 | 4;

/// The multicast groups of `linux/rtnetlink.h` that tell of what decides where a packet goes.
pub const GROUPS: [(&str, u32); 7] = [
    ("links", 1),
    ("neighbours", 3),
    ("IPv4 routes", 7),
    ("IPv6 routes", 11),
    ("IPv4 rules", 8),
    ("IPv6 rules", 19),
    ("next hops", 32),
];

/// A socket with a port of its own, and at first in no group.
pub(super) struct Listener {
    socket: OwnedFd,
    /// Its netlink port; the kernel's is 0.
    pub(super) port: u32,
}

// === impl Listener ===

impl Listener {
    /// Opens a socket.
    pub(super) fn open() -> Result<Self, WitnessError> {
        let open = || -> nix::Result<Self> {
            let socket = socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::NetlinkRoute,
            )?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            let port = getsockname::<NetlinkAddr>(socket.as_raw_fd())?.pid();
            Ok(Self { socket, port })
        };
        open().map_err(|errno| WitnessError::Socket { what: "route changes", error: errno.into() })
    }

    /// Joins all groups.
    pub(super) fn join(&self) -> Result<(), WitnessError> {
        for (what, group) in GROUPS {
            join(&self.socket, group).map_err(|error| WitnessError::Socket { what, error })?;
        }
        Ok(())
    }

    /// Sends a message that says nothing to a port; the kernel answers it with an acknowledgement.
    pub(super) fn send_nothing(&self, port: u32) -> io::Result<()> {
        let mut message = [0; 16];
        message[..4].copy_from_slice(&16u32.to_ne_bytes());
        message[4..6].copy_from_slice(&NOOP.to_ne_bytes());
        message[6..8].copy_from_slice(&WITH_ANSWER.to_ne_bytes());
        let to = NetlinkAddr::new(port, 0);
        sendto(self.socket.as_raw_fd(), &message, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// How many messages the kernel did not show to the socket's filter, for want of memory to copy
    /// them (`netlink_overrun` in net/netlink/af_netlink.c). What the filter itself turns away is
    /// not among them.
    pub(super) fn drops(&self) -> io::Result<u64> {
        // `SK_MEMINFO_VARS` and `SK_MEMINFO_DROPS` of linux/sock_diag.h.
        let mut values = [0u32; 9];
        let drops = 8;
        let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(36);
        // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes to
        // the array that it is given the address of.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if done == 0 { Ok(values[drops].into()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Joins a multicast group; one that the kernel does not know has nothing to tell.
fn join(socket: &impl AsFd, group: u32) -> io::Result<()> {
    let joined = set_membership(socket.as_fd(), group);
    match joined {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            debug!(group, "the kernel has no such group");
            Ok(())
        }
        joined => joined,
    }
}

fn set_membership(socket: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and the option's value is a u32 of which the
    // kernel is given the address and the size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            libc::socklen_t::try_from(size_of::<u32>()).unwrap_or(4),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
