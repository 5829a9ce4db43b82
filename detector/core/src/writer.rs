//! Who writes routes: processes, and the containers that they run in.

use std::fmt;
use std::sync::Arc;

use crate::route::{IfIndex, Prefix, Protocol, Table};
use crate::time::BootTime;
use crate::workload::{PodKey, Uid};

/// Who wrote a route, as the kernel's message and its record name them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(from = "Told", into = "Told")
)]
pub struct Writer {
    /// The netlink port; 0 is the kernel itself, or a process that asked in another way.
    pub port: u32,
    /// The process, where it is known. It is shared by all that it wrote.
    pub process: Option<Arc<Process>>,
}

/// A writer in a recording: those without a process are a number, as they were before there were any.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Told {
    Port(u32),
    Process { port: u32, process: Process },
}

/// A process that wrote a route.
///
/// It is evidence, and never a right: Felix can be made to write a wrong route, and whoever runs a
/// process chooses the name of its command.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Process {
    /// Its number, as the first PID namespace counts.
    pub pid: u32,
    /// The thread that wrote; its number is that of the process where it is the first.
    pub thread: u32,
    /// When it began, where that is known: with the number it names one process for ever.
    pub started: Option<BootTime>,
    /// The name of its command, printable, at most 15 bytes of it.
    pub command: Box<str>,
    /// Its network namespace, by the number that `/proc/PID/ns/net` shows.
    pub network: Option<u32>,
    /// Its mount namespace, likewise.
    pub mount: Option<u32>,
    /// The path of its control group; with `…` before it where it was too deep to be kept whole.
    pub cgroup: Option<Box<str>>,
    /// The containers that it runs in by that path: those of pods first, of these the outermost. Whoever
    /// is in one can make control groups of any name within its own.
    pub containers: Box<[Container]>,
    /// How it is known.
    pub known: Known,
}

/// A write of a route that the kernel refused; nobody is notified of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Refusal {
    /// The destination.
    pub prefix: Prefix,
    /// The table.
    pub table: Table,
    /// The interface that it was to lead to, where one was named.
    pub interface: Option<IfIndex>,
    /// What it says of who made it.
    pub protocol: Protocol,
    /// The kernel's answer, such as 17 (`EEXIST`: there is such a route already).
    pub error: u32,
    /// Who tried.
    pub writer: Writer,
}

/// A process that is none of Calico's and wrote a pod's own route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stranger {
    /// The route's destination.
    pub prefix: Prefix,
    /// Whose it is.
    pub pod: PodKey,
    /// Who wrote it.
    pub process: Process,
}

/// A container, as the path of a control group names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Container {
    /// The runtime's name for it, 64 hexadecimal digits.
    pub id: Box<str>,
    /// The uid of the pod that it is of.
    pub pod: Option<Uid>,
}

/// How a writer is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Known {
    /// The kernel showed it while it wrote.
    Record,
    /// By who had the socket of the netlink port that the kernel's message names: weaker, for it is read
    /// later, when another may have the port.
    Port,
}

impl From<u32> for Writer {
    /// A writer of whom only the port is known.
    fn from(port: u32) -> Self {
        Self { port, process: None }
    }
}

#[cfg(feature = "serde")]
impl From<Told> for Writer {
    fn from(told: Told) -> Self {
        match told {
            Told::Port(port) => port.into(),
            Told::Process { port, process } => Self { port, process: Some(Arc::new(process)) },
        }
    }
}

#[cfg(feature = "serde")]
impl From<Writer> for Told {
    fn from(writer: Writer) -> Self {
        let Writer { port, process } = writer;
        match process {
            None => Self::Port(port),
            Some(process) => Self::Process { port, process: (*process).clone() },
        }
    }
}

impl Known {
    /// The word for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Port => "port",
        }
    }
}

/// The process and where it runs, in a few words.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)?;
        match self.containers.first() {
            Some(container) => {
                // As many digits as runtimes show.
                let id = container.id.get(..12).unwrap_or(&container.id);
                write!(f, " in container {id}")?;
                if let Some(pod) = &container.pod {
                    write!(f, " of pod uid {pod}")?;
                }
            }
            None if self.cgroup.is_some() => f.write_str(" in no container")?,
            None => {}
        }
        if self.known == Known::Port {
            f.write_str(", by its netlink port only")?;
        }
        Ok(())
    }
}
