//! Why packets are not watched, in words that say what to do.

use std::error::Error;
use std::io;

use aya::EbpfError;
use aya::programs::ProgramError;

use crate::source::witness::{Memory, WitnessError, one_line, refusal};

/// Why packets are not watched.
#[derive(thiserror::Error, Debug)]
pub enum PacketsError {
    /// The kernel does not take the programs.
    #[error("{0}")]
    Load(WitnessError),
    /// A map is not what it should be.
    #[error("a map of the packet programs cannot be used ({0}); Linux 5.10 or later is needed")]
    Map(String),
    /// The object is not complete: it was built by something else than this package's build.
    #[error("the object of the packet programs has no {0}: build the agent anew")]
    NoMap(&'static str),
    /// The kernel cannot be asked what hangs on interfaces.
    #[error("the kernel cannot be asked by netlink ({0}); raise the limit of open files")]
    Questions(#[source] io::Error),
    /// The thread that hangs them on interfaces cannot be made.
    #[error("no thread for the packet programs: {0}; raise the limit of processes")]
    Thread(#[source] io::Error),
    /// Their ring cannot be waited for.
    #[error(
        "the ring of the packet programs cannot be waited for ({0}); raise the limit of open files"
    )]
    Bell(#[source] io::Error),
}

impl PacketsError {
    pub(super) fn load(error: &EbpfError, memory: Memory) -> Self {
        Self::Load(refusal(error, memory))
    }

    pub(super) fn map(error: &dyn Error) -> Self {
        Self::Map(one_line(error))
    }
}

/// Why the programs do not hang on an interface.
#[derive(thiserror::Error, Debug)]
#[error("{why}")]
pub(super) struct HookError {
    why: String,
    code: Option<i32>,
}

impl HookError {
    /// Whether there is no such interface.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.code, Some(libc::ENODEV | libc::ENXIO))
    }
}

impl From<ProgramError> for HookError {
    fn from(error: ProgramError) -> Self {
        let causes = std::iter::successors(Some(&error as &dyn Error), |&cause| cause.source());
        let code = causes
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .find_map(io::Error::raw_os_error);
        Self { why: one_line(&error), code }
    }
}

impl From<io::Error> for HookError {
    fn from(error: io::Error) -> Self {
        Self { why: error.to_string(), code: error.raw_os_error() }
    }
}
