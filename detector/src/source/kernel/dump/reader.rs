//! The reading itself, on whatever thread has the time.

use std::io;

use detector_core::observation::KernelState;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::section::Section;
use super::{DumpError, DumpOptions, DumpTotals};
use crate::source::kernel::decode;
use crate::source::kernel::socket::{self, KERNEL};
use crate::source::kernel::uplink::{Uplinks, is_transit};
use crate::source::kernel::wire::{DecodeError, Message, array};

/// The kernel makes each datagram of a dump as large as the buffer that it is offered, up to half
/// of this (`netlink_recvmsg` in net/netlink/af_netlink.c); a single message may take more.
const BUFFER: usize = 64 << 10;

/// How long the kernel may take for one datagram, in seconds. It makes the next while the one before
/// is fetched, so it is there at once or never.
const PATIENCE: i64 = 5;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// Takes what is read, or says by `Err` that nothing more is wanted.
pub(super) type Take<'a> = dyn FnMut(KernelState) -> Result<(), Stop> + 'a;

/// Why reading ends before its end.
pub(super) enum Stop {
    Failed(DumpError),
    /// Whoever asked has lost interest.
    Unwanted,
}

impl<E: Into<DumpError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A socket, and what has been read by it.
pub(super) struct Reader {
    socket: Socket,
    sequence: u32,
    options: DumpOptions,
    uplinks: Uplinks,
    pub(super) totals: DumpTotals,
}

impl Reader {
    pub(super) fn open(options: DumpOptions) -> io::Result<Self> {
        let socket = socket::open(0)?;
        // With it the kernel heeds what a question is about. Before Linux 4.20 there is no such
        // thing, and it answers with more than was asked for, which is then left out here.
        let _ = socket.set_netlink_get_strict_chk(true);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))
            .map_err(io::Error::from)?;
        let (uplinks, totals) = (Uplinks::default(), DumpTotals::default());
        Ok(Self { socket, sequence: 0, options, uplinks, totals })
    }

    /// Reads one table.
    pub(super) fn read(&mut self, section: &Section, take: &mut Take<'_>) -> Result<(), Stop> {
        self.sequence += 1;
        let request = section.request(self.sequence);
        self.socket.send_to(&request, &SocketAddr::new(KERNEL, 0), 0)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let datagram = socket::receive(&self.socket, &mut buffer, 0)?;
            if !datagram.from_kernel {
                continue;
            }
            let (what, length) = (section.what, datagram.length);
            let too_long = DecodeError::Length { what: "an answer", length, room: BUFFER };
            let bytes = buffer.get(..length).ok_or(DumpError::Answer { what, error: too_long })?;
            for message in Message::all(bytes) {
                let message = message.map_err(|error| DumpError::Answer { what, error })?;
                if message.sequence == self.sequence && self.message(section, &message, take)? {
                    return Ok(());
                }
            }
        }
    }

    /// Takes one message of the answer; whether it is the last.
    fn message(
        &mut self,
        section: &Section,
        message: &Message<'_>,
        take: &mut Take<'_>,
    ) -> Result<bool, Stop> {
        if message.flags & NLM_F_DUMP_INTR != 0 {
            if !self.options.accept_interrupted {
                return Err(DumpError::Interrupted(section.what).into());
            }
            self.totals.interrupted = true;
        }
        match message.kind {
            NLMSG_DONE | NLMSG_ERROR => return verdict(section, message).map(|()| true),
            _ => {}
        }
        match decode::state(message) {
            Ok(Some(KernelState::Route(route))) if is_transit(&route, self.uplinks.indexes()) => {
                self.totals.filtered += 1;
            }
            Ok(Some(state)) => {
                // Whether they have changed matters to sources, not to a reader.
                let _ = self.uplinks.observe_state(&self.options.settings, &state);
                self.totals.states += 1;
                take(state)?;
            }
            Ok(None) => self.totals.filtered += 1,
            Err(error) => {
                self.totals.unparsed += 1;
                self.totals.first_unparsed.get_or_insert(error);
            }
        }
        Ok(false)
    }
}

/// How the kernel ended its answer: both kinds of end begin with an error number, negative or zero.
fn verdict(section: &Section, message: &Message<'_>) -> Result<(), Stop> {
    let what = section.what;
    let number = array(message.body, "the end of an answer")
        .map_err(|error| DumpError::Answer { what, error })?;
    match i32::from_ne_bytes(*number).wrapping_neg() {
        0 => Ok(()),
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT if section.optional => Ok(()),
        number => {
            let error = io::Error::from_raw_os_error(number);
            Err(DumpError::Refused { what, error }.into())
        }
    }
}
