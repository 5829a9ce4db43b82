//! The allow-list as CEL, and back (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use detector_core::policy::Allowance;
use detector_core::route::Prefix;

use crate::config::value;
use crate::policy::Allowed;

/// Which ranges the pods of each service account may claim.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Grants(BTreeMap<Box<str>, BTreeSet<Box<str>>>);

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) namespace: Box<str>,
    pub(crate) service_account: Box<str>,
    pub(crate) range: Prefix,
}

/// Entries of one variable: the API server takes no expression of more than 100,000 characters, and an
/// entry may have 370.
const CHUNK: usize = 250;

/// What variables that hold the allow-list are called, with a number behind.
pub(super) const VARIABLE: &str = "allowed";

// === impl Grants ===

impl Grants {
    /// What these entries allow.
    pub(crate) fn of(allowed: &[Allowed]) -> Self {
        let mut grants = Self::default();
        for Allowed { allowance, expires: _ } in allowed {
            let account = format!("{}/{}", allowance.namespace, allowance.service_account);
            let ranges = grants.0.entry(account.into()).or_default();
            ranges.insert(allowance.cidr.to_string().into());
        }
        grants
    }

    /// The variables, each a map from a service account to its ranges. JSON is CEL, too.
    pub(super) fn variables(&self) -> Vec<(String, String)> {
        let all: Vec<(&str, &str)> = self
            .0
            .iter()
            .flat_map(|(account, ranges)| ranges.iter().map(move |range| (&**account, &**range)))
            .collect();
        let chunks: Vec<&[(&str, &str)]> =
            if all.is_empty() { vec![&[][..]] } else { all.chunks(CHUNK).collect() };
        let expression = |chunk: &[(&str, &str)]| {
            let mut map: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (account, range) in chunk {
                map.entry(account).or_default().push(range);
            }
            // One account a line, for whoever reads it.
            let lines: Vec<String> = map
                .iter()
                .map(|(account, ranges)| {
                    let ranges: Vec<String> =
                        ranges.iter().map(|range| format!("\"{range}\"")).collect();
                    format!("  \"{account}\": [{}]", ranges.join(", "))
                })
                .collect();
            if lines.is_empty() {
                "{}".to_owned()
            } else {
                format!("{{\n{}\n}}", lines.join(",\n"))
            }
        };
        let named = |(number, chunk): (usize, &&[(&str, &str)])| {
            (format!("{VARIABLE}{number}"), expression(chunk))
        };
        chunks.iter().enumerate().map(named).collect()
    }

    /// What variables like these allow, and those of them that say so; `None` where what they say is no
    /// allow-list.
    pub(crate) fn read(variables: &[(String, String)]) -> Option<(Self, Vec<(String, String)>)> {
        let own = variables.iter().filter(|(name, _)| name.starts_with(VARIABLE));
        let own: Vec<(String, String)> = own.cloned().collect();
        let mut grants = Self::default();
        for (_, expression) in &own {
            let map: BTreeMap<Box<str>, Vec<Box<str>>> = serde_json::from_str(expression).ok()?;
            for (account, ranges) in map {
                grants.0.entry(account).or_default().extend(ranges);
            }
        }
        grants.entries().map(|_| (grants, own))
    }

    /// The entries; `None` where one makes no sense.
    pub(crate) fn entries(&self) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        for (account, ranges) in &self.0 {
            let (namespace, name) = account.split_once('/')?;
            let namespace = value::namespace(namespace).ok()?;
            let service_account = value::service_account(name).ok()?;
            for range in ranges {
                entries.push(Entry {
                    namespace: namespace.clone(),
                    service_account: service_account.clone(),
                    range: value::cidr(range).ok()?,
                });
            }
        }
        Some(entries)
    }

    /// Those of the entries that no allowance covers.
    pub(crate) fn beyond(&self, allowances: &[Allowance]) -> Vec<Entry> {
        let mut entries = self.entries().unwrap_or_default();
        entries.retain(|entry| {
            !allowances.iter().any(|allowance| {
                allowance.namespace == entry.namespace
                    && allowance.service_account == entry.service_account
                    && allowance.cidr.covers(&entry.range)
            })
        });
        entries
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}/{}", self.range, self.namespace, self.service_account)
    }
}
