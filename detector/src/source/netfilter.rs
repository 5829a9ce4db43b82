//! Questions to the kernel's netfilter by netlink, answered by dumps.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::kernel::Message;
use super::kernel::socket;

/// Bytes of `struct nfgenmsg`: the family, a version, a resource.
pub(super) const HEADER: usize = 4;

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x001 | 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel makes at most so much at once.
const BUFFER: usize = 64 << 10;

/// How long the kernel may take for one datagram, in seconds.
const PATIENCE: i64 = 5;

/// A socket for questions.
pub(super) struct Questions {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// Whether something has changed while it was told.
    pub(super) interrupted: bool,
}

impl Questions {
    /// Opens a socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))
            .map_err(io::Error::from)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER], interrupted: false })
    }

    /// Asks for all of a kind (a subsystem and its message), and shows each answer.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.sequence += 1;
        let length = 16 + HEADER + attributes.len();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let mut question = length.to_ne_bytes().to_vec();
        question.extend(kind.to_ne_bytes());
        question.extend(FLAGS.to_ne_bytes());
        question.extend(self.sequence.to_ne_bytes());
        question.extend([0; 4]);
        question.extend([family, 0, 0, 0]);
        question.extend(attributes);
        self.socket.send_to(&question, &SocketAddr::new(socket::KERNEL, 0), 0)?;
        loop {
            let datagram = socket::receive(&self.socket, &mut self.buffer, 0)?;
            let bytes = self.buffer.get(..datagram.length).filter(|_| datagram.from_kernel);
            let Some(bytes) = bytes else { continue };
            for message in Message::all(bytes) {
                let message = message.map_err(io::Error::other)?;
                if message.sequence != self.sequence {
                    continue;
                }
                self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = message.body.first_chunk().map(|code| i32::from_ne_bytes(*code));
                        return match code {
                            Some(0) => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code.unwrap_or(-libc::EIO))),
                        };
                    }
                    _ => each(&message),
                }
            }
        }
    }
}

/// An attribute with a text, which ends with a zero.
pub(super) fn text(kind: u16, value: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 5).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A name as the kernel has it, up to its first zero. Names of tables and chains are anybody's who may
/// write rules: nothing of a terminal's in them.
pub(super) fn printable(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    Some(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}
