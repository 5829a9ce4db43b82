//! Which destinations matter where they are translated.

use std::collections::BTreeSet;
use std::net::IpAddr;

use detector_core::route::Prefix;

/// The prefixes in which pods' addresses lie, and addresses that somebody may be taking.
#[derive(Clone, Debug, Default)]
pub struct Interests {
    ranges: Vec<Prefix>,
    watched: BTreeSet<IpAddr>,
}

// === impl Interests ===

impl Interests {
    /// An address matters wherever it is.
    pub fn watch(&mut self, address: IpAddr) {
        self.watched.insert(address);
    }

    /// It matters only in a range.
    pub fn unwatch(&mut self, address: IpAddr) {
        self.watched.remove(&address);
    }

    /// Takes other ranges; gives those before.
    pub fn set_ranges(&mut self, ranges: Vec<Prefix>) -> Vec<Prefix> {
        std::mem::replace(&mut self.ranges, ranges)
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Prefix] {
        &self.ranges
    }

    /// The addresses that matter wherever they are.
    pub fn watched(&self) -> impl Iterator<Item = IpAddr> {
        self.watched.iter().copied()
    }

    /// Whether an address matters.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.watched.contains(&address) || self.are_in_range(address)
    }

    /// Whether any address of a prefix matters.
    pub fn touch(&self, prefix: Prefix) -> bool {
        if let Some(address) = prefix.host_address() {
            return self.contain(address);
        }
        let touch = |range: &Prefix| range.covers(&prefix) || prefix.covers(range);
        let mut after = self.watched.range(prefix.address()..);
        self.ranges.iter().any(touch) || after.next().is_some_and(|next| prefix.contains(*next))
    }

    fn are_in_range(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::from(text.parse::<ipnet::IpNet>().expect("a prefix"))
    }

    #[test]
    fn a_prefix_matters_for_what_is_in_it_and_for_what_it_is_in() {
        let mut interests = Interests::default();
        interests.set_ranges(vec![prefix("10.244.0.0/16")]);
        interests.watch("192.0.2.9".parse().expect("an address"));
        let touch = |text: &str| interests.touch(prefix(text));
        assert!(touch("10.244.1.5/32") && touch("10.244.0.0/20") && touch("10.0.0.0/8"));
        assert!(touch("192.0.2.9/32") && touch("192.0.2.0/24") && touch("0.0.0.0/0"));
        assert!(!touch("10.96.0.1/32") && !touch("192.0.2.10/32") && !touch("192.0.2.16/28"));
        assert!(!touch("::/0") && !touch("fd00::1/128"));
    }
}
