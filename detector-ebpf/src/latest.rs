//! The task that wrote last on this processor.
//!
//! Who writes a route mostly writes the next one too, and to read a task anew takes a score of reads of
//! the kernel's memory, each some twenty nanoseconds. So what was read is kept for a while, and two reads
//! tell whether it is still the same thread, in the same control group: what the container of a writer is
//! concluded from is never old.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use detector_ebpf::writer::Task;

use crate::task::{at, layout};

/// How long what was read is taken to hold, in nanoseconds: its command and its namespaces, which it may
/// change. The path of its control group is looked up as often, so that it stays where paths are kept. And
/// an address that is the same is the same thing's only as long as the kernel gives it to nothing else.
const FRESH: u64 = 10_000_000;

/// What was read last.
#[map]
static LATEST: PerCpuArray<Latest> = PerCpuArray::with_max_entries(1, 0);

/// A task, what it is known by, and when it was read.
#[repr(C)]
#[derive(Clone, Copy)]
struct Kept {
    /// The address of its structure.
    key: u64,
    at: u64,
    mark: Mark,
    task: Task,
}

/// What a task has as long as it is the same, in the same control groups.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// When this thread began: another one at the same address began at another time.
    started: u64,
    /// The address of the structure of its control groups; that is never changed, only replaced.
    groups: u64,
}

/// Words of what is kept.
const WORDS: usize = size_of::<Kept>() / size_of::<u64>();

/// What is kept, with its sums. The kernel may preempt the program for another task's route, which leaves
/// something of both here: the sums do not fit then.
#[repr(C)]
#[derive(Clone, Copy)]
struct Latest {
    kept: [u64; WORDS],
    sums: [u64; 2],
}

/// The task with this address, where it was the last one here and is still the same.
#[inline(always)]
pub(crate) fn same(key: u64, now: u64) -> Option<Task> {
    let latest = LATEST.get_ptr(0)?;
    // SAFETY: the slot is aligned to 8 and there as long as the program is, and any words are some. What
    // is read is a copy: nobody changes it after it has been checked.
    let Latest { kept: words, sums } = unsafe { read_volatile(latest) };
    if sums != sums_of(&words) {
        return None;
    }
    // SAFETY: both are as many bytes, of numbers only.
    let kept = unsafe { core::mem::transmute::<[u64; WORDS], Kept>(words) };
    let holds = kept.key == key && now.wrapping_sub(kept.at) <= FRESH && mark(key) == kept.mark;
    holds.then_some(kept.task)
}

/// What the task with this address has now.
#[inline(always)]
pub(crate) fn mark(key: u64) -> Mark {
    Mark { started: at(key, layout!(task_started)), groups: at(key, layout!(task_cgroups)) }
}

/// Keeps what has been read of the task with this address, after its mark.
#[inline(always)]
pub(crate) fn keep(key: u64, mark: Mark, task: Task, now: u64) {
    let Some(latest) = LATEST.get_ptr_mut(0) else { return };
    let kept = Kept { key, at: now, mark, task };
    // SAFETY: both are as many bytes, without padding.
    let words = unsafe { core::mem::transmute::<Kept, [u64; WORDS]>(kept) };
    // SAFETY: the slot is aligned to 8 and there as long as the program is.
    unsafe { write_volatile(latest, Latest { kept: words, sums: sums_of(&words) }) };
}

/// Two sums, of the words and of the sums so far, so that it counts which word is where. Not zero for
/// zeros: what the map begins with is nobody.
#[inline(always)]
fn sums_of(words: &[u64; WORDS]) -> [u64; 2] {
    let mut sums = [1u64, 0];
    for word in words {
        sums[0] = sums[0].wrapping_add(*word);
        sums[1] = sums[1].wrapping_add(sums[0]);
    }
    sums
}
