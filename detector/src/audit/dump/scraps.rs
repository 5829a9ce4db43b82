//! Text that is no object, looked through line by line.

use crate::audit::facts::{Kind, Scrap};
use crate::audit::gather::{Gather, KEYS};
use crate::source::cluster::parse::{POD_IP, POD_IPS};
use crate::text::printable;

/// So much of a text is looked through, in bytes.
pub(super) const MOST: u64 = 16 << 20;

/// So many lines of one dump are told of.
const MOST_SCRAPS: usize = 1_000;

/// What was found in a text.
pub(super) struct Found {
    pub(super) annotations: usize,
    /// The object that it seems to be about.
    pub(super) about: Option<String>,
    pub(super) kind: Option<Kind>,
}

/// Looks for annotations of the family, and for the CNI plugin's switches.
pub(super) fn look(gather: &mut Gather, place: &str, first: usize, text: &str) -> Found {
    let value = |name: &str| {
        let of = |line: &str| {
            let line = line.trim_start().trim_start_matches("- ").trim_start();
            let line = line.strip_prefix(name)?.strip_prefix(':')?;
            let value = line.trim().trim_matches('"');
            (!value.is_empty()).then(|| value.to_owned())
        };
        text.lines().find_map(of)
    };
    let about = value("name").map(|name| match value("namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name,
    });
    let kind =
        value("kind").and_then(|kind| super::object::named(kind.trim_end_matches([',', '"'])));
    let mut annotations = 0;
    for (number, line) in (first.max(1)..).zip(text.lines()) {
        // The CNI plugin writes its own two to each pod.
        let key = KEYS.iter().filter(|key| ![POD_IPS, POD_IP].contains(key)).find(|key| {
            line.find(**key).is_some_and(|at| {
                let behind = line[at + key.len()..].chars().next();
                behind.is_none_or(|c| !c.is_ascii_alphanumeric())
            })
        });
        let Some(key) = key else { continue };
        annotations += 1;
        let scraps = &mut gather.facts().scraps;
        if scraps.len() < MOST_SCRAPS {
            scraps.push(Scrap {
                place: format!("{place}:{number}").into(),
                about: about.as_deref().map(|about| printable(&format!("pod {about}"), 320).into()),
                key,
                line: printable(line.trim(), 256).into(),
            });
        }
    }
    // The reader of the switches takes any text; without this word it would find nothing in it.
    if let Some(at) = text.find("cni_network_config") {
        gather.cni(0, &text[at..]);
    }
    let about = about.map(|about| printable(&about, 320));
    let kind = kind.or_else(|| text.contains("cni_network_config").then_some(Kind::CniConfig));
    Found { annotations, about, kind }
}
