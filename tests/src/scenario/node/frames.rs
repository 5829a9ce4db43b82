//! Frames that no socket of an honest program sends.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Result, ensure};

const ME: [u8; 6] = [0x02, 0, 0, 0, 0, 0x66];
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

pub(super) fn arp_reply(address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], ETH_P_ARP);
    // Ethernet, IPv4, lengths, a reply.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(ME);
    frame.extend(address.octets());
    frame.extend([0xff; 6]);
    frame.extend(address.octets());
    frame
}

pub(super) fn neighbour_advertisement(address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    icmpv6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66), message)
}

pub(super) fn router_advertisement(from: Ipv6Addr) -> Vec<u8> {
    // A router for half an hour.
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8];
    message.extend([0; 8]);
    icmpv6(from, message)
}

fn icmpv6(from: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let length = u16::try_from(message.len()).unwrap_or(0);
    let pseudo = [0, 0, length.to_be_bytes()[0], length.to_be_bytes()[1], 0, 0, 0, 58];
    let sum = checksum(&[&from.octets(), &to.octets(), &pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], ETH_P_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: [u8; 6], kind: u16) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(ME);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The internet's checksum (RFC 1071) over parts of even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Sends a frame as it is.
pub(super) fn send(interface: &str, frame: &[u8]) -> Result<()> {
    let all = i32::from(0x0003_u16.to_be());
    // SAFETY: the call takes no pointer.
    let socket = unsafe { nix::libc::socket(nix::libc::AF_PACKET, nix::libc::SOCK_RAW, all) };
    ensure!(socket >= 0, "no packet socket: {}", io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: all bytes zero are a value of this plain structure.
    let mut to: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(nix::libc::AF_PACKET)?;
    to.sll_ifindex = i32::try_from(index)?;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    let length = u32::try_from(size_of_val(&to))?;
    // SAFETY: the frame and the address live through the call, and their sizes are given.
    let sent = unsafe {
        nix::libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    ensure!(
        usize::try_from(sent) == Ok(frame.len()),
        "a frame cannot be sent: {}",
        io::Error::last_os_error()
    );
    Ok(())
}
