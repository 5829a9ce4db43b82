//! Translations of destinations, as connections show them and as rules have them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound::{Included, Unbounded};
use std::time::Duration;

use crate::finding::Translation;
use crate::route::Prefix;
use crate::time::BootTime;
use crate::traffic::{Flow, Translated, TranslationRule};

/// How long a translated connection speaks for a translation that no rule shows. Each new connection
/// speaks anew.
pub(crate) const CONNECTION_SPEAKS: Duration = Duration::from_mins(5);

/// Pairs of addresses that connections speak for at once; the oldest makes room.
const CONNECTED_CAP: usize = 4_096;

/// Flows of one pair that are kept apart.
const FLOWS_CAP: usize = 1_024;

/// The lowest address in the order of [`IpAddr`].
const LOWEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// All translations.
#[derive(Debug, Default)]
pub(crate) struct Translations {
    /// Each with the time from which it has stood.
    rules: BTreeMap<TranslationRule, BootTime>,
    connected: BTreeMap<(IpAddr, IpAddr), Connected>,
    /// Addresses that a pod claimed as floating ones, and when it was last known to: Felix takes its
    /// rule away a moment later.
    claimed: BTreeMap<IpAddr, BootTime>,
}

/// Connections to one address that another answers.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) first: BootTime,
    pub(crate) last: BootTime,
    pub(crate) connections: u64,
    pub(crate) flows: BTreeSet<Flow>,
    /// The rule is gone that had made them: what is left of them speaks for nothing any more.
    over: bool,
}

// === impl Translations ===

impl Translations {
    /// Takes the whole of the rules; gives what differs.
    pub(crate) fn reset(
        &mut self,
        at: BootTime,
        rules: Vec<TranslationRule>,
    ) -> BTreeSet<Translation> {
        let old = std::mem::take(&mut self.rules);
        for rule in rules {
            let since = old.get(&rule).copied().unwrap_or(at);
            self.rules.insert(rule, since);
        }
        let made: BTreeSet<Translation> = self.rules.keys().map(translation_by).collect();
        for translation in old.keys().map(translation_by).filter(|old| !made.contains(old)) {
            if let Some(address) = translation.prefix.host_address()
                && let Some(connected) = self.connected.get_mut(&(address, translation.to))
            {
                connected.over = true;
            }
        }
        let new = self.rules.keys().filter(|rule| !old.contains_key(rule)).map(translation_by);
        let fewer = old.keys().filter(|rule| !self.rules.contains_key(rule)).map(translation_by);
        new.chain(fewer).collect()
    }

    /// Notes that a pod claims an address as a floating one, or did until now.
    pub(crate) fn claim(&mut self, at: BootTime, address: IpAddr) {
        if self.claimed.len() >= CONNECTED_CAP {
            self.claimed.retain(|_, then| at.since(*then) < CONNECTION_SPEAKS);
        }
        if self.claimed.len() < CONNECTED_CAP || self.claimed.contains_key(&address) {
            self.claimed.insert(address, at);
        }
    }

    /// When a pod was last known to claim the address as a floating one, if that was lately.
    pub(crate) fn claimed(&self, address: IpAddr) -> Option<BootTime> {
        self.claimed.get(&address).copied()
    }

    /// Takes a connection.
    pub(crate) fn connect(&mut self, at: BootTime, translated: Translated) -> Translation {
        let key = (translated.address, translated.to);
        if self.connected.len() >= CONNECTED_CAP && !self.connected.contains_key(&key) {
            let oldest = self.connected.iter().min_by_key(|(_, connected)| connected.last);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.connected.remove(&oldest);
            }
        }
        let connected = self.connected.entry(key).or_insert_with(|| Connected {
            first: at,
            last: at,
            connections: 0,
            flows: BTreeSet::new(),
            over: false,
        });
        connected.over = false;
        connected.last = connected.last.max(at);
        connected.connections += 1;
        if connected.flows.len() < FLOWS_CAP {
            connected.flows.insert(translated.flow);
        }
        Translation { prefix: Prefix::host(translated.address), to: translated.to }
    }

    /// Forgets connections that no longer speak for the translation.
    pub(crate) fn expire(&mut self, now: BootTime, translation: &Translation) {
        let Some(address) = translation.prefix.host_address() else { return };
        let key = (address, translation.to);
        if self.connected.get(&key).is_some_and(|known| now >= known.last.after(CONNECTION_SPEAKS))
        {
            self.connected.remove(&key);
        }
    }

    /// The rules that make a translation.
    pub(crate) fn rules(
        &self,
        translation: &Translation,
    ) -> impl Iterator<Item = (&TranslationRule, BootTime)> {
        let wanted = *translation;
        let first = TranslationRule {
            prefix: wanted.prefix,
            to: wanted.to,
            to_last: LOWEST,
            origin: "".into(),
        };
        let from = self.rules.range((Included(first), Unbounded));
        from.take_while(move |(rule, _)| translation_by(rule) == wanted)
            .map(|(rule, since)| (rule, *since))
    }

    /// The connections that show a translation.
    pub(crate) fn connected(&self, translation: &Translation) -> Option<&Connected> {
        let connected =
            self.connected.get(&(translation.prefix.host_address()?, translation.to))?;
        (!connected.over).then_some(connected)
    }

    /// Translations of this one address.
    pub(crate) fn of(&self, address: IpAddr) -> BTreeSet<Translation> {
        let prefix = Prefix::host(address);
        let first = TranslationRule { prefix, to: LOWEST, to_last: LOWEST, origin: "".into() };
        let rules = self.rules.range((Included(first), Unbounded));
        let rules = rules.map(|(rule, _)| rule).take_while(|rule| rule.prefix == prefix);
        let connected = self.connected.range((Included((address, LOWEST)), Unbounded));
        let connected = connected.map(|(key, _)| *key).take_while(|(of, _)| *of == address);
        let connected = connected.map(|(_, to)| Translation { prefix, to });
        rules.map(translation_by).chain(connected).collect()
    }

    /// Translations to this one address.
    pub(crate) fn to(&self, address: IpAddr) -> impl Iterator<Item = Translation> {
        self.iter().filter(move |translation| translation.to == address)
    }

    /// All translations that rules make or connections show.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Translation> {
        let connected = self.connected.keys();
        let connected =
            connected.map(|(address, to)| Translation { prefix: Prefix::host(*address), to: *to });
        self.rules.keys().map(translation_by).chain(connected)
    }

    /// Whether a connection of this flow to `address` is answered by one of `to`.
    pub(crate) fn carries(&self, address: IpAddr, flow: &Flow, to: &[IpAddr]) -> bool {
        to.iter().any(|to| {
            self.connected.get(&(address, *to)).is_some_and(|known| known.flows.contains(flow))
        })
    }
}

fn translation_by(rule: &TranslationRule) -> Translation {
    Translation { prefix: rule.prefix, to: rule.to }
}
