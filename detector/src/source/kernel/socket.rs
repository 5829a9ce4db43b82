//! A netlink socket to the routing part of the kernel.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The port id of the kernel.
pub(in crate::source) const KERNEL: u32 = 0;

/// A datagram as it was received.
pub(in crate::source) struct Datagram {
    /// Its length, which is more than the buffer holds when it was cut short.
    pub(in crate::source) length: usize,
    /// Whether the kernel sent it. Whoever has `CAP_NET_ADMIN` may send to a netlink socket, and to
    /// its groups too.
    pub(in crate::source) from_kernel: bool,
}

/// A socket that has joined `groups`, a mask in which `RTNLGRP_…` number n is bit n - 1.
pub(in crate::source) fn open(groups: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Gives a socket this much room for what was not yet read; without `CAP_NET_ADMIN` only as much as
/// `net.core.rmem_max` allows.
pub(in crate::source) fn set_room(socket: &Socket, bytes: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))
        .map_err(io::Error::from)
}

/// Receives a datagram into `buffer`, by the `MSG_…` in `flags`.
pub(in crate::source) fn receive(
    socket: &Socket,
    mut buffer: &mut [u8],
    flags: libc::c_int,
) -> io::Result<Datagram> {
    let (length, sender) = socket.recv_from(&mut buffer, flags | libc::MSG_TRUNC)?;
    Ok(Datagram { length, from_kernel: sender.port_number() == KERNEL })
}

/// Receives a datagram into `buffer` without waiting. Where there is none, the socket counts as not
/// ready until there is news.
pub(in crate::source) fn receive_ready(
    socket: &AsyncFd<Socket>,
    buffer: &mut [u8],
) -> io::Result<Datagram> {
    let mut receive = |socket: &Socket| receive(socket, buffer, libc::MSG_DONTWAIT);
    match receive(socket.get_ref()) {
        // Only a read within `try_io` may say that there is nothing: it makes the socket not ready,
        // and that must not undo the news of a message that came after an earlier read.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            socket.try_io(Interest::READABLE, receive)
        }
        received => received,
    }
}

/// How many datagrams the kernel has dropped for want of room, since the socket was opened.
pub(in crate::source) fn drops(socket: &Socket) -> io::Result<u32> {
    // `SK_MEMINFO_DROPS` of linux/sock_diag.h, and how many figures there were when it came.
    const DROPS: usize = 8;
    let mut figures = [0u32; DROPS + 1];
    let mut length = libc::socklen_t::try_from(size_of_val(&figures)).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, the size of `figures`, and any bytes are
    // numbers; the descriptor is that of a live socket.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            figures.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(figures[DROPS]) } else { Err(io::Error::last_os_error()) }
}
