//! The filter on the socket, in the kernel.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};
use aya::programs::{ProgramError, SocketFilter};
use aya::{Ebpf, include_bytes_aligned};
use detector_core::route::Prefix;
use detector_ebpf::traffic::Address;
use netlink_sys::Socket;

use crate::source::address::{bits, bytes};
use crate::source::loader;
use crate::source::witness::{Memory, WitnessError, one_line, refusal};

static PROGRAM: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-connections"));

/// The loaded filter and its maps.
pub(super) struct Filter {
    ranges: LpmTrie<MapData, Address, u32>,
    taken: HashMap<MapData, Address, u32>,
}

// === impl Filter ===

impl Filter {
    /// Loads the filter and puts it on the socket, which holds it from then on.
    pub(super) fn attach(socket: &Socket) -> Result<Self, WitnessError> {
        let memory = Memory::unlock();
        let mut ebpf = loader::load(PROGRAM).map_err(|error| refusal(&error, memory))?;
        let wrong = |error: MapError| WitnessError::Program(one_line(&error));
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| WitnessError::Program(format!("the object has no map {name}")))
        };
        let ranges = take("RANGES")?.try_into().map_err(wrong)?;
        let taken = take("TAKEN")?.try_into().map_err(wrong)?;
        // SAFETY: the socket is open for the time of the borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        let attach = |ebpf: &mut Ebpf| -> Result<(), ProgramError> {
            let program = program(ebpf)?;
            program.load()?;
            program.attach(descriptor)
        };
        attach(&mut ebpf).map_err(|error| refusal(&error.into(), memory))?;
        Ok(Self { ranges, taken })
    }

    /// Lets everything through from now on.
    #[expect(clippy::unused_self, reason = "it is this filter that lets everything through then")]
    pub(super) fn detach(&mut self, socket: &Socket) {
        // SAFETY: the socket is open for the time of the borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        if let Err(error) = SocketFilter::detach(descriptor) {
            let error = one_line(&error);
            tracing::warn!(error, "the filter for connections stays: some are not seen");
        }
    }

    pub(super) fn watch(&mut self, address: IpAddr) -> io::Result<()> {
        self.taken.insert(bytes(address), 1, 0).map_err(io::Error::other)
    }

    /// What is not there need not be taken away.
    #[expect(clippy::unnecessary_wraps, reason = "the same shape as the other changes")]
    pub(super) fn unwatch(&mut self, address: IpAddr) -> io::Result<()> {
        let _ = self.taken.remove(&bytes(address));
        Ok(())
    }

    pub(super) fn ranges(&mut self, old: &[Prefix], new: &[Prefix]) -> io::Result<()> {
        for range in new.iter().filter(|range| !old.contains(range)) {
            self.ranges.insert(&key(*range), 1, 0).map_err(io::Error::other)?;
        }
        for range in old.iter().filter(|range| !new.contains(range)) {
            let _ = self.ranges.remove(&key(*range));
        }
        Ok(())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SocketFilter, ProgramError> {
    ebpf.program_mut("connections").ok_or(ProgramError::NotLoaded)?.try_into()
}

fn key(range: Prefix) -> Key<Address> {
    Key::new(bits(range), bytes(range.address()))
}
