//! Frames that no socket of an honest program sends.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Result, ensure};

const ME: [u8; 6] = [0x02, 0, 0, 0, 0, 0x66];
const ETH_P_IP: u16 = 0x0800;
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

/// A datagram of IPv4 of 64 bytes in all, in a frame to this link address.
pub(crate) fn datagram(link: [u8; 6], from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(link, ETH_P_IP);
    let mut header = vec![0x45, 0, 0, 64, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    // From 40000 to 5300; UDP needs no checksum here.
    frame.extend([0x9c, 0x40, 0x14, 0xb4, 0, 44, 0, 0]);
    frame.resize(14 + 64, 0);
    frame
}

/// A socket that sends frames as they are.
pub(crate) struct FrameSender {
    socket: OwnedFd,
    /// The interface; where a frame goes stands in the frame.
    to: nix::libc::sockaddr_ll,
    length: u32,
}

impl FrameSender {
    /// Opens one for an interface.
    pub(crate) fn open(interface: &str) -> Result<Self> {
        // It receives nothing.
        // SAFETY: the call takes no pointer.
        let socket = unsafe { nix::libc::socket(nix::libc::AF_PACKET, nix::libc::SOCK_RAW, 0) };
        ensure!(socket >= 0, "no packet socket: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: all bytes zero are a value of this plain structure.
        let mut to: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(nix::libc::AF_PACKET)?;
        to.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex(interface)?)?;
        Ok(Self { socket, to, length: u32::try_from(size_of_val(&to))? })
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the frame and the address live through the call, and their sizes are given.
        let sent = unsafe {
            nix::libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const self.to).cast(),
                self.length,
            )
        };
        if usize::try_from(sent) == Ok(frame.len()) {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
