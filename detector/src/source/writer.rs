//! Who writes routes: a process, the container that it runs in, and the pod that this is of.
//!
//! The kernel tells of a change within the system call that makes it, so the filter on the netlink
//! socket runs in the task that writes, and can read who that is: exactly, in the record itself,
//! however soon the process ends. That takes the capability PERFMON and a kernel that describes its
//! structures. Where the kernel lets functions be traced, refused writes are seen as well, and who
//! writes is known even without that description. Where it allows neither, the port that netlink
//! names is looked up among the processes, which is weaker, and said to be.
//!
//! No `hostPID` is needed but for the last of these, and no file of the node's: the path of a control
//! group is read from the kernel too.

mod btf;
mod container;
mod layout;
mod proc;
mod tracing;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{HashMap as EbpfMap, Map, MapData};
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader, Pod};
use detector_core::time::BootTime;
use detector_core::writer::{Container, Known, Process};
use detector_ebpf::writer::{DEPTH, Layout, Path, Task};

use self::btf::Btf;
pub use self::tracing::Means;
pub(in crate::source) use self::tracing::Tracing;
use crate::config::{Hook, Refused, WriterSource};
use crate::text::printable;

/// Whether the numbers of processes that the kernel speaks of are those of /proc here.
pub fn counts_like_the_kernel() -> bool {
    proc::counts_like_the_kernel()
}

/// Whether the kernel describes its structures.
pub fn describes_itself() -> bool {
    std::path::Path::new(btf::FILE).exists()
}

/// Whether the kernel tells filters the numbers of the thread that runs, which takes less than to read
/// anything of it.
fn tells_numbers() -> bool {
    let helper = BpfHelper::BPF_FUNC_get_current_pid_tgid;
    is_helper_supported(ProgramType::SocketFilter, helper).unwrap_or(false)
}

/// Processes that are remembered before all are forgotten; each is a few hundred bytes.
const REMEMBERED: usize = 1_024;

/// How long what /proc said of a port is taken to be so.
const FRESH: Duration = Duration::from_millis(100);

/// How far apart /proc and the kernel may tell when a process began: /proc counts in ticks.
const TICK: Duration = Duration::from_millis(20);

/// The longest name of a command that is shown.
const LONGEST: usize = 64;

/// How writers are to be known.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// By what.
    pub source: WriterSource,
    /// What is to be taken for refused by the kernel.
    pub refused: Refused,
    /// How long what was read of a task serves its next routes, as long as it is the same thread; with
    /// zero each is read for itself.
    pub fresh: Duration,
}

impl Default for WriterOptions {
    /// The best way that there is. To read anew every millisecond costs a thousandth of it, and a control
    /// group, a namespace or a command that is so much too old misleads nobody.
    fn default() -> Self {
        let (source, refused) = Default::default();
        Self { source, refused, fresh: Duration::from_millis(1) }
    }
}

/// What the kernel says of itself, and so where the programs read.
pub(in crate::source) struct Ground {
    btf: Option<Btf>,
    told: Told,
    /// Why tasks are not read.
    tasks: Result<(), String>,
    /// Why routes are not read.
    routes: Result<(), String>,
}

/// What programs are told before they are loaded.
#[derive(Clone, Copy, PartialEq)]
struct Told {
    layout: Global,
    /// How long what was read of a task serves its next routes, in nanoseconds.
    fresh: u64,
}

/// All that programs were told so far: the loader keeps what it hands over, for as long as there is a
/// process. There is one for each way in which the kernel was surveyed, and so mostly one.
static TOLD: Mutex<Vec<&'static Told>> = Mutex::new(Vec::new());

/// The layout, in the words of a program's global variable.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq)]
struct Global(Layout);

// SAFETY: a layout is words, one behind the other, without padding.
unsafe impl Pod for Global {}

/// A path, as the map has it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Kept(Path);

// SAFETY: any bytes are a path: two numbers, and names that are bytes.
unsafe impl Pod for Kept {}

/// Whom a writer is known by.
pub struct Writers {
    paths: Option<EbpfMap<MapData, u64, Kept>>,
    known: HashMap<Task, Arc<Process>>,
    by_port: HashMap<u32, (BootTime, Option<Arc<Process>>)>,
    ports: proc::Ports,
    /// Whether ports can be looked up.
    has_numbers: bool,
}

/// What is known of writers on this node, and why not more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriterSight {
    /// How writers are known; where it is not the best way, why not.
    pub writers: Result<(), String>,
    /// How refused writes of IPv4 and of IPv6 are seen, or why they are not.
    pub refusals: [Result<Means, String>; 2],
}

// === impl Ground ===

impl Ground {
    /// What there is of this kernel. It takes the time of reading a file of some MiB.
    pub(in crate::source) fn survey(options: &WriterOptions) -> Self {
        let fresh = u64::try_from(options.fresh.as_nanos()).unwrap_or(u64::MAX);
        let told = |layout| {
            let Layout { tasks, .. } = layout;
            let noted = options.source.traces().into();
            let numbers = (tasks != 0 && tells_numbers()).into();
            Told { layout: Global(Layout { noted, numbers, ..layout }), fresh }
        };
        let unknown = |why: String| Self {
            btf: None,
            told: told(Layout::UNKNOWN),
            tasks: Err(why.clone()),
            routes: Err(why),
        };
        if options.source == WriterSource::Port {
            return unknown("not wanted (--writers port)".to_owned());
        }
        let btf = match Btf::of_kernel(&layout::NAMES) {
            Ok(btf) => btf,
            Err(error) => return unknown(error.to_string()),
        };
        let layout::Found { mut layout, mut tasks, routes } = layout::find(&btf);
        if options.refused.has(Hook::Tasks) {
            layout.tasks = 0;
            tasks = Err("it is to be refused (--refuse)".to_owned());
        }
        Self { btf: Some(btf), told: told(layout), tasks, routes }
    }

    /// Hands the layout to the programs that are to be loaded, which must have a place for it or need not.
    pub(in crate::source) fn tell(&self, loader: &mut EbpfLoader<'static>, must_exist: bool) {
        let mut all = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|told| ***told == self.told).copied();
        let told = known.unwrap_or_else(|| {
            let told: &'static Told = Box::leak(Box::new(self.told));
            all.push(told);
            told
        });
        loader.override_global("LAYOUT", &told.layout, must_exist);
        loader.override_global("FRESH", &told.fresh, must_exist);
    }

    /// Traces the functions that write. `blind` is why the filter does not read the kernel's memory.
    pub(in crate::source) fn trace(
        &self,
        ebpf: &mut Ebpf,
        options: &WriterOptions,
        blind: Option<&String>,
    ) -> (Tracing, WriterSight) {
        let reads_tasks = blind.is_none() && self.tasks.is_ok();
        let tracing =
            Tracing::attach(ebpf, self.btf.as_ref(), reads_tasks, options.source, &options.refused);
        let all_traced = tracing.families.iter().all(Result::is_ok);
        let writers = match (&self.tasks, blind) {
            (_, Some(why)) => Err(format!(
                "the program may not read the kernel's memory: it takes the capability PERFMON, and a \
                 kernel that is not locked down ({why})"
            )),
            (Err(_), None) if all_traced => Ok(()),
            (tasks, None) => tasks.clone(),
        };
        let refusals = tracing
            .families
            .clone()
            .map(|family| family.and_then(|means| self.routes.clone().map(|()| means)));
        (tracing, WriterSight { writers, refusals })
    }
}

// === impl WriterSight ===

impl WriterSight {
    /// Nothing is known but ports.
    pub(in crate::source) fn ports_only(why: &str) -> Self {
        let why = || why.to_owned();
        Self { writers: Err(why()), refusals: [Err(why()), Err(why())] }
    }
}

// === impl Writers ===

impl Writers {
    /// Those that are known by their ports only.
    pub(in crate::source) fn by_port() -> Self {
        Self {
            paths: None,
            known: HashMap::new(),
            by_port: HashMap::new(),
            ports: proc::Ports::default(),
            has_numbers: proc::counts_like_the_kernel(),
        }
    }

    /// Those that programs read, with the map that has their paths.
    pub(in crate::source) fn by_record(paths: Map) -> Result<Self, aya::maps::MapError> {
        let paths = Some(EbpfMap::try_from(paths)?);
        Ok(Self { paths, ..Self::by_port() })
    }

    /// Who wrote: the task that ran, where it could be read, else whoever has the port.
    pub(in crate::source) fn writer(
        &mut self,
        now: BootTime,
        task: &Task,
        port: u32,
    ) -> Option<Arc<Process>> {
        if task.process == 0 {
            return self.of_port(now, port);
        }
        if let Some(process) = self.known.get(task) {
            return Some(Arc::clone(process));
        }
        let process = Arc::new(self.of_task(task));
        // What its path was may be there the next time.
        if process.cgroup.is_some() || task.cgroup == 0 {
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            self.known.insert(*task, Arc::clone(&process));
        }
        Some(process)
    }

    fn of_task(&self, task: &Task) -> Process {
        let known = |number: u32| (number != 0).then_some(number);
        let (cgroup, containers) = self.path(task);
        Process {
            pid: task.process,
            thread: task.thread,
            started: (task.started != 0).then(|| BootTime::from_nanos(task.started)),
            command: command_of(task),
            network: known(task.network),
            mount: known(task.mount),
            cgroup,
            containers,
            known: Known::Record,
        }
    }

    /// The path of a task's control group, and the containers that it names.
    fn path(&self, task: &Task) -> (Option<Box<str>>, Box<[Container]>) {
        let kept = self.paths.as_ref().and_then(|paths| paths.get(&task.cgroup, 0).ok());
        if let Some(Kept(path)) = kept.filter(|Kept(path)| path.whole != 0) {
            let depth = usize::try_from(path.depth).unwrap_or(DEPTH);
            let names: Vec<String> = path.names.iter().take(depth).map(|name| text(name)).collect();
            let folders: Vec<&str> = names.iter().map(String::as_str).collect();
            let whole = depth <= DEPTH;
            // Whoever may make control groups can make them deep, and hide the container further out.
            let containers = if whole { containers_of(&folders) } else { Box::default() };
            return (Some(path_of(&folders, whole)), containers);
        }
        // Without a description of its structures the kernel gave a number only; the process may still be
        // there to be asked.
        let alive = self.has_numbers.then(|| proc::process(task.process)).flatten();
        let same = |process: &Process| {
            let apart = process.started.map(|then| {
                let now = BootTime::from_nanos(task.started);
                now.since(then).max(then.since(now))
            });
            process.command == command_of(task) && (task.started == 0 || apart <= Some(TICK))
        };
        alive.filter(same).map(|process| (process.cgroup, process.containers)).unwrap_or_default()
    }

    fn of_port(&mut self, now: BootTime, port: u32) -> Option<Arc<Process>> {
        // 0 is the kernel itself.
        if port == 0 || !self.has_numbers {
            return None;
        }
        if let Some((asked, process)) = self.by_port.get(&port)
            && now.since(*asked) < FRESH
        {
            return process.clone();
        }
        let process = self.ports.process(port).map(Arc::new);
        if self.by_port.len() >= REMEMBERED {
            self.by_port.clear();
        }
        self.by_port.insert(port, (now, process.clone()));
        process
    }
}

/// The name of a task's command, fit to be shown.
fn command_of(task: &Task) -> Box<str> {
    shown(&text(&task.command.bytes()))
}

/// A name that ends with a zero.
fn text(bytes: &[u8]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// Text that a stranger chose, fit to be shown.
fn shown(text: &str) -> Box<str> {
    printable(text, LONGEST).into()
}

/// A path of folders that come from the innermost outwards.
fn path_of(folders: &[&str], whole: bool) -> Box<str> {
    let mut path = String::from(if whole { "" } else { "…" });
    for folder in folders.iter().rev() {
        path.push('/');
        path.push_str(&printable(folder, 2 * LONGEST));
    }
    if path.is_empty() {
        path.push('/');
    }
    path.into()
}

fn containers_of(folders: &[&str]) -> Box<[Container]> {
    container::containers(folders.iter().copied()).into()
}

#[cfg(test)]
mod tests {
    use detector_ebpf::writer::Command;

    use super::*;

    #[test]
    fn a_path_reads_from_the_root() {
        assert_eq!(&*path_of(&["b", "a"], true), "/a/b");
        assert_eq!(&*path_of(&["b", "a"], false), "…/a/b");
        assert_eq!(&*path_of(&[], true), "/");
        assert_eq!(&*path_of(&["x\ny"], true), "/x\\ny");
    }

    #[test]
    fn the_kernel_has_no_port_that_is_looked_up() {
        let mut writers = Writers::by_port();
        let now = crate::clock::now();
        assert!(writers.writer(now, &Task::default(), 0).is_none());
    }

    #[test]
    fn what_a_task_lacks_is_unknown_and_not_zero() {
        let mut writers = Writers::by_port();
        let mut command = [0; 16];
        command[..4].copy_from_slice(b"a\x1bb\n");
        let task =
            Task { process: 1 << 30, thread: 7, command: Command::new(command), ..Task::default() };
        let process = writers.writer(crate::clock::now(), &task, 0).unwrap();
        assert_eq!((process.started, process.network, process.mount), (None, None, None));
        assert_eq!(&*process.command, "a\\u{1b}b\\n");
        assert_eq!(process.known, Known::Record);
        // The same again is the same.
        assert!(Arc::ptr_eq(&process, &writers.writer(crate::clock::now(), &task, 5).unwrap()));
    }
}
