//! The `${…}` words of scenario files.
//!
//! | word | stands for |
//! |---|---|
//! | `${victim}` | the address of that name, in the family that is run |
//! | `${victim/host}` | the same as a prefix of one address |
//! | `${victim/-all}` | the prefix of all addresses |
//! | `${victim/-2}` | the prefix around it that is two bits wider than one address |
//! | `${dev ns/name}` | the interface that Calico gives to that pod |

use std::net::IpAddr;

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
    pub fn address(&self, name: &str) -> Result<IpAddr> {
        let (ipv4, ipv6) = self
            .scenario
            .addresses
            .get(name)
            .with_context(|| format!("no address is called {name:?}: add it to `addresses`"))?;
        let text = match self.family {
            Family::Ipv4 => ipv4,
            Family::Ipv6 => ipv6,
        };
        Ok(text.parse()?)
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
