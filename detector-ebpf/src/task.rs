//! The task that runs, read from the kernel's memory.
//!
//! A message to a multicast group is sent within the system call that causes it, so a filter on a
//! socket of that group runs in the task that writes. No tracing is needed to see it, which many
//! hosts refuse; only the right to read the kernel's memory, and to know where what lies.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_task, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use detector_ebpf::latest::{Latest, Thread};
use detector_ebpf::writer::{Command, DEPTH, Layout, NAME, Path, Task};

/// Where what lies. The agent writes it before the programs are loaded.
#[unsafe(no_mangle)]
static LAYOUT: Layout = Layout::UNKNOWN;

/// How long what was read of a task serves its next routes, in nanoseconds. Its control group, its namespaces
/// and its command, which may change, can be as old. The agent may write another time.
#[unsafe(no_mangle)]
static FRESH: u64 = 0;

/// The task that wrote last here.
#[map]
static LATEST: PerCpuArray<Latest> = PerCpuArray::with_max_entries(1, 0);

/// Paths of the control groups that tasks were seen in, by their numbers.
#[map]
static PATHS: LruHashMap<u64, Path> = LruHashMap::with_max_entries(512, 0);

/// A path of nothing, which each begins as.
#[map]
static EMPTY: Array<Path> = Array::with_max_entries(1, 0);

/// The bit that tells numbers of control groups of version 1 from those of version 2: each hierarchy
/// counts for itself.
const OLD: u64 = 1 << 63;

/// What the kernel said when a task entered a function that writes routes, by the task.
#[map]
pub(crate) static WRITING: HashMap<u64, Writing> = HashMap::with_max_entries(4096, 0);

/// A call that goes on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Writing {
    pub(crate) task: Task,
    /// The arguments that say what is written.
    pub(crate) first: u64,
    pub(crate) second: u64,
}

/// A field of the layout, as the agent has written it.
macro_rules! layout {
    ($field:ident) => {
        $crate::task::word(&raw const $crate::task::fields().$field)
    };
}
pub(crate) use layout;

#[inline(always)]
pub(crate) fn fields() -> &'static Layout {
    &LAYOUT
}

/// Reads a number that the compiler must not take to be what it is in the source.
#[inline(always)]
pub(crate) fn word(at: *const u32) -> u32 {
    // SAFETY: the pointer is to a field of `LAYOUT`, which nobody writes once programs are loaded.
    unsafe { at.read_volatile() }
}

/// What lies so many bytes behind an address of the kernel's; zero where there is no such address.
#[inline(always)]
pub(crate) fn at<T: Copy + Default>(base: u64, offset: u32) -> T {
    let mut value = T::default();
    // Where it fails it leaves zeros. To look at its answer would make two ways out of one, each time,
    // and the verifier of older kernels follows them all.
    // SAFETY: the helper reads kernel memory at whatever address it is given, or fails; it writes as
    // many bytes as the value has, all that is read are numbers, and any bytes are some.
    let _ = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            base.wrapping_add(u64::from(offset)) as *const _,
        )
    };
    value
}

/// The number by which a task is known here: the address of its structure.
#[inline(always)]
pub(crate) fn key() -> u64 {
    // SAFETY: the helper takes nothing, and gives an address that is not looked at here.
    unsafe { bpf_get_current_task() }
}

/// The task that runs: read where it is known how, or as it was when it entered the function that
/// writes, where somebody watches that.
#[inline(always)]
pub(crate) fn current(now: u64) -> Task {
    if layout!(tasks) != 0 {
        let thread = thread();
        if let Some(task) = latest(thread, now) {
            return task;
        }
        let (task, has_path) = read(key());
        // Without its path it is read anew, for the sake of that.
        if has_path {
            keep(&Latest::new(thread, now, task));
        }
        return task;
    }
    if layout!(noted) == 0 {
        return Task::default();
    }
    match WRITING.get_ptr(key()) {
        // SAFETY: the map keeps its memory as long as there are programs, and any bytes are a task. Only
        // this task writes its entry, and what interrupts it: a router's announcement, which may then take
        // it away.
        Some(writing) => unsafe { (*writing).task },
        None => Task::default(),
    }
}

/// The task that runs, in a program that traces: where it is not known how tasks are read, as far as
/// the kernel's helpers tell.
#[inline(always)]
pub(crate) fn traced(key: u64) -> Task {
    if layout!(tasks) != 0 {
        return read(key).0;
    }
    let ids = bpf_get_current_pid_tgid();
    Task {
        started: 0,
        // SAFETY: the helper takes nothing and gives a number.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        process: (ids >> 32) as u32,
        thread: ids as u32,
        network: 0,
        mount: 0,
        command: bpf_get_current_comm().map(Command::new).unwrap_or_default(),
    }
}

/// What tells the thread that runs from others.
#[inline(always)]
fn thread() -> Thread {
    if layout!(numbers) != 0 {
        return Thread { key: bpf_get_current_pid_tgid(), began: 0 };
    }
    let key = key();
    Thread { key, began: at(key, layout!(task_started)) }
}

/// What was read of this thread, where it was the last here.
#[inline(always)]
fn latest(thread: Thread, now: u64) -> Option<Task> {
    let latest = LATEST.get_ptr(0)?;
    // SAFETY: the slot is aligned to 8 and there as long as the program is, and any bytes are one. What is
    // read is a copy: nobody changes it after it has been checked.
    let latest = unsafe { latest.read_volatile() };
    // SAFETY: nobody writes it once programs are loaded.
    let fresh = unsafe { (&raw const FRESH).read_volatile() };
    latest.of(thread, now, fresh)
}

/// Keeps what was read.
#[inline(always)]
fn keep(latest: &Latest) {
    let Some(slot) = LATEST.get_ptr_mut(0) else { return };
    // SAFETY: the slot is aligned to 8 and there as long as the program is.
    unsafe { slot.write_volatile(*latest) };
}

/// Reads a task; also gives whether the path of its control group is kept.
#[inline(always)]
fn read(task: u64) -> (Task, bool) {
    let leader: u64 = at(task, layout!(task_leader));
    let namespaces: u64 = at(task, layout!(task_namespaces));
    let network: u64 = at(namespaces, layout!(namespaces_network));
    let mount: u64 = at(namespaces, layout!(namespaces_mount));
    let (node, old) = node_of(task);
    let cgroup = at::<u64>(node, layout!(node_id)) | old;
    let has_path = keep_path(cgroup, node);
    let task = Task {
        started: at(leader, layout!(task_started)),
        cgroup,
        process: at(task, layout!(task_tgid)),
        thread: at(task, layout!(task_pid)),
        network: at(network, layout!(network_number)),
        mount: at(mount, layout!(mount_number)),
        command: at(leader, layout!(task_command)),
    };
    (task, has_path)
}

/// The folder of a task's control group: in the one hierarchy of version 2, or where containers are in
/// one of version 1, in that.
#[inline(always)]
fn node_of(task: u64) -> (u64, u64) {
    let set: u64 = at(task, layout!(task_cgroups));
    let unified: u64 = at(set, layout!(set_default));
    let node: u64 = at(unified, layout!(cgroup_node));
    let controller = layout!(set_controller);
    if controller == 0 {
        return (node, 0);
    }
    let state: u64 = at(set, controller);
    let other: u64 = at(state, layout!(state_cgroup));
    let root: u64 = at(other, layout!(cgroup_root));
    let unified_root: u64 = at(unified, layout!(cgroup_root));
    if root == unified_root {
        return (node, 0);
    }
    let other: u64 = at(other, layout!(cgroup_node));
    let parent: u64 = at(other, layout!(node_parent));
    if parent == 0 { (node, 0) } else { (other, OLD) }
}

/// Keeps the path of a control group, unless it is kept already; gives whether it is. It is written where it is kept, so that
/// several that are at it at once, by whatever is preempted, write the same.
#[inline(always)]
fn keep_path(cgroup: u64, node: u64) -> bool {
    if node == 0 {
        return false;
    }
    let kept = match PATHS.get_ptr_mut(cgroup) {
        // SAFETY: the map keeps its memory as long as there are programs, and any bytes are a path.
        Some(path) if unsafe { (&raw const (*path).whole).read_volatile() } != 0 => return true,
        Some(path) => Some(path),
        None => {
            let Some(empty) = EMPTY.get(0) else { return false };
            let _ = PATHS.insert(cgroup, empty, 0);
            PATHS.get_ptr_mut(cgroup)
        }
    };
    let Some(path) = kept else { return false };
    let mut node = node;
    let mut depth = 0u64;
    for level in 0..DEPTH {
        let parent: u64 = at(node, layout!(node_parent));
        if parent == 0 {
            break;
        }
        let name: u64 = at(node, layout!(node_name));
        // SAFETY: `level` is less than `DEPTH`, so the name is within the path, and the helper writes
        // at most `NAME` bytes to it.
        unsafe {
            let to = (&raw mut (*path).names).cast::<u8>().add(level * NAME);
            // Where it fails it leaves zeros.
            let _ = bpf_probe_read_kernel_str(to.cast(), NAME as u32, name as *const _);
        }
        depth += 1;
        node = parent;
    }
    if depth == DEPTH as u64 {
        let parent: u64 = at(node, layout!(node_parent));
        depth += u64::from(parent != 0);
    }
    // SAFETY: as above.
    unsafe {
        (*path).depth = depth;
        (&raw mut (*path).whole).write_volatile(1);
    }
    true
}
