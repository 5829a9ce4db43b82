//! Why there is no witness, in words that say what to do.

use std::error::Error;
use std::io;

use aya::EbpfError;
use aya::programs::ProgramError;
use aya::util::KernelVersion;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use tracing::debug;

/// Why there is no witness.
#[derive(thiserror::Error, Debug)]
pub enum WitnessError {
    /// It is to be taken for refused.
    #[error("the filter of route changes is to be refused (--refuse route)")]
    Drill,
    /// There is no thread for what may take long.
    #[error("no thread for tracing ({0}): raise the limit of processes")]
    Thread(#[source] io::Error),
    /// The kernel does not let this process load programs.
    #[error(
        "the kernel refuses eBPF to this process ({0}): run as root or with the capabilities BPF, \
         PERFMON and NET_ADMIN, or use --route-source netlink"
    )]
    Refused(io::Error),
    /// The kernel lets this process load programs, but not with loops.
    #[error(
        "the kernel does not take the eBPF program from a process without the capability PERFMON \
         ({0}): grant it, or use --route-source netlink"
    )]
    Perfmon(io::Error),
    /// The kernel has no memory to lend for maps.
    #[error(
        "the kernel refuses eBPF maps to this process ({0}), and before Linux 5.11 they count \
         against a limit of locked memory that could not be raised: set the limit (ulimit -l, \
         LimitMEMLOCK=) to 16 MiB more than the ring has, or grant the capabilities BPF, PERFMON, \
         NET_ADMIN and SYS_RESOURCE, or use --route-source netlink"
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

/// How the kernel counts the memory of maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::source) enum Memory {
    /// To the process's cgroup, or to a limit of locked memory that is none.
    Free,
    /// To a limit of locked memory that could not be raised.
    Limited,
}

impl Memory {
    /// Lifts the limit that maps count against before Linux 5.11.
    pub(in crate::source) fn unlock() -> Self {
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
pub(in crate::source) fn refusal(error: &EbpfError, memory: Memory) -> WitnessError {
    // The verifier too says EACCES or EPERM of a program that it does not like, but it says why.
    let by_verifier = matches!(
        error,
        EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. })
            if !verifier_log.to_string().trim().is_empty()
    );
    let causes = std::iter::successors(Some(error as &dyn Error), |&cause| cause.source());
    let code = causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .find_map(io::Error::raw_os_error);
    let Some(code) = code else { return WitnessError::Program(one_line(error)) };
    let refused = io::Error::from_raw_os_error(code);
    match code {
        // Before it put barriers into programs (Linux 6.16), the verifier followed each loop of such
        // a process as a processor might that guesses wrong: without end.
        _ if by_verifier && !may_guess() => WitnessError::Perfmon(refused),
        _ if by_verifier => WitnessError::Program(one_line(error)),
        libc::EPERM if memory == Memory::Limited => WitnessError::LockedMemory(refused),
        libc::EPERM | libc::EACCES | libc::ENOSYS => WitnessError::Refused(refused),
        _ => WitnessError::Program(one_line(error)),
    }
}

/// Whether this thread has a capability that spares its programs the verifier's fear of processors
/// that guess (`perfmon_capable` in the kernel's include/linux/capability.h). When in doubt it has.
fn may_guess() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    let effective = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    effective().is_none_or(|effective| effective & (SYS_ADMIN | PERFMON) != 0)
}

/// An error with its causes, in one line. Of a long one the beginning and the end are kept: what the
/// verifier says at last is why it says no.
pub(in crate::source) fn one_line(error: &dyn Error) -> String {
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
