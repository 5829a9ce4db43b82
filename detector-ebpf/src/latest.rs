//! The task that wrote last on a processor, as it is kept there.
//!
//! Who writes a route mostly writes the next one too, and to read a task anew takes a score of reads of
//! the kernel's memory. So what was read serves the next routes for a while, as long as two reads say
//! that it is still the same thread in the same control group.

#![expect(
    clippy::inline_always,
    reason = "what is called, the verifier of older kernels looks at by other rules"
)]

use crate::writer::Task;

/// What a task has as long as it is the same, in the same control group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Mark {
    /// When this thread began: another one at the same address began at another time.
    pub started: u64,
    /// The address of the structure of its control groups; that is never changed, only replaced.
    pub groups: u64,
}

/// What was read of a task, and when. The kernel may preempt the program for another task's route, which
/// leaves something of both where this is kept: the sums do not fit then, but by a chance that nobody can
/// bring about, of numbers that nobody chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Latest {
    key: u64,
    at: u64,
    mark: Mark,
    task: Task,
    sums: [u64; 2],
}

impl Latest {
    /// Of the task whose structure has the address `key`, read at a time of `CLOCK_BOOTTIME`.
    #[inline(always)]
    pub fn new(key: u64, at: u64, mark: Mark, task: Task) -> Self {
        let latest = Self { key, at, mark, task, sums: [0; 2] };
        Self { sums: latest.summed(), ..latest }
    }

    /// What was read, and of what mark, where it is whole, of this task, and read less than `fresh`
    /// nanoseconds before `now`.
    #[inline(always)]
    pub fn of(&self, key: u64, now: u64, fresh: u64) -> Option<(Mark, Task)> {
        let holds =
            self.key == key && now.wrapping_sub(self.at) < fresh && self.sums == self.summed();
        holds.then_some((self.mark, self.task))
    }

    /// Two sums, of the words and of the sums so far, so that it counts which word is where. Not zero for
    /// zeros: what a map begins with is nobody.
    #[inline(always)]
    fn summed(&self) -> [u64; 2] {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let half = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let mut sums = [1u64, 0];
        for word in [
            self.key,
            self.at,
            self.mark.started,
            self.mark.groups,
            self.task.started,
            self.task.cgroup,
            pair(self.task.process, self.task.thread),
            pair(self.task.network, self.task.mount),
            half(self.task.command.first_chunk()),
            half(self.task.command.last_chunk()),
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
            command: *b"calico-node\0\0\0\0\0",
        };
        let mark = Mark { started: 9_001 * n, groups: 0xffff_8880_0000_0000 + 0x1c0 * n };
        Latest::new(0xffff_8881_0000_0000 + 0x2a40 * n, 1_000_000 + 13 * n, mark, task)
    }

    #[test]
    fn it_serves_its_task_until_it_is_too_old() {
        let one = latest(1);
        assert_eq!(one.of(one.key, one.at, MINUTE), Some((one.mark, one.task)));
        assert!(one.of(one.key, one.at + MINUTE - 1, MINUTE).is_some());
        assert!(one.of(one.key, one.at + MINUTE, MINUTE).is_none());
        assert!(one.of(one.key, one.at - 1, MINUTE).is_none(), "it was read later");
        assert!(one.of(one.key, one.at, 0).is_none());
        assert!(one.of(latest(2).key, one.at, MINUTE).is_none());
        assert!(Latest::default().of(0, 0, MINUTE).is_none(), "nobody");
    }

    /// Both write in any order, each being interrupted by the other at any word.
    #[test]
    fn what_two_have_written_at_once_is_nobodys() {
        let words = |latest: &Latest| {
            let Latest { key, at, mark, task, sums } = *latest;
            let mut all = Vec::from([key, at, mark.started, mark.groups, task.started]);
            all.extend([task.cgroup]);
            all.extend([task.process, task.thread, task.network, task.mount].map(u64::from));
            all.extend(sums);
            all
        };
        let small = |word: u64| u32::try_from(word).unwrap();
        let of = |words: &[u64], command| Latest {
            key: words[0],
            at: words[1],
            mark: Mark { started: words[2], groups: words[3] },
            task: Task {
                started: words[4],
                cgroup: words[5],
                process: small(words[6]),
                thread: small(words[7]),
                network: small(words[8]),
                mount: small(words[9]),
                command,
            },
            sums: [words[10], words[11]],
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
                        assert_eq!(torn.of(owner.key, owner.at, MINUTE), None, "{torn:?}");
                    }
                }
            }
        }
    }
}
