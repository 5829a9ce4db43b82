//! The functions that write routes, traced: so that writes which the kernel refuses are seen, and who
//! writes where the filter on the netlink socket cannot read it.

use aya::programs::fentry::FEntryLink;
use aya::programs::fexit::FExitLink;
use aya::programs::kprobe::KProbeLink;
use aya::programs::{FEntry, FExit, KProbe, ProgramError};
use aya::{Btf as Types, Ebpf, Endianness};
use thiserror::Error;

use super::btf::Btf;
use crate::config::{Hook, Refused, WriterSource};
use crate::source::witness::one_line;

/// A function that writes routes, and the programs for it.
struct Function {
    name: &'static str,
    /// What its parameters point to. With others the programs would read something else.
    parameters: [&'static str; 4],
    enter: &'static str,
    leave: &'static str,
    probe: &'static str,
    probe_end: &'static str,
    by_trampoline: Hook,
    by_probe: Hook,
}

const FUNCTIONS: [Function; 2] = [
    Function {
        name: "fib_table_insert",
        parameters: ["net", "fib_table", "fib_config", "netlink_ext_ack"],
        enter: "enter_ipv4",
        leave: "leave_ipv4",
        probe: "probe_ipv4",
        probe_end: "probe_end_ipv4",
        by_trampoline: Hook::FexitIpv4,
        by_probe: Hook::KprobeIpv4,
    },
    Function {
        name: "fib6_add",
        parameters: ["fib6_node", "fib6_info", "nl_info", "netlink_ext_ack"],
        enter: "enter_ipv6",
        leave: "leave_ipv6",
        probe: "probe_ipv6",
        probe_end: "probe_end_ipv6",
        by_trampoline: Hook::FexitIpv6,
        by_probe: Hook::KprobeIpv6,
    },
];

/// Why a function is not traced.
#[derive(Error, Debug)]
enum TraceError {
    #[error("it is to be refused (--refuse)")]
    Drill,
    #[error("this kernel does not say what it takes")]
    Unknown,
    #[error("on this kernel it takes {0}")]
    Parameters(String),
    #[error("its number cannot be handed over ({0})")]
    Types(String),
    #[error("{}", one_line(.0))]
    Program(#[from] ProgramError),
}

/// How a function is traced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Means {
    /// By trampolines.
    Fexit,
    /// By probes.
    Kprobe,
}

impl Means {
    /// The word for it in logs and in `detector probe`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
        }
    }
}

/// What holds a program at its place; dropping it takes the program away.
enum Link {
    Fentry { _link: FEntryLink },
    Fexit { _link: FExitLink },
    Kprobe { _link: KProbeLink },
}

/// The functions that are traced, and for the others why not.
pub(in crate::source) struct Tracing {
    _links: Vec<Link>,
    /// For IPv4 and for IPv6.
    pub(in crate::source) families: [Result<Means, String>; 2],
}

/// What aya looks up numbers of functions in, and nothing else: in place of all the kernel's types, which are
/// some 30 MiB to it, it gets the functions where they belong. `None` where the kernel names none of them.
fn types(btf: &Btf) -> Option<Result<Types, String>> {
    let only = btf.only(&FUNCTIONS.each_ref().map(|function| function.name))?;
    Some(Types::parse(&only, Endianness::default()).map_err(|error| one_line(&error)))
}

/// What has been tried so far.
struct Tracer<'a> {
    ebpf: &'a mut Ebpf,
    btf: Option<&'a Btf>,
    /// What aya is to know of it.
    types: Option<Result<&'a Types, &'a String>>,
    /// Whether the programs read the task themselves, so that nobody has to note who enters.
    reads_tasks: bool,
    refused: &'a Refused,
    links: Vec<Link>,
}

// === impl Tracing ===

impl Tracing {
    /// Traces both functions as the choice says, each by itself.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        btf: Option<&Btf>,
        reads_tasks: bool,
        choice: WriterSource,
        refused: &Refused,
    ) -> Self {
        if !choice.traces() {
            let why = || Err(format!("not wanted (--writers {})", choice.as_str()));
            return Self { _links: Vec::new(), families: [why(), why()] };
        }
        let types = if choice == WriterSource::Kprobe { None } else { btf.and_then(types) };
        let types = types.as_ref().map(Result::as_ref);
        let mut tracer = Tracer { ebpf, btf, types, reads_tasks, refused, links: Vec::new() };
        let families = FUNCTIONS.each_ref().map(|function| tracer.trace(function, choice));
        Self { _links: tracer.links, families }
    }
}

// === impl Tracer ===

impl Tracer<'_> {
    fn trace(&mut self, function: &Function, choice: WriterSource) -> Result<Means, String> {
        let mut why = Vec::new();
        if choice != WriterSource::Kprobe {
            match self.by_trampoline(function) {
                Ok(()) => return Ok(Means::Fexit),
                Err(error) => why.push(format!("fexit: {error}")),
            }
        }
        if choice != WriterSource::Fexit {
            match self.by_probe(function) {
                Ok(()) => return Ok(Means::Kprobe),
                Err(error) => why.push(format!("kprobe: {error}")),
            }
        }
        Err(format!("{} cannot be traced: {}", function.name, why.join("; ")))
    }

    fn by_trampoline(&mut self, function: &Function) -> Result<(), TraceError> {
        self.check(function, function.by_trampoline)?;
        let types = match self.types {
            Some(Ok(types)) => types,
            Some(Err(why)) => return Err(TraceError::Types(why.clone())),
            None => return Err(TraceError::Unknown),
        };
        let leave: &mut FExit = program(self.ebpf, function.leave)?.try_into()?;
        leave.load(function.name, types)?;
        let left = leave.attach()?;
        let left = leave.take_link(left)?;
        if !self.reads_tasks {
            let enter: &mut FEntry = program(self.ebpf, function.enter)?.try_into()?;
            enter.load(function.name, types)?;
            let entered = enter.attach()?;
            self.links.push(Link::Fentry { _link: enter.take_link(entered)? });
        }
        self.links.push(Link::Fexit { _link: left });
        Ok(())
    }

    fn by_probe(&mut self, function: &Function) -> Result<(), TraceError> {
        self.check(function, function.by_probe)?;
        // The end first: a call that is noted and never forgotten would be found by the wrong message.
        let mut links = Vec::new();
        for name in [function.probe_end, function.probe] {
            let probe: &mut KProbe = program(self.ebpf, name)?.try_into()?;
            probe.load()?;
            let link = probe.attach(function.name, 0)?;
            links.push(Link::Kprobe { _link: probe.take_link(link)? });
        }
        self.links.append(&mut links);
        Ok(())
    }

    fn check(&self, function: &Function, hook: Hook) -> Result<(), TraceError> {
        if self.refused.has(hook) {
            return Err(TraceError::Drill);
        }
        // Where the kernel says nothing of its functions, nothing is read by their arguments either.
        let Some(btf) = self.btf else { return Ok(()) };
        let takes = btf.parameters(function.name).ok_or(TraceError::Unknown)?;
        if takes == function.parameters {
            Ok(())
        } else {
            Err(TraceError::Parameters(takes.join(", ")))
        }
    }
}

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut aya::programs::Program, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)
}
