//! The task that wrote last on a processor, as it is kept there.
//!
//! Who writes a route mostly writes the next one too, and to read a task anew takes a score of reads of
//! the kernel's memory. So what was read serves the next routes of the same thread for a moment.

#![expect(
    clippy::inline_always,
    reason = "what is called, the verifier of older kernels looks at by other rules"
)]

use crate::writer::Task;

/// What tells a thread from all others that there are in the same moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Thread {
    /// Its number, or the address of its structure.
    pub key: u64,
    /// When it began, where the key is an address: what had it before began at another time. A number is not
    /// given anew within the moment that this serves.
    pub began: u64,
}

/// What was read of a task, and when. The kernel may preempt the program for another task's route, which
/// leaves something of both where this is kept: the sums do not fit then, but by a chance that nobody can
/// bring about, of numbers that nobody chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Latest {
    thread: Thread,
    at: u64,
    task: Task,
    sums: [u64; 2],
}

impl Latest {
    /// Of this thread, read at a time of `CLOCK_BOOTTIME`.
    #[inline(always)]
    pub fn new(thread: Thread, at: u64, task: Task) -> Self {
        let latest = Self { thread, at, task, sums: [0; 2] };
        Self { sums: latest.summed(), ..latest }
    }

    /// What was read, where it is whole, of this thread, and read less than `fresh` nanoseconds before
    /// `now`.
    #[inline(always)]
    pub fn of(&self, thread: Thread, now: u64, fresh: u64) -> Option<Task> {
        let holds = self.thread == thread
            && now.wrapping_sub(self.at) < fresh
            && self.sums == self.summed();
        holds.then_some(self.task)
    }

    /// Two sums, of the words and of the sums so far, so that it counts which word is where. Not zero for
    /// zeros: what a map begins with is nobody.
    #[inline(always)]
    fn summed(&self) -> [u64; 2] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let mut sums = [1u64, 0];
        for word in [
            self.thread.key,
            self.thread.began,
            self.at,
            self.task.started,
            self.task.cgroup,
            pair(self.task.process, self.task.thread),
            pair(self.task.network, self.task.mount),
            self.task.command.0[0],
            self.task.command.0[1],
        ] {
            sums[0] = sums[0].wrapping_add(word);
            sums[1] = sums[1].wrapping_add(sums[0]);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;
    use crate::writer::Command;

    const MINUTE: u64 = 60_000_000_000;

    fn latest(small: u32) -> Latest {
        let n = u64::from(small);
        let task = Task {
            started: 7_000 * n,
            cgroup: 40 + n,
            process: 100 + small,
            thread: 200 + 3 * small,
            network: 4_026_531_840,
            mount: 4_026_531_841 + small,
            command: Command::new(*b"calico-node\0\0\0\0\0"),
        };
        let thread = Thread { key: 0xffff_8881_0000_0000 + 0x2a40 * n, began: 9_001 * n };
        Latest::new(thread, 1_000_000 + 13 * n, task)
    }

    #[test]
    fn it_serves_its_task_until_it_is_too_old() {
        let one = latest(1);
        assert_eq!(one.of(one.thread, one.at, MINUTE), Some(one.task));
        assert!(one.of(one.thread, one.at + MINUTE - 1, MINUTE).is_some());
        assert!(one.of(one.thread, one.at + MINUTE, MINUTE).is_none());
        assert!(one.of(one.thread, one.at - 1, MINUTE).is_none(), "it was read later");
        assert!(one.of(one.thread, one.at, 0).is_none());
        assert!(one.of(latest(2).thread, one.at, MINUTE).is_none());
        let at_its_address = Thread { began: one.thread.began + 1, ..one.thread };
        assert!(one.of(at_its_address, one.at, MINUTE).is_none());
        assert!(Latest::default().of(Thread::default(), 0, MINUTE).is_none(), "nobody");
    }

    /// Both write in any order, each being interrupted by the other at any word.
    #[test]
    fn what_two_have_written_at_once_is_nobodys() {
        let words = |latest: &Latest| {
            let Latest { thread, at, task, sums } = *latest;
            let mut all = Vec::from([thread.key, thread.began, at, task.started, task.cgroup]);
            all.extend([task.process, task.thread, task.network, task.mount].map(u64::from));
            all.extend(sums);
            all
        };
        let small = |word: u64| u32::try_from(word).unwrap();
        let of = |words: &[u64], command| Latest {
            thread: Thread { key: words[0], began: words[1] },
            at: words[2],
            task: Task {
                started: words[3],
                cgroup: words[4],
                process: small(words[5]),
                thread: small(words[6]),
                network: small(words[7]),
                mount: small(words[8]),
                command,
            },
            sums: [words[9], words[10]],
        };
        let pairs = (1..40).flat_map(|one| (1..40).map(move |other| (one, other)));
        for (one, other) in pairs.filter(|(one, other)| one != other) {
            let (one, other) = (latest(one), latest(other));
            let (first, second) = (words(&one), words(&other));
            for from in 0..first.len() {
                for to in from + 1..=first.len() {
                    let mut torn = first.clone();
                    torn[from..to].copy_from_slice(&second[from..to]);
                    if torn == first || torn == second {
                        continue;
                    }
                    let torn = of(&torn, one.task.command);
                    for owner in [one, other] {
                        assert_eq!(torn.of(owner.thread, owner.at, MINUTE), None, "{torn:?}");
                    }
                }
            }
        }
    }
}
