//! Questions to the kernel by netlink.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::kernel::Message;
use super::kernel::socket;

/// `NLM_F_REQUEST`.
const GET: u16 = 0x001;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x001 | 0x300;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ORDER: u16 = 0x001 | 0x004;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel makes at most so much at once.
const BUFFER: usize = 64 << 10;

/// How long the kernel may take for one datagram, in seconds.
const PATIENCE: i64 = 5;

/// A socket for questions, and for orders.
pub(crate) struct Questions {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// Whether something has changed while it was told.
    pub(super) interrupted: bool,
}

impl Questions {
    /// Opens a socket of a netlink protocol in the network namespace of the calling thread.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))
            .map_err(io::Error::from)?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER], interrupted: false })
    }

    /// Asks for all of a kind, by what follows the netlink header, and shows each answer.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.ask(kind, DUMP, body)?;
        self.hear(false, each)
    }

    /// Asks for one thing, and shows the one answer.
    pub(crate) fn get(
        &mut self,
        kind: u16,
        body: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.ask(kind, GET, body)?;
        self.hear(true, each)
    }

    /// Has something done, with these flags beside those of every order; it is done when this returns.
    pub(crate) fn order(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.ask(kind, ORDER | flags, body)?;
        self.hear(false, &mut |_| {})
    }

    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = 16 + body.len();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let mut question = length.to_ne_bytes().to_vec();
        question.extend(kind.to_ne_bytes());
        question.extend(flags.to_ne_bytes());
        question.extend(self.sequence.to_ne_bytes());
        question.extend([0; 4]);
        question.extend(body);
        self.socket.send_to(&question, &SocketAddr::new(socket::KERNEL, 0), 0)?;
        Ok(())
    }

    fn hear(&mut self, one: bool, each: &mut dyn FnMut(&Message<'_>)) -> io::Result<()> {
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
                    _ => {
                        each(&message);
                        if one {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

impl AsRawFd for Questions {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
