//! nftables, and with it iptables on top of it.

mod expression;
mod set;

use std::collections::{BTreeMap, HashMap};
use std::io;

use detector_core::traffic::TranslationRule;
use netlink_sys::protocols::NETLINK_NETFILTER;

use self::expression::Meaning;
use self::set::{Element, Value};
use super::chains::{Action, Destination, Rule, Table};
use crate::source::kernel::Message;
use crate::source::kernel::wire::{Attribute, attributes};
use crate::source::netfilter::{HEADER, printable, question, text};
use crate::source::questions::Questions;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 0x0a00;
const GETCHAIN: u16 = SUBSYSTEM | 0x04;
const GETRULE: u16 = SUBSYSTEM | 0x07;
const GETSETELEM: u16 = SUBSYSTEM | 0x0d;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_ELEM_LIST_TABLE: u16 = 1;
const SET_ELEM_LIST_SET: u16 = 2;
const SET_ELEM_LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;

/// `NFPROTO_…`: of both families, of IPv4, of IPv6; in a question 0 is all.
const ALL: u8 = 0;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// Tries at rules that change while they are read; the last one counts as it is.
const TRIES: usize = 3;

/// A table of a family.
type Key = (u8, String);

/// Reads all rules that translate destinations.
pub(super) fn read() -> io::Result<Vec<TranslationRule>> {
    for tried in 1.. {
        let mut questions = Questions::open(NETLINK_NETFILTER)?;
        let rules = match read_once(&mut questions) {
            Ok(rules) => rules,
            // A kernel without nftables has no rules of it.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)
                ) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        if !questions.interrupted || tried >= TRIES {
            return Ok(rules);
        }
    }
    Ok(Vec::new())
}

fn read_once(questions: &mut Questions) -> io::Result<Vec<TranslationRule>> {
    let mut tables: BTreeMap<Key, Table> = BTreeMap::new();
    questions.dump(GETCHAIN, &question(ALL, &[]), &mut |message| {
        if let Some((key, chain)) = base_chain(message) {
            tables.entry(key).or_default().bases.push(chain);
        }
    })?;
    let mut all = Vec::new();
    for ((family, name), mut table) in tables {
        table.name = format!("nft table {} {name}", word(family));
        let mut read: Vec<(String, Vec<Meaning>)> = Vec::new();
        let table_name = text(RULE_TABLE, &name);
        questions.dump(GETRULE, &question(family, &table_name), &mut |message| {
            // Before Linux 4.17 or so the question's table is not heeded.
            if let Some((of, chain, meanings)) = rule(message, family)
                && of == name
            {
                read.push((chain, meanings));
            }
        })?;
        let mut sets: HashMap<String, Vec<Element>> = HashMap::new();
        let named = read.iter().flat_map(|(_, meanings)| meanings).flat_map(Meaning::sets);
        for set in named.map(str::to_owned).collect::<std::collections::BTreeSet<_>>() {
            let elements = elements(questions, family, &name, &set)?;
            sets.insert(set, elements);
        }
        for (chain, meanings) in read {
            let rules = meanings.into_iter().map(|meaning| settle(meaning, &sets, family));
            table.chains.entry(chain).or_default().extend(rules);
        }
        all.extend(table.translations());
    }
    Ok(all)
}

/// A rule with what is in the sets that it names.
fn settle(meaning: Meaning, sets: &HashMap<String, Vec<Element>>, family: u8) -> Rule {
    let of = |name: &str| sets.get(name).map_or(&[][..], Vec::as_slice);
    let prefixes = |name: &str| set::prefixes(of(name), family);
    let destination = match meaning.destination {
        expression::Asked::Prefixes(destination) => destination,
        expression::Asked::Set(name) => {
            Destination::In(prefixes(&name).into_iter().map(|(prefix, _)| prefix).collect())
        }
    };
    let action = match meaning.action {
        expression::Does::Translate(from, to) => Action::Translate(from, to),
        expression::Does::Jump(chain) => Action::Jump(chain),
        expression::Does::Map(name) => Action::Map(
            prefixes(&name)
                .into_iter()
                .filter_map(|(prefix, value)| match value {
                    Value::Address(address) => Some((prefix, address)),
                    _ => None,
                })
                .collect(),
        ),
        expression::Does::Branch(name) => Action::Branch(
            prefixes(&name)
                .into_iter()
                .filter_map(|(prefix, value)| match value {
                    Value::Chain(chain) => Some((prefix, chain)),
                    _ => None,
                })
                .collect(),
        ),
    };
    Rule { destination, action }
}

fn elements(
    questions: &mut Questions,
    family: u8,
    table: &str,
    set: &str,
) -> io::Result<Vec<Element>> {
    let mut all = Vec::new();
    let mut which = text(SET_ELEM_LIST_TABLE, table);
    which.extend(text(SET_ELEM_LIST_SET, set));
    questions.dump(GETSETELEM, &question(family, &which), &mut |message| {
        for attribute in body(message) {
            if attribute.kind == SET_ELEM_LIST_ELEMENTS {
                let elements = attributes(attribute.value).filter_map(Result::ok);
                let elements = elements.filter(|element| element.kind == LIST_ELEM);
                all.extend(elements.filter_map(|element| set::element(element.value)));
            }
        }
    })?;
    Ok(all)
}

/// A chain by which packets enter to be translated: its table, and its name.
fn base_chain(message: &Message<'_>) -> Option<(Key, String)> {
    let family = *message.body.first()?;
    let (mut table, mut name, mut hooked, mut nat) = (None, None, false, false);
    for attribute in body(message) {
        match attribute.kind {
            CHAIN_TABLE => table = string(&attribute),
            CHAIN_NAME => name = string(&attribute),
            CHAIN_HOOK => hooked = true,
            CHAIN_TYPE => nat = string(&attribute).as_deref() == Some("nat"),
            _ => {}
        }
    }
    (hooked && nat && matches!(family, INET | IPV4 | IPV6)).then_some(((family, table?), name?))
}

/// A rule's table, its chain, and what it means.
fn rule(message: &Message<'_>, family: u8) -> Option<(String, String, Vec<Meaning>)> {
    let (mut table, mut chain, mut meanings) = (None, None, Vec::new());
    for attribute in body(message) {
        match attribute.kind {
            RULE_TABLE => table = string(&attribute),
            RULE_CHAIN => chain = string(&attribute),
            RULE_EXPRESSIONS => meanings = expression::meanings(attribute.value, family),
            _ => {}
        }
    }
    Some((table?, chain?, meanings))
}

fn body<'a>(message: &Message<'a>) -> impl Iterator<Item = Attribute<'a>> {
    attributes(message.body.get(HEADER..).unwrap_or_default()).filter_map(Result::ok)
}

/// The text of an attribute.
fn string(attribute: &Attribute<'_>) -> Option<String> {
    printable(attribute.value)
}

fn word(family: u8) -> &'static str {
    match family {
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => "inet",
    }
}
