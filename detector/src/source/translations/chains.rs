//! Chains of rules, whatever wrote them, and which destinations they translate to what.
//!
//! A packet enters by a base chain and goes on by jumps. What a rule matches of the destination narrows
//! what its jump leads to; everything else that it matches narrows as well, and is left out: a rule
//! that translates some packets for an address translates packets for that address.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use detector_core::route::Prefix;
use detector_core::traffic::TranslationRule;

/// How deep jumps are followed. The kernel allows 16 in one go.
const DEPTH: usize = 16;

/// Rules that are looked at in all, so that no web of jumps takes for ever.
const BUDGET: usize = 1_000_000;

/// What a rule asks of a destination.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) enum Destination {
    /// Nothing.
    #[default]
    Any,
    /// To be in one of these.
    In(Vec<Prefix>),
    /// Something that cannot be said by prefixes, such as not to be in one.
    Other,
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Translates the destination to an address of these.
    Translate(IpAddr, IpAddr),
    /// Translates each of these destinations to its own.
    Map(Vec<(Prefix, IpAddr)>),
    /// Goes on in a chain.
    Jump(String),
    /// Goes on in the chain of the destination.
    Branch(Vec<(Prefix, String)>),
}

/// A rule, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    pub(super) destination: Destination,
    pub(super) action: Action,
}

/// The chains of one table.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// What it is, such as `nft table ip nat`.
    pub(super) name: String,
    pub(super) chains: HashMap<String, Vec<Rule>>,
    /// The chains by which packets enter.
    pub(super) bases: Vec<String>,
}

// === impl Destination ===

impl Destination {
    /// What both ask for; `None` where nothing can be both. What cannot be said by prefixes only narrows
    /// what can be.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::In(ours), Self::In(others)) => {
                let mut both = Vec::new();
                for one in ours {
                    for other in others {
                        if one.covers(other) {
                            both.push(*other);
                        } else if other.covers(one) {
                            both.push(*one);
                        }
                    }
                }
                (!both.is_empty()).then_some(Self::In(both))
            }
            (Self::In(_), _) => Some(self.clone()),
            (_, Self::In(_)) => Some(other.clone()),
            (Self::Any, Self::Any) => Some(Self::Any),
            _ => Some(Self::Other),
        }
    }
}

// === impl Table ===

impl Table {
    /// All that it translates. Rules that translate whatever destination are left out: of those, what
    /// decides is what else they match, such as a port of the node.
    pub(super) fn translations(&self) -> Vec<TranslationRule> {
        let mut walk = Walk { table: self, seen: HashSet::new(), left: BUDGET, found: Vec::new() };
        for base in &self.bases {
            walk.chain(base, &Destination::Any, 0);
        }
        walk.found
    }
}

struct Walk<'t> {
    table: &'t Table,
    seen: HashSet<(&'t str, Destination)>,
    left: usize,
    found: Vec<TranslationRule>,
}

impl<'t> Walk<'t> {
    fn chain(&mut self, name: &str, destination: &Destination, depth: usize) {
        let Some((name, rules)) = self.table.chains.get_key_value(name) else { return };
        if depth > DEPTH || !self.seen.insert((name, destination.clone())) {
            return;
        }
        for rule in rules {
            if self.left == 0 {
                return;
            }
            self.left -= 1;
            let Some(both) = destination.and(&rule.destination) else { continue };
            self.act(name, &rule.action, &both, depth);
        }
    }

    fn act(&mut self, chain: &'t str, action: &'t Action, destination: &Destination, depth: usize) {
        match action {
            Action::Translate(to, to_last) => {
                if let Destination::In(prefixes) = destination {
                    for prefix in prefixes {
                        self.find(chain, *prefix, *to, *to_last);
                    }
                }
            }
            Action::Map(pairs) => {
                for (prefix, to) in pairs {
                    let of_it = Destination::In(vec![*prefix]);
                    if let Some(Destination::In(prefixes)) = destination.and(&of_it) {
                        for prefix in prefixes {
                            self.find(chain, prefix, *to, *to);
                        }
                    }
                }
            }
            Action::Jump(to) => self.chain(to, destination, depth + 1),
            Action::Branch(branches) => {
                for (prefix, to) in branches {
                    if let Some(both) = destination.and(&Destination::In(vec![*prefix])) {
                        self.chain(to, &both, depth + 1);
                    }
                }
            }
        }
    }

    fn find(&mut self, chain: &str, prefix: Prefix, to: IpAddr, to_last: IpAddr) {
        if prefix.is_ipv4() != to.is_ipv4() {
            return;
        }
        let origin = format!("{}, chain {chain}", self.table.name).into();
        self.found.push(TranslationRule { prefix, to, to_last, origin });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::from(text.parse::<ipnet::IpNet>().expect("a prefix"))
    }

    fn rule(destination: &str, action: Action) -> Rule {
        let destination = match destination {
            "" => Destination::Any,
            "!" => Destination::Other,
            prefixes => Destination::In(prefixes.split(' ').map(prefix).collect()),
        };
        Rule { destination, action }
    }

    fn to(text: &str) -> Action {
        let address = text.parse().expect("an address");
        Action::Translate(address, address)
    }

    fn found(chains: &[(&str, Vec<Rule>)]) -> Vec<String> {
        let chains = chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone()));
        let table = Table {
            name: "a table".to_owned(),
            chains: chains.collect(),
            bases: vec!["base".to_owned()],
        };
        let rules = table.translations();
        rules.iter().map(|rule| format!("{} {} {}", rule.prefix, rule.to, rule.origin)).collect()
    }

    #[test]
    fn what_a_jump_matches_narrows_what_it_leads_to() {
        let jump = |chain: &str| Action::Jump(chain.to_owned());
        let all = found(&[
            ("base", vec![rule("10.1.0.0/16", jump("a")), rule("", jump("b"))]),
            ("a", vec![rule("10.1.0.5/32", to("10.9.9.9")), rule("10.2.0.0/16", to("10.8.8.8"))]),
            ("b", vec![rule("", to("10.7.7.7")), rule("!", to("10.6.6.6"))]),
            ("nobody-jumps-here", vec![rule("10.1.0.6/32", to("10.9.9.9"))]),
        ]);
        assert_eq!(all, ["10.1.0.5/32 10.9.9.9 a table, chain a"]);
    }

    #[test]
    fn what_is_not_to_be_hides_nothing_that_is() {
        let jump = Action::Jump("a".to_owned());
        let all = found(&[
            ("base", vec![rule("!", jump)]),
            ("a", vec![rule("10.1.0.5/32", to("10.9.9.9")), rule("", to("10.8.8.8"))]),
        ]);
        assert_eq!(all, ["10.1.0.5/32 10.9.9.9 a table, chain a"]);
    }

    #[test]
    fn a_rule_for_a_jumps_destination_counts_as_its_own() {
        let jump = Action::Jump("svc".to_owned());
        let all = found(&[
            ("base", vec![rule("10.96.0.1/32", jump)]),
            ("svc", vec![rule("", to("10.1.0.1")), rule("", to("10.1.0.2"))]),
        ]);
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|found| found.starts_with("10.96.0.1/32 ")));
    }

    #[test]
    fn circles_and_webs_of_jumps_end() {
        let jumps = |n: usize| {
            let to = |at: usize| rule("", Action::Jump(format!("chain-{}", at % 40)));
            (0..40).map(|at| to(at + n)).collect::<Vec<_>>()
        };
        let names: Vec<String> = (0..40).map(|n| format!("chain-{n}")).collect();
        let mut chains: Vec<(&str, Vec<Rule>)> =
            names.iter().enumerate().map(|(n, name)| (&**name, jumps(n))).collect();
        chains.push(("base", jumps(0)));
        assert_eq!(found(&chains), Vec::<String>::new());
    }

    #[test]
    fn maps_and_branches_are_followed_for_each_destination() {
        let pairs = vec![(prefix("10.1.0.5/32"), "10.9.9.9".parse().expect("an address"))];
        let branches = vec![(prefix("10.1.0.6/32"), "a".to_owned())];
        let all = found(&[
            ("base", vec![rule("", Action::Map(pairs)), rule("", Action::Branch(branches))]),
            ("a", vec![rule("", to("10.8.8.8"))]),
        ]);
        assert_eq!(
            all,
            ["10.1.0.5/32 10.9.9.9 a table, chain base", "10.1.0.6/32 10.8.8.8 a table, chain a"]
        );
    }
}
