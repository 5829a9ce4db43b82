//! Writes of routes that the kernel refused.

use std::collections::{HashMap, VecDeque};

use crate::route::Prefix;
use crate::time::BootTime;
use crate::writer::Refusal;

/// Refusals that are remembered; the oldest go first. Whoever may cause them without end, and so may write
/// routes, gains that others are forgotten: where nothing but a refusal told that Felix acts on an
/// annotation, the finding is an attempt again until Felix tries the next time.
const REMEMBERED: usize = 1_024;

/// What was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    by_prefix: HashMap<Prefix, Vec<(BootTime, Refusal)>>,
    /// The prefixes in the order of their refusals.
    order: VecDeque<Prefix>,
}

impl Refusals {
    /// Remembers one; of several that differ in nothing but their time and the thread, the last.
    pub(crate) fn add(&mut self, at: BootTime, refusal: Refusal) {
        let prefix = refusal.prefix;
        let all = self.by_prefix.entry(prefix).or_default();
        let same = all.iter().position(|(_, known)| is_same(known, &refusal));
        if let Some(same) = same {
            all.remove(same);
            if let Some(at) = self.order.iter().position(|one| *one == prefix) {
                self.order.remove(at);
            }
        }
        all.push((at, refusal));
        self.order.push_back(prefix);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
            && let Some(all) = self.by_prefix.get_mut(&oldest)
        {
            all.remove(0);
            if all.is_empty() {
                self.by_prefix.remove(&oldest);
            }
        }
    }

    /// Those of a prefix, with the time of each.
    pub(crate) fn of(&self, prefix: Prefix) -> impl Iterator<Item = (BootTime, &Refusal)> {
        self.by_prefix.get(&prefix).into_iter().flatten().map(|(at, refusal)| (*at, refusal))
    }
}

/// Whether the same process tried the same.
fn is_same(one: &Refusal, other: &Refusal) -> bool {
    let who = |refusal: &Refusal| {
        let process = refusal.writer.process.as_deref();
        process.map(|process| (process.pid, process.started, process.command.clone()))
    };
    (one.table, one.interface, one.protocol, one.error, who(one))
        == (other.table, other.interface, other.protocol, other.error, who(other))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::route::{Protocol, Table};

    fn refusal(number: u32) -> Refusal {
        Refusal {
            prefix: Prefix::host(IpAddr::V4(Ipv4Addr::from(number))),
            table: Table::MAIN,
            interface: None,
            protocol: Protocol(3),
            error: 17,
            writer: 7.into(),
        }
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut refusals = Refusals::default();
        let at = |number: u32| BootTime::from_nanos(number.into());
        for number in 0..5_000 {
            refusals.add(at(number), refusal(number));
            refusals.add(at(number + 1), refusal(number));
        }
        assert_eq!(refusals.order.len(), REMEMBERED);
        assert_eq!(refusals.by_prefix.values().map(Vec::len).sum::<usize>(), REMEMBERED);
        assert_eq!(refusals.of(refusal(0).prefix).count(), 0);
        let kept: Vec<_> = refusals.of(refusal(4_999).prefix).collect();
        assert_eq!(kept, [(at(5_000), &refusal(4_999))]);
    }
}
