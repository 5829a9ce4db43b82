//! What a scenario says of the cluster: pools, Services, Calico's version and settings.

use serde::Deserialize;

/// Who gives pods their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpamKind {
    /// Calico's IPAM: there is a record of each address.
    Calico,
    /// Another: nothing is recorded.
    Other,
}

/// An IP pool of each family.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PoolEntry {
    /// The prefixes: the IPv4 one and the IPv6 one.
    pub cidr: (String, String),
    /// The lengths of the prefixes of its blocks, likewise.
    #[serde(default = "default_block_size")]
    pub block_size: (u8, u8),
    /// Whether it is a VXLAN pool, whose routes BGP does not export.
    #[serde(default)]
    pub vxlan: bool,
}

fn default_block_size() -> (u8, u8) {
    (26, 122)
}

/// A Service; its addresses by their names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceEntry {
    /// `namespace/name`; the key of the entry says it where it stands in `services`.
    #[serde(default)]
    pub name: String,
    /// `spec.clusterIPs`.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// `spec.externalIPs`.
    #[serde(default, rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// `status.loadBalancer.ingress`.
    #[serde(default)]
    pub load_balancer: Vec<String>,
    /// Its ports.
    #[serde(default = "default_ports")]
    pub ports: Vec<u16>,
}

fn default_ports() -> Vec<u16> {
    vec![80]
}

/// FelixConfiguration `workloadSourceSpoofing`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spoofing {
    /// Pods send from their own addresses only; Calico's default.
    #[default]
    Disabled,
    /// Pods may ask for more by annotation.
    Any,
}

/// Whether Felix of this version heeds the floating IP feature's switch (TTA-2022-001); `None`
/// where the text is no version.
pub fn heeds_switch(version: &str) -> Option<bool> {
    let mut numbers = version.strip_prefix('v')?.splitn(3, '.');
    let mut number = || {
        let text = numbers.next()?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..digits].parse::<u32>().ok()
    };
    let version = (number()?, number()?, number()?);
    let first_that_does = match (version.0, version.1) {
        (3, 21) => (3, 21, 5),
        (3, 22) => (3, 22, 2),
        _ => (3, 20, 5),
    };
    Some(version >= first_that_does)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bands_of_the_bulletin_do_not_heed_the_switch() {
        for version in ["v3.20.4", "v3.19.9", "v3.21.0", "v3.21.4", "v3.22.0", "v3.22.1"] {
            assert_eq!(heeds_switch(version), Some(false), "{version}");
        }
        for version in ["v3.20.5", "v3.21.5", "v3.22.2", "v3.23.0", "v3.30.1-0.dev", "v4.0.0"] {
            assert_eq!(heeds_switch(version), Some(true), "{version}");
        }
        assert_eq!(heeds_switch("latest"), None);
    }
}
