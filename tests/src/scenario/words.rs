//! The `${…}` words of scenario files.
//!
//! | word | stands for |
//! |---|---|
//! | `${victim}` | the address of that name, in the family that is run |
//! | `${victim@ipv6}` | the same in this family, whichever is run |
//! | `${victim+7}` | the seventh address after it |
//! | `${victim/host}` | the same as a prefix of one address |
//! | `${victim/-all}` | the prefix of all addresses |
//! | `${victim/-2}` | the prefix around it that is two bits wider than one address |
//! | `${dev ns/name}` | the interface that Calico gives to that pod |
//! | `${pretence}` | `arp` or `neighbour`, by the family that is run |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, bail};
use detector_core::route::Prefix;
use detector_core::workload::PodKey;

use super::{Family, Scenario};

/// Interprets the words of one scenario for one family.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// The scenario.
    pub scenario: &'a Scenario,
    /// The family.
    pub family: Family,
}

impl Words<'_> {
    /// The address of a name.
    pub fn address(&self, word: &str) -> Result<IpAddr> {
        let (rest, family) = match word.split_once('@') {
            None => (word, self.family),
            Some((rest, "ipv4")) => (rest, Family::Ipv4),
            Some((rest, "ipv6")) => (rest, Family::Ipv6),
            Some(_) => bail!("{word:?}: after @ comes ipv4 or ipv6"),
        };
        let (name, further) = match rest.split_once('+') {
            None => (rest, 0),
            Some((name, number)) => {
                (name, number.parse().with_context(|| format!("{word:?}: after + comes a number"))?)
            }
        };
        let (ipv4, ipv6) = self
            .scenario
            .addresses
            .get(name)
            .with_context(|| format!("no address is called {name:?}: add it to `addresses`"))?;
        let sum = match family {
            Family::Ipv4 => {
                let first = u32::from(ipv4.parse::<Ipv4Addr>()?);
                first.checked_add(further).map(|sum| Ipv4Addr::from(sum).into())
            }
            Family::Ipv6 => {
                let first = u128::from(ipv6.parse::<Ipv6Addr>()?);
                first.checked_add(further.into()).map(|sum| Ipv6Addr::from(sum).into())
            }
        };
        sum.with_context(|| format!("{word:?} is beyond all addresses"))
    }

    /// The prefix that a text with words in it is.
    pub fn prefix(&self, text: &str) -> Result<Prefix> {
        let text = self.expand(text)?;
        let (address, length) = text.split_once('/').context("a prefix has a length")?;
        Prefix::new(address.parse()?, length.parse()?)
            .with_context(|| format!("{text:?} is no prefix"))
    }

    /// The ranges that a node has for its pods, of both families.
    pub fn pod_prefixes(&self, node: &str) -> Result<Vec<Prefix>> {
        let ranges = self.scenario.pod_cidrs.get(node);
        ranges.into_iter().flat_map(|(v4, v6)| [v4, v6]).map(|text| self.prefix(text)).collect()
    }

    /// The text with all its words replaced.
    pub fn expand(&self, text: &str) -> Result<String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            let Some(length) = rest[start..].find('}') else {
                bail!("{text:?}: `${{` is not closed")
            };
            expanded.push_str(&rest[..start]);
            expanded.push_str(&self.word(&rest[start + 2..start + length])?);
            rest = &rest[start + length + 1..];
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn word(&self, word: &str) -> Result<String> {
        if let Some(pod) = word.strip_prefix("dev ") {
            return interface(pod);
        }
        if word == "pretence" {
            let ipv4 = self.family == Family::Ipv4;
            return Ok(if ipv4 { "arp" } else { "neighbour" }.to_owned());
        }
        let Some((name, length)) = word.split_once('/') else {
            return Ok(self.address(word)?.to_string());
        };
        let address = self.address(name)?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        let narrower: u8 = match length {
            "host" => 0,
            "-all" => bits,
            other => other
                .strip_prefix('-')
                .and_then(|bits| bits.parse().ok())
                .with_context(|| format!("${{{word}}}: after the slash comes host or -N"))?,
        };
        let length = bits.checked_sub(narrower).with_context(|| format!("${{{word}}}"))?;
        let prefix = Prefix::new(address, length).with_context(|| format!("${{{word}}}"))?;
        Ok(prefix.to_string())
    }
}

/// A pod's key from `namespace/name`.
pub fn pod_key(text: &str) -> Result<PodKey> {
    text.split_once('/')
        .and_then(|(namespace, name)| PodKey::new(namespace, name))
        .with_context(|| format!("{text:?} is no pod: write namespace/name"))
}

/// The interface of a pod given as `namespace/name`.
pub fn interface(pod: &str) -> Result<String> {
    let name = pod_key(pod)?.interface("cali").context("the prefix leaves no valid name")?;
    Ok(name.to_string())
}
