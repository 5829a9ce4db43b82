//! What an `ip` command does to the kernel's tables, for the rung that has no kernel.
//!
//! Only the commands that scenarios use are known; any other is an error, so that a scenario cannot
//! pass by doing nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::{KernelChange, Neighbour, NeighbourKind, Place};
use detector_core::route::{
    Hops, IfIndex, NextHop, NextHopId, NextHopObject, Prefix, Protocol, Route, RouteKind, Rule,
    RuleAction, Table,
};

use super::Family;

/// The interfaces of the pretended node.
#[derive(Clone, Debug, Default)]
pub struct Links {
    by_name: BTreeMap<String, Link>,
    last: u32,
}

impl Links {
    /// Makes an interface; its index is the next one.
    pub fn add(&mut self, name: &str, kind: LinkKind, up: bool) -> Result<KernelChange> {
        self.last += 1;
        let index = IfIndex::new(self.last).context("an index above zero")?;
        let interface = InterfaceName::new(name).with_context(|| format!("interface {name:?}"))?;
        let link = Link { index, name: interface, kind, up };
        self.by_name.insert(name.to_owned(), link.clone());
        Ok(KernelChange::Link(link))
    }

    /// Takes an interface away.
    pub fn remove(&mut self, name: &str) -> Result<KernelChange> {
        let link = self.by_name.remove(name).with_context(|| format!("no interface {name}"))?;
        Ok(KernelChange::LinkGone(link.index))
    }

    /// The index of an interface.
    pub fn index(&self, name: &str) -> Result<IfIndex> {
        let link = self.by_name.get(name);
        Ok(link.with_context(|| format!("no interface {name}"))?.index)
    }
}

/// What the command's arguments do.
pub fn interpret(links: &mut Links, family: Family, arguments: &str) -> Result<Vec<KernelChange>> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let changes = match words.as_slice() {
        ["route", verb, rest @ ..] => vec![route(links, family, verb, rest)?],
        ["rule", verb, rest @ ..] => vec![rule(family, verb, rest)?],
        ["nexthop", verb, "id", id, rest @ ..] => vec![nexthop(links, verb, id, rest)?],
        ["link", rest @ ..] => link(links, rest)?,
        ["neigh", verb, rest @ ..] => vec![neighbour(links, verb, rest)?],
        _ => bail!("not a command that the engine rung knows"),
    };
    Ok(changes)
}

fn link(links: &mut Links, words: &[&str]) -> Result<Vec<KernelChange>> {
    match words {
        ["add", name, "type", "veth", "peer", "name", peer] => Ok(vec![
            links.add(peer, LinkKind::Container, false)?,
            links.add(name, LinkKind::Container, false)?,
        ]),
        ["add", name, "type", "bridge"] => {
            Ok(vec![links.add(name, LinkKind::Infrastructure, false)?])
        }
        ["del", name] => Ok(vec![links.remove(name)?]),
        ["set", name, "name", new] => {
            let mut link =
                links.by_name.remove(*name).with_context(|| format!("no interface {name}"))?;
            link.name = InterfaceName::new(new).with_context(|| format!("interface {new:?}"))?;
            links.by_name.insert((*new).to_owned(), link.clone());
            Ok(vec![KernelChange::Link(link)])
        }
        ["set", name, state @ ("up" | "down")] => {
            let link =
                links.by_name.get_mut(*name).with_context(|| format!("no interface {name}"))?;
            link.up = *state == "up";
            Ok(vec![KernelChange::Link(link.clone())])
        }
        _ => bail!("not a link command that the engine rung knows"),
    }
}

fn route(links: &Links, family: Family, verb: &str, words: &[&str]) -> Result<KernelChange> {
    let (kind, words) = match words {
        ["blackhole", rest @ ..] => (RouteKind::Blackhole, rest),
        ["unreachable", rest @ ..] => (RouteKind::Unreachable, rest),
        ["prohibit", rest @ ..] => (RouteKind::Prohibit, rest),
        ["throw", rest @ ..] => (RouteKind::Throw, rest),
        ["local", rest @ ..] => (RouteKind::Local, rest),
        rest => (RouteKind::Unicast, rest),
    };
    let [prefix, options @ ..] = words else { bail!("a route has a prefix") };
    let mut route = Route {
        table: if kind == RouteKind::Local { Table::LOCAL } else { Table::MAIN },
        prefix: parse_prefix(family, prefix)?,
        tos: 0,
        metric: if family == Family::Ipv6 { 1024 } else { 0 },
        kind,
        protocol: Protocol(3),
        nexthop_id: None,
        hops: Hops::None,
    };
    let mut hops: Vec<(Option<IfIndex>, Option<IpAddr>)> = vec![(None, None)];
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().with_context(|| format!("{option} needs a value"));
        match *option {
            "dev" => last(&mut hops).0 = Some(links.index(value()?)?),
            "via" => {
                let next = value()?;
                let next = if *next == "inet6" { value()? } else { next };
                last(&mut hops).1 = Some(next.parse()?);
            }
            "nexthop" => {
                if *last(&mut hops) != (None, None) {
                    hops.push((None, None));
                }
            }
            "metric" => route.metric = value()?.parse()?,
            "proto" => route.protocol = Protocol(protocol(value()?)?),
            "table" => route.table = table(value()?)?,
            "nhid" => route.nexthop_id = NextHopId::new(value()?.parse()?),
            "scope" | "weight" => {
                value()?;
            }
            "onlink" => {}
            other => bail!("not a route option that the engine rung knows: {other}"),
        }
    }
    let legs = hops.into_iter().filter(|hop| *hop != (None, None));
    route.hops = legs.map(|(interface, gateway)| NextHop { interface, gateway }).collect();
    Ok(match verb {
        "add" | "prepend" | "append" | "replace" | "change" => KernelChange::Route {
            route,
            place: match verb {
                "replace" | "change" => Place::Instead,
                "append" => Place::Behind,
                _ => Place::Before,
            },
            writer: 4242.into(),
        },
        "del" => KernelChange::RouteGone(route),
        other => bail!("not a route verb that the engine rung knows: {other}"),
    })
}

fn last(hops: &mut [(Option<IfIndex>, Option<IpAddr>)]) -> &mut (Option<IfIndex>, Option<IpAddr>) {
    let last = hops.len() - 1;
    &mut hops[last]
}

fn rule(family: Family, verb: &str, words: &[&str]) -> Result<KernelChange> {
    let ipv4 = family == Family::Ipv4;
    let action = RuleAction::Lookup(Table::MAIN);
    let mut rule = Rule { ipv4, priority: 0, from: None, to: None, mark: 0, narrowed: 0, action };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match *word {
            "to" => rule.to = Some(parse_prefix(family, value()?)?),
            "from" => {
                let from = value()?;
                rule.from = (*from != "all").then(|| parse_prefix(family, from)).transpose()?;
            }
            "lookup" | "table" => rule.action = RuleAction::Lookup(table(value()?)?),
            "blackhole" => rule.action = RuleAction::Blackhole,
            "unreachable" => rule.action = RuleAction::Unreachable,
            "prohibit" => rule.action = RuleAction::Prohibit,
            "pref" | "priority" => rule.priority = value()?.parse()?,
            "fwmark" => rule.mark = value()?.parse()?,
            other => bail!("not a rule option that the engine rung knows: {other}"),
        }
    }
    match verb {
        "add" => Ok(KernelChange::Rule(rule)),
        "del" => Ok(KernelChange::RuleGone(rule)),
        other => bail!("not a rule verb that the engine rung knows: {other}"),
    }
}

fn nexthop(links: &Links, verb: &str, id: &str, words: &[&str]) -> Result<KernelChange> {
    let id = NextHopId::new(id.parse()?).context("a next-hop id above zero")?;
    if verb == "del" {
        return Ok(KernelChange::NextHopGone(id));
    }
    let object = match words {
        ["dev", dev] | ["dev", dev, "scope", _] => {
            NextHopObject::Leg(NextHop { interface: Some(links.index(dev)?), gateway: None })
        }
        ["via", gateway, "dev", dev] | ["via", gateway, "dev", dev, "onlink"] => {
            NextHopObject::Leg(NextHop {
                interface: Some(links.index(dev)?),
                gateway: Some(gateway.parse()?),
            })
        }
        ["group", members] => NextHopObject::Group(
            members
                .split('/')
                .map(|id| NextHopId::new(id.parse()?).context("a next-hop id above zero"))
                .collect::<Result<_>>()?,
        ),
        ["blackhole"] => NextHopObject::Blackhole,
        _ => bail!("not a next hop that the engine rung knows"),
    };
    Ok(KernelChange::NextHop(id, object))
}

fn neighbour(links: &Links, verb: &str, words: &[&str]) -> Result<KernelChange> {
    let (kind, address, device) = match words {
        ["proxy", address, "dev", device] => (NeighbourKind::Proxy, address, device),
        [address, "lladdr", _, "dev", device, "nud", "permanent"] | [address, "dev", device] => {
            (NeighbourKind::Permanent, address, device)
        }
        _ => bail!("not a neighbour that the engine rung knows"),
    };
    let neighbour = Neighbour { address: address.parse()?, interface: links.index(device)?, kind };
    match verb {
        "add" => Ok(KernelChange::Neighbour(neighbour)),
        "del" => Ok(KernelChange::NeighbourGone(neighbour)),
        other => bail!("not a neighbour verb that the engine rung knows: {other}"),
    }
}

fn parse_prefix(family: Family, text: &str) -> Result<Prefix> {
    let (address, length) = match (text, family) {
        ("default", Family::Ipv4) => ("0.0.0.0", Some("0")),
        ("default", Family::Ipv6) => ("::", Some("0")),
        (text, _) => match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        },
    };
    let address: IpAddr = address.parse().with_context(|| format!("prefix {text}"))?;
    match length {
        Some(length) => {
            Prefix::new(address, length.parse()?).with_context(|| format!("prefix {text}"))
        }
        None => Ok(Prefix::host(address)),
    }
}

fn table(text: &str) -> Result<Table> {
    Ok(match text {
        "main" => Table::MAIN,
        "local" => Table::LOCAL,
        "default" => Table::DEFAULT,
        number => Table(number.parse()?),
    })
}

fn protocol(text: &str) -> Result<u8> {
    Ok(match text {
        "kernel" => 2,
        "boot" => 3,
        "static" => 4,
        "ra" => 9,
        "bird" => 12,
        number => number.parse()?,
    })
}
