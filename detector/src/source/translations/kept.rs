//! The rules that were read last.

use std::net::IpAddr;

use detector_core::route::Prefix;
use detector_core::traffic::TranslationRule;

use crate::source::interests::Interests;

/// Pairs that are kept: Services beyond those are not what is looked for.
const MOST: usize = 131_072;

/// All rules, as far as there is room.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// In order.
    all: Vec<TranslationRule>,
    /// The prefixes among them that are of more than one address.
    wide: Vec<Prefix>,
}

// === impl Kept ===

impl Kept {
    /// Takes what was read; where not all could be (`failed`), what was there may well be there still.
    /// Of more than there is room for, those that matter now are kept first, and it is said that
    /// there are more.
    pub(super) fn take(
        &mut self,
        rules: Vec<TranslationRule>,
        failed: bool,
        interests: &Interests,
    ) -> Option<String> {
        let old = std::mem::replace(&mut self.all, rules);
        if failed {
            self.all.extend(old);
        }
        self.all.sort_unstable();
        self.all.dedup();
        let overflowed = self.all.len() > MOST;
        if overflowed {
            self.all.sort_by_key(|rule| !interests.touch(rule.prefix));
            self.all.truncate(MOST);
            self.all.sort_unstable();
        }
        let prefixes = self.all.iter().map(|rule| rule.prefix);
        self.wide = prefixes.filter(|prefix| !prefix.is_host()).collect();
        self.wide.dedup();
        overflowed.then(|| format!("more than {MOST} translations"))
    }

    /// Whether a rule is about the address.
    pub(super) fn concerns(&self, address: IpAddr) -> bool {
        let host = Prefix::host(address);
        let at = self.all.partition_point(|rule| rule.prefix < host);
        self.all.get(at).is_some_and(|rule| rule.prefix == host)
            || self.wide.iter().any(|prefix| prefix.contains(address))
    }

    /// The rules that matter.
    pub(super) fn that_matter(&self, interests: &Interests) -> Vec<TranslationRule> {
        self.all.iter().filter(|rule| interests.touch(rule.prefix)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn rule(to: u32) -> TranslationRule {
        let prefix = Prefix::host(Ipv4Addr::from(to).into());
        let evil = Ipv4Addr::new(10, 9, 0, 1).into();
        TranslationRule { prefix, to: evil, to_last: evil, origin: "a table".into() }
    }

    /// Services' addresses (10.96.0.0) come before those of pods (10.244.0.0).
    #[test]
    fn what_matters_is_kept_however_many_others_there_are() {
        let pod = Ipv4Addr::new(10, 244, 1, 5);
        let mut interests = Interests::default();
        interests.watch(pod.into());
        let services = (0..140_000).map(|n| rule(0x0a60_0000 + n));
        let all: Vec<_> = services.chain([rule(pod.into())]).collect();
        let mut kept = Kept::default();
        assert!(kept.take(all.clone(), false, &interests).is_some());
        assert_eq!(kept.that_matter(&interests), [rule(pod.into())]);
        // Nor does a reading that fails take it away.
        assert!(kept.take(all[..139_000].to_vec(), true, &interests).is_some());
        assert_eq!(kept.that_matter(&interests), [rule(pod.into())]);
        assert!(kept.concerns(pod.into()));
        // One that succeeds does.
        assert_eq!(kept.take(all[..9].to_vec(), false, &interests), None);
        assert!(!kept.concerns(pod.into()));
        assert_eq!(kept.that_matter(&interests), []);
    }
}
