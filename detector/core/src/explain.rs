//! An address explained: who says whose it is, which routes and rules there are for it, where the
//! node's own packets for it go, and what is thought of that.
//!
//! It asks nobody and changes nothing: it shows the facts as they are, for people who want to check a
//! verdict by hand.

use std::fmt;
use std::net::IpAddr;

use crate::claim::Allocation;
use crate::facts::fib::Entry;
use crate::facts::links::KnownLink;
use crate::facts::{Facts, Identity};
use crate::finding::{Finding, FindingKey, Subject};
use crate::judge::{Verdict, judge};
use crate::link::InterfaceName;
use crate::observation::NeighbourKind;
use crate::route::{Hops, NextHop, Prefix, Route, RouteKind, Rule, RuleAction, Table};
use crate::time::BootTime;
use crate::workload::PodKey;

/// How strong a saying is, the strongest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Strength {
    /// Given by those who run the cluster: to a node, to a Service, to the cloud.
    Given,
    /// Recorded by IPAM, where no right on pods reaches.
    Recorded,
    /// What a pod's status showed first, which is the kubelet's word.
    First,
    /// Allowed by the allow-list.
    Allowed,
    /// What a tenant may write.
    Claimed,
}

impl Strength {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Recorded => "recorded",
            Self::First => "first",
            Self::Allowed => "allowed",
            Self::Claimed => "claimed",
        }
    }
}

/// Somebody's word on whose the address is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Saying {
    /// How strong it is.
    pub strength: Strength,
    /// Whose the address is by it, such as `pod shop/cart`.
    pub whose: String,
    /// Where it is said.
    pub by: String,
    /// Since when, where that is known.
    pub since: Option<BootTime>,
}

/// One leg of a route, as a person reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leg {
    /// The interface, by its present name.
    pub interface: Option<InterfaceName>,
    /// The neighbour.
    pub gateway: Option<IpAddr>,
    /// The pod behind the interface, or the node at the neighbour's address.
    pub behind: Option<String>,
}

/// A route for the address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteView {
    /// The route.
    pub route: Route,
    /// Its legs, those of its next-hop object.
    pub legs: Vec<Leg>,
    /// Since when it has stood, or since it was first seen.
    pub since: BootTime,
    /// Whether the kernel takes it for packets of the node's own, without mark and of no fixed source.
    pub wins: bool,
}

/// What becomes of a packet of the node's own, as far as the watched routes tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It takes the route at this place of [`Explanation::routes`], by the rule at this place of
    /// [`Explanation::rules`].
    Route {
        /// The route.
        route: usize,
        /// The rule; `None` where rules were not told.
        rule: Option<usize>,
    },
    /// A rule drops it.
    Dropped {
        /// The rule.
        rule: usize,
    },
    /// No watched route takes it: a wider route by an uplink does, or none.
    Unwatched,
    /// A rule comes first of which only the kernel knows which packets it is for, or what it does.
    Unknown {
        /// The rule.
        rule: usize,
    },
}

/// A translation of the address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TranslationView {
    /// What it is translated to.
    pub to: IpAddr,
    /// Whose that is, where a pod of this node has it.
    pub whose: Option<PodKey>,
    /// The rules that do it.
    pub rules: Vec<Box<str>>,
    /// Connections that showed it.
    pub connections: u64,
}

/// What the judge thinks of one place where packets end up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opinion {
    /// What a finding about it has as its key.
    pub key: FindingKey,
    /// What was judged.
    pub subject: String,
    /// Where packets end up.
    pub target: String,
    /// `hijack`, `attempt`, `unproven`, `entitled`, `pending` or `irrelevant`.
    pub verdict: &'static str,
    /// Why, where there is a charge.
    pub reason: Option<Box<str>>,
    /// Since when.
    pub since: BootTime,
}

/// All that is known of an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The address.
    pub address: IpAddr,
    /// The IP pool that it is in, and its IPAM block.
    pub pool: Option<(Box<str>, Option<Prefix>)>,
    /// Who says whose it is, the strongest first.
    pub sayings: Vec<Saying>,
    /// The rules of its family that can lead its packets somewhere, in the order in which the kernel
    /// tries them.
    pub rules: Vec<Rule>,
    /// The routes for it, of all tables: the longest prefix first.
    pub routes: Vec<RouteView>,
    /// What becomes of a packet of the node's own.
    pub fate: Fate,
    /// What it is translated to.
    pub translations: Vec<TranslationView>,
    /// Neighbour entries that somebody made.
    pub neighbours: Vec<String>,
    /// What is thought of each place where packets end up.
    pub opinions: Vec<Opinion>,
    /// The findings that stand and that are about the address.
    pub findings: Vec<Finding>,
    /// What cannot be seen at present.
    pub missing: Vec<Box<str>>,
}

/// Explains an address by the facts; findings are the ledger's to add.
pub(crate) fn explain(facts: &Facts, now: BootTime, address: IpAddr) -> Explanation {
    let tables = &facts.kernel;
    let rules: Vec<Rule> = tables
        .rules(address.is_ipv4())
        .into_iter()
        .filter(|rule| rule.to.is_none_or(|to| to.contains(address)))
        .cloned()
        .collect();
    let mut prefixes: Vec<Prefix> = tables.fib.covering(address).collect();
    prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.length()));
    let entries: Vec<&Entry> = prefixes.iter().flat_map(|prefix| tables.fib.get(*prefix)).collect();
    let fate = fate(&rules, &entries);
    let winner = match fate {
        Fate::Route { route, .. } => Some(route),
        Fate::Dropped { .. } | Fate::Unwatched | Fate::Unknown { .. } => None,
    };
    let routes = entries.iter().enumerate().map(|(at, entry)| RouteView {
        route: entry.route.clone(),
        legs: legs(facts, &tables.legs(&entry.route)),
        since: entry.since,
        wins: winner == Some(at),
    });
    let pool = facts.pools.of(address);
    Explanation {
        address,
        pool: pool.map(|pool| (pool.name.clone(), facts.pools.block_of(address))),
        sayings: sayings(facts, address),
        routes: routes.collect(),
        fate,
        translations: translations(facts, address),
        neighbours: neighbours(facts, address),
        opinions: opinions(facts, now, address, &rules, &prefixes),
        findings: Vec::new(),
        missing: facts.missing(),
        rules,
    }
}

/// Walks the rules as the kernel does for a packet that the node itself sends, with no mark and a
/// source yet to be chosen (`fib_rules_lookup` in net/core/fib_rules.c).
fn fate(rules: &[Rule], entries: &[&Entry]) -> Fate {
    if rules.is_empty() {
        // The three that the kernel begins with, where nobody has told of any.
        let found = [Table::LOCAL, Table::MAIN, Table::DEFAULT]
            .into_iter()
            .find_map(|table| best(entries, table));
        return found.map_or(Fate::Unwatched, |route| Fate::Route { route, rule: None });
    }
    for (at, rule) in rules.iter().enumerate().filter(|(_, rule)| may_be_for_own_packets(rule)) {
        let certain = rule.narrowed == 0;
        match rule.action {
            RuleAction::Lookup(table) => {
                let route = best(entries, table);
                // A throw route goes on with the next rule.
                let route = route.filter(|at| entries[*at].route.kind != RouteKind::Throw);
                match route {
                    Some(_) if !certain => return Fate::Unknown { rule: at },
                    Some(route) => return Fate::Route { route, rule: Some(at) },
                    None => {}
                }
            }
            RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit if certain => {
                return Fate::Dropped { rule: at };
            }
            // The VRF's table is looked up for packets of its interfaces only.
            RuleAction::LookupVrf => {}
            RuleAction::Blackhole
            | RuleAction::Unreachable
            | RuleAction::Prohibit
            | RuleAction::Other(_) => return Fate::Unknown { rule: at },
        }
    }
    Fate::Unwatched
}

/// Whether a rule may match packets of the node's own, whatever application sends them.
fn may_be_for_own_packets(rule: &Rule) -> bool {
    (rule.mark == 0 || rule.narrowed != 0)
        && rule.from.is_none_or(|from| from.address().is_unspecified())
}

/// The route of a table that wins: the longest prefix, then the lowest metric, then the first. The
/// entries are in the order of their prefixes' lengths.
fn best(entries: &[&Entry], table: Table) -> Option<usize> {
    let of_table = || {
        let all = entries.iter().enumerate();
        all.filter(move |(_, entry)| entry.route.table == table && entry.route.tos == 0)
    };
    let length = of_table().map(|(_, entry)| entry.route.prefix.length()).max()?;
    let longest = of_table().filter(|(_, entry)| entry.route.prefix.length() == length);
    longest.min_by_key(|(at, entry)| (entry.route.metric, *at)).map(|(at, _)| at)
}

fn legs(facts: &Facts, hops: &Hops) -> Vec<Leg> {
    let leg = |hop: &NextHop| {
        let link = hop.interface.and_then(|index| facts.kernel.links.get(index));
        Leg {
            interface: link.map(|link| link.link.name.clone()),
            gateway: hop.gateway,
            behind: behind(facts, link, hop.gateway),
        }
    };
    hops.as_slice().iter().map(leg).collect()
}

fn behind(facts: &Facts, link: Option<&KnownLink>, gateway: Option<IpAddr>) -> Option<String> {
    match link.map(|link| facts.identity(link)) {
        Some(Identity::Pod(pod)) => Some(format!("pod {}", pod.pod.key)),
        Some(Identity::Contested(pod)) => {
            Some(format!("somebody who took the interface of pod {}", pod.pod.key))
        }
        Some(Identity::Nobody) => Some("no pod of this node".to_owned()),
        Some(Identity::Stray) => Some("a container that is no pod".to_owned()),
        Some(Identity::Uplink) | None => {
            let node = gateway.and_then(|gateway| facts.nodes.owner(gateway));
            node.map(|node| format!("node {node}"))
        }
    }
}

fn sayings(facts: &Facts, address: IpAddr) -> Vec<Saying> {
    let say = |strength, whose: &dyn fmt::Display, by: &str, since| Saying {
        strength,
        whose: whose.to_string(),
        by: by.to_owned(),
        since,
    };
    let mut all = Vec::new();
    if let Some(node) = facts.nodes.owner(address) {
        all.push(say(Strength::Given, &format!("node {node}"), "the node's addresses", None));
    }
    if let Some(service) = facts.services.owner(address) {
        let whose = format!("service {service}");
        all.push(say(Strength::Given, &whose, "spec.clusterIPs", facts.services.since(service)));
    }
    for (service, field) in facts.services.claimants(address) {
        let whose = format!("service {service}");
        let since = facts.services.since(service);
        all.push(say(Strength::Claimed, &whose, field.as_str(), since));
    }
    if let Some(block) = facts.pools.block_of(address)
        && let Some(known) = facts.answers.blocks.known(block)
    {
        let by = format!("IPAM block {block}");
        let whose = match &known.said {
            Ok(said) => match said.as_ref().and_then(|block| block.allocation(address)) {
                Some(allocation) => recorded(allocation),
                None => "nobody".to_owned(),
            },
            Err(why) => format!("cannot be read: {why}"),
        };
        all.push(say(Strength::Recorded, &whose, &by, Some(known.times.asked)));
    }
    for pod in facts.pods.with_address(address) {
        let whose = format!("pod {}", pod.pod.key);
        if pod.had_first(address) {
            all.push(say(Strength::First, &whose, "status.podIPs, from the first", pod.first_at));
        }
        for ((field, prefix), since) in &pod.claims {
            if prefix.contains(address) {
                all.push(say(Strength::Claimed, &whose, field.as_str(), Some(*since)));
            }
        }
    }
    if let Some(known) = facts.answers.claimants.known(address) {
        let others = known.said.iter().flatten();
        for pod in others.filter(|pod| pod.node != facts.settings.node) {
            let whose = format!("pod {} on node {}", pod.key, pod.node);
            all.push(say(Strength::First, &whose, "status.podIPs", Some(known.times.asked)));
        }
    }
    for entry in facts.allow.entries().iter().filter(|entry| entry.cidr.contains(address)) {
        let whose = format!("service account {}/{}", entry.namespace, entry.service_account);
        all.push(say(Strength::Allowed, &whose, &entry.origin, None));
    }
    all.sort();
    all
}

fn recorded(allocation: &Allocation) -> String {
    match allocation {
        Allocation::Pod { owner, .. } => match &owner.node {
            Some(node) => format!("pod {} on node {node}", owner.key),
            None => format!("pod {}", owner.key),
        },
        Allocation::Node { node, kind } => format!("node {node} ({kind})"),
        Allocation::Service(key) => format!("service {key}"),
        Allocation::Other(handle) => handle.to_string(),
    }
}

fn translations(facts: &Facts, address: IpAddr) -> Vec<TranslationView> {
    let view = |translation| {
        let rules = facts.translations.rules(&translation);
        let connected = facts.translations.connected(&translation);
        let owner =
            facts.pods.with_address(translation.to).find(|pod| pod.had_first(translation.to));
        TranslationView {
            to: translation.to,
            whose: owner.map(|pod| pod.pod.key.clone()),
            rules: rules.map(|(rule, _)| rule.origin.clone()).collect(),
            connections: connected.map_or(0, |connected| connected.connections),
        }
    };
    facts.translations.of(address).into_iter().map(view).collect()
}

fn neighbours(facts: &Facts, address: IpAddr) -> Vec<String> {
    let words = |neighbour: &crate::observation::Neighbour| {
        let kind = match neighbour.kind {
            NeighbourKind::Permanent => "a fixed link address",
            NeighbourKind::Proxy => "the node answers for it",
        };
        let link = facts.kernel.links.get(neighbour.interface);
        let name = link.map_or_else(|| "?".to_owned(), |link| link.link.name.to_string());
        format!("{kind} on {name}")
    };
    facts.kernel.neighbours_for(address).map(words).collect()
}

fn opinions(
    facts: &Facts,
    now: BootTime,
    address: IpAddr,
    rules: &[Rule],
    prefixes: &[Prefix],
) -> Vec<Opinion> {
    let claims = facts.pods.with_address(address).flat_map(crate::facts::pods::LocalPod::claims);
    let claims = claims.chain(facts.services.claims_on(address));
    let claims = claims.filter(|claim| claim.prefix.contains(address)).map(Subject::Claim);
    let subjects = prefixes
        .iter()
        .copied()
        .map(Subject::Prefix)
        .chain(rules.iter().filter(|rule| rule.to.is_some()).cloned().map(Subject::Rule))
        .chain(facts.translations.of(address).into_iter().map(Subject::Translation))
        .chain(facts.kernel.neighbours_for(address).copied().map(Subject::Neighbour))
        .chain(facts.packets.pretending_to_have(address).copied().map(Subject::Pretence))
        .chain(claims);
    let mut all = Vec::new();
    for subject in subjects {
        for (target, (verdict, since)) in judge(facts, now, &subject, None).verdicts {
            let (verdict, reason) = match verdict {
                Verdict::Irrelevant => ("irrelevant", None),
                Verdict::Entitled(_) => ("entitled", None),
                Verdict::Doubt(_) => ("pending", None),
                Verdict::Charged(charge, _) => (charge.certainty.as_str(), Some(charge.reason)),
            };
            let key = FindingKey { subject: subject.clone(), target: target.clone() };
            let subject = match &subject {
                Subject::Prefix(prefix) => format!("route {prefix}"),
                Subject::Rule(rule) => format!("rule {rule}"),
                Subject::Claim(claim) => {
                    format!("{} in {} of {}", claim.prefix, claim.field.as_str(), claim.claimant)
                }
                Subject::Translation(translation) => {
                    format!("translation of {}", translation.prefix)
                }
                Subject::Neighbour(neighbour) => format!("neighbour {}", neighbour.address),
                Subject::Pretence(key) => format!("pretence as {}", key.pretence.as_str()),
            };
            all.push(Opinion { key, subject, target: target.to_string(), verdict, reason, since });
        }
    }
    all
}
