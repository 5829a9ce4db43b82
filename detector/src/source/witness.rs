//! The witness in the kernel: loads the eBPF program, attaches it to a netlink socket, reads what
//! it writes.
//!
//! Nothing is pinned and nothing outlives the agent: the program hangs on the socket, the maps on
//! the program, and all of it on file descriptors of this process.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, SocketFilter};
use aya::util::KernelVersion;
use aya::{EbpfError, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use detector_core::route::IfIndex;
use detector_ebpf::{Counter, Record, RecordError};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tracing::debug;

/// The multicast groups of `linux/rtnetlink.h` that tell of what decides where a packet goes.
pub const GROUPS: [(&str, u32); 6] = [
    ("links", 1),
    ("IPv4 routes", 7),
    ("IPv6 routes", 11),
    ("IPv4 rules", 8),
    ("IPv6 rules", 19),
    ("next hops", 32),
];

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-programs"));

/// Why there is no witness.
#[derive(thiserror::Error, Debug)]
pub enum WitnessError {
    /// The kernel does not let this process load programs.
    #[error(
        "the kernel refuses eBPF to this process ({0}): run as root or with the capabilities BPF \
         and NET_ADMIN (SYS_ADMIN before Linux 5.8), or use --route-source netlink"
    )]
    Refused(io::Error),
    /// The kernel has no memory to lend for maps.
    #[error(
        "the kernel refuses eBPF maps to this process ({0}), and before Linux 5.11 they count \
         against a limit of locked memory that could not be raised: set the limit (ulimit -l, \
         LimitMEMLOCK=) to 16 MiB more than the ring has, or grant the capabilities BPF, NET_ADMIN \
         and SYS_RESOURCE, or use --route-source netlink"
    )]
    LockedMemory(io::Error),
    /// The program was not taken.
    #[error(
        "the kernel does not take the eBPF program ({0}): Linux 5.10 or later is needed; use \
         --route-source netlink on this one"
    )]
    Program(String),
    /// There is no socket to hang the program on.
    #[error("no netlink socket for {what} ({error}); does the sandbox allow AF_NETLINK?")]
    Socket {
        /// What it was for.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What became of what the kernel sent: `seen` is the sum of the four after it. None ever goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Messages that the kernel sent.
    pub seen: u64,
    /// Of those, records that were written to the ring.
    pub written: u64,
    /// Of those, messages that cannot matter.
    pub filtered: u64,
    /// Of those, messages for which the ring had no room, and those that the kernel had no memory
    /// to show to the program.
    pub lost: u64,
    /// Of those, messages that could not be read.
    pub unparsed: u64,
    /// Of those written, the ones that were cut short.
    pub truncated: u64,
}

/// The loaded program and its maps.
pub struct Witness {
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, u64>,
    uplinks: HashMap<MapData, u32, u8>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    // Dropped last: with the socket goes the program.
    socket: OwnedFd,
}

// === impl Witness ===

impl Witness {
    /// Loads the program with a ring of so many bytes, a power of two, and attaches it. From then
    /// on every change is recorded.
    pub fn attach(ring_bytes: u32) -> Result<Self, WitnessError> {
        let memory = Memory::unlock();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("RECORDS", ring_bytes)
            .load(PROGRAMS)
            .map_err(|error| refusal(&error, memory))?;
        let logger = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| debug!(%error, "the program's own log is not read"))
            .ok();

        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )
        .map_err(|errno| WitnessError::Socket { what: "route changes", error: errno.into() })?;
        let program: &mut SocketFilter = ebpf
            .program_mut("route")
            .ok_or_else(|| WitnessError::Program("it is not in the object".into()))?
            .try_into()
            .map_err(|error: ProgramError| WitnessError::Program(one_line(&error)))?;
        let program_refusal = |error| refusal(&EbpfError::ProgramError(error), memory);
        program.load().map_err(program_refusal)?;
        program.attach(&socket).map_err(program_refusal)?;

        let ring =
            RingBuf::try_from(take(&mut ebpf, "RECORDS")?).map_err(|error| map_error(&error))?;
        let counts =
            PerCpuArray::try_from(take(&mut ebpf, "COUNTS")?).map_err(|error| map_error(&error))?;
        let uplinks =
            HashMap::try_from(take(&mut ebpf, "UPLINKS")?).map_err(|error| map_error(&error))?;

        // The groups come last: not one message reaches the socket but through the program.
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .map_err(|errno| WitnessError::Socket { what: "route changes", error: errno.into() })?;
        for (what, group) in GROUPS {
            join(&socket, group).map_err(|error| WitnessError::Socket { what, error })?;
        }
        Ok(Self { ring, counts, uplinks, logger, socket })
    }

    /// Reads the next record, if there is one.
    pub fn next<R>(
        &mut self,
        read: impl FnOnce(Result<Record<'_>, RecordError>) -> R,
    ) -> Option<R> {
        self.ring.next().map(|entry| read(Record::parse(&entry)))
    }

    /// Tells the program which interfaces carry the node's own traffic.
    pub fn set_uplinks(&mut self, uplinks: &[IfIndex]) -> io::Result<()> {
        let wanted: Vec<u32> = uplinks.iter().map(|index| index.get()).collect();
        let known: Vec<u32> = self.uplinks.keys().filter_map(Result::ok).collect();
        for gone in known.iter().filter(|index| !wanted.contains(index)) {
            self.uplinks.remove(gone).map_err(io::Error::other)?;
        }
        for new in wanted.iter().filter(|index| !known.contains(index)) {
            self.uplinks.insert(new, 1, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// What the program has counted so far.
    pub fn counts(&self) -> io::Result<Counts> {
        let count = |counter: Counter| -> io::Result<u64> {
            let per_cpu = self.counts.get(&(counter as u32), 0).map_err(io::Error::other)?;
            Ok(per_cpu.iter().sum())
        };
        let unseen = drops(&self.socket)?;
        Ok(Counts {
            seen: count(Counter::Seen)? + unseen,
            written: count(Counter::Written)?,
            filtered: count(Counter::Filtered)?,
            lost: count(Counter::Lost)? + unseen,
            unparsed: count(Counter::Unparsed)?,
            truncated: count(Counter::Truncated)?,
        })
    }

    /// Hands what the program itself has to say to the log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}

impl AsFd for Witness {
    /// The ring's descriptor: readable while there are records.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Witness {
    /// The ring's descriptor: readable while there are records.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
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

/// How many messages the kernel did not show to the socket's filter, for want of memory to copy them
/// (`netlink_overrun` in net/netlink/af_netlink.c). What the filter itself turns away is not among
/// them.
fn drops(socket: &impl AsFd) -> io::Result<u64> {
    // `SK_MEMINFO_VARS` and `SK_MEMINFO_DROPS` of linux/sock_diag.h.
    let mut values = [0u32; 9];
    let drops = 8;
    let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(36);
    // SAFETY: the descriptor is open for the call, and the kernel writes at most `length` bytes to
    // the array that it is given the address of.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(values[drops].into()) } else { Err(io::Error::last_os_error()) }
}

fn take(ebpf: &mut aya::Ebpf, name: &str) -> Result<Map, WitnessError> {
    ebpf.take_map(name)
        .ok_or_else(|| WitnessError::Program(format!("the object has no map {name}")))
}

fn map_error(error: &aya::maps::MapError) -> WitnessError {
    WitnessError::Program(one_line(error))
}

/// How the kernel counts the memory of maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Memory {
    /// To the process's cgroup, or to a limit of locked memory that is none.
    Free,
    /// To a limit of locked memory that could not be raised.
    Limited,
}

impl Memory {
    /// Lifts the limit that maps count against before Linux 5.11.
    fn unlock() -> Self {
        if KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(5, 11, 0)) {
            return Self::Free;
        }
        match setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
            Ok(()) => Self::Free,
            Err(error) => {
                debug!(%error, "the limit of locked memory stays");
                Self::Limited
            }
        }
    }
}

/// Tells "you may not" from "it does not work".
fn refusal(error: &EbpfError, memory: Memory) -> WitnessError {
    // The verifier too says EACCES or EPERM of a program that it does not like, but it says why.
    let by_verifier = matches!(
        error,
        EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. })
            if !verifier_log.to_string().trim().is_empty()
    );
    let causes = std::iter::successors(Some(error as &dyn Error), |&cause| cause.source());
    let code = causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .find_map(io::Error::raw_os_error)
        .filter(|_| !by_verifier);
    let refused = code.map(io::Error::from_raw_os_error);
    match (code, refused) {
        (Some(libc::EPERM), Some(refused)) if memory == Memory::Limited => {
            WitnessError::LockedMemory(refused)
        }
        (Some(libc::EPERM | libc::EACCES | libc::ENOSYS), Some(refused)) => {
            WitnessError::Refused(refused)
        }
        _ => WitnessError::Program(one_line(error)),
    }
}

/// An error with its causes, in one line. Of a long one the beginning and the end are kept: what the
/// verifier says at last is why it says no.
fn one_line(error: &dyn Error) -> String {
    const BEGINNING: usize = 120;
    const END: usize = 480;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: Vec<char> = words.join(" ").chars().collect();
    if line.len() <= BEGINNING + END {
        return line.into_iter().collect();
    }
    let [beginning, end] = [&line[..BEGINNING], &line[line.len() - END..]];
    beginning.iter().chain(&[' ', '…', ' ']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use aya::maps::MapError;
    use aya::sys::SyscallError;

    use super::*;

    fn map_refused(code: i32) -> EbpfError {
        let io_error = io::Error::from_raw_os_error(code);
        MapError::CreateError { name: "RECORDS".into(), io_error }.into()
    }

    fn call_refused(code: i32) -> EbpfError {
        let io_error = io::Error::from_raw_os_error(code);
        ProgramError::from(SyscallError { call: "bpf_prog_load", io_error }).into()
    }

    #[test]
    fn who_may_not_load_programs_is_told_so() {
        for code in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
            for error in [map_refused(code), call_refused(code)] {
                let refused = refusal(&error, Memory::Free);
                assert!(matches!(refused, WitnessError::Refused(_)), "{refused}");
            }
        }
    }

    #[test]
    fn a_limit_of_locked_memory_is_told_apart() {
        let told = |code| refusal(&map_refused(code), Memory::Limited);
        assert!(matches!(told(libc::EPERM), WitnessError::LockedMemory(_)));
        assert!(matches!(told(libc::EACCES), WitnessError::Refused(_)));
        assert!(matches!(told(libc::EINVAL), WitnessError::Program(_)));
    }

    #[test]
    fn what_does_not_work_is_told_in_one_line() {
        let WitnessError::Program(text) = refusal(&map_refused(libc::EINVAL), Memory::Free) else {
            panic!("nobody was refused anything");
        };
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("RECORDS") && text.contains("Invalid argument"), "{text}");
    }

    #[test]
    fn of_a_long_error_the_end_is_kept() {
        let log = format!("refused: {}R1 is no pointer\n", "0: r1 = 0\n".repeat(500));
        let line = one_line(&io::Error::other(log));
        assert!(line.starts_with("refused: 0: r1 = 0 0:"), "{line}");
        assert!(line.ends_with(" R1 is no pointer"), "{line}");
        assert_eq!(line.chars().count(), 603);
    }
}
