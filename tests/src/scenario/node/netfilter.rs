//! Rules that translate destinations, written by the tools that people and Felix write them with.

use std::net::IpAddr;

use anyhow::Result;

use crate::netns::Namespace;
use crate::scenario::packets::Translator;

/// A rule as it is written.
pub(super) struct Rule {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) by: Translator,
    /// In the chains that Felix makes for floating IPs.
    pub(super) felix: bool,
}

impl Rule {
    /// Writes the rule.
    pub(super) fn make(&self, node: &Namespace) -> Result<()> {
        let Self { from, to, .. } = self;
        match self.by {
            Translator::Nft => {
                let (family, name) = (self.nft_family(), self.nft_table());
                let hook = "type nat hook prerouting priority dstnat;";
                let rule = format!("{family} daddr {from} dnat to {to}");
                let text = if self.felix {
                    format!(
                        "table {family} {name} {{\n\
                         chain nat-cali-fip-dnat {{\n{rule}\n}}\n\
                         chain nat-cali-PREROUTING {{\njump nat-cali-fip-dnat\n}}\n\
                         chain nat-PREROUTING {{\n{hook}\njump nat-cali-PREROUTING\n}}\n}}\n"
                    )
                } else {
                    format!("table {family} {name} {{\nchain pre {{\n{hook}\n{rule}\n}}\n}}\n")
                };
                node.run("nft", &["-f", "-"], &text).map(drop)
            }
            Translator::IptablesNft | Translator::IptablesLegacy => {
                let rule = format!("--destination {from} --jump DNAT --to-destination {to}");
                let commands = if self.felix {
                    vec![
                        "--new-chain cali-PREROUTING".to_owned(),
                        "--new-chain cali-fip-dnat".to_owned(),
                        "--insert PREROUTING --jump cali-PREROUTING".to_owned(),
                        "--append cali-PREROUTING --jump cali-fip-dnat".to_owned(),
                        format!("--append cali-fip-dnat {rule}"),
                    ]
                } else {
                    vec![format!("--append PREROUTING {rule}")]
                };
                commands.iter().try_for_each(|command| self.iptables(node, command))
            }
        }
    }

    /// Takes the rule away, and all that it was written with.
    pub(super) fn unmake(&self, node: &Namespace) -> Result<()> {
        if self.by == Translator::Nft {
            let text = format!("delete table {} {}\n", self.nft_family(), self.nft_table());
            return node.run("nft", &["-f", "-"], &text).map(drop);
        }
        self.iptables(node, "--flush")?;
        self.iptables(node, "--delete-chain")
    }

    fn nft_family(&self) -> &'static str {
        if self.from.is_ipv4() { "ip" } else { "ip6" }
    }

    fn nft_table(&self) -> &'static str {
        if self.felix { "calico" } else { "by-hand" }
    }

    fn iptables(&self, node: &Namespace, command: &str) -> Result<()> {
        let program = match (self.by, self.from) {
            (Translator::IptablesLegacy, IpAddr::V4(_)) => "iptables-legacy",
            (Translator::IptablesLegacy, IpAddr::V6(_)) => "ip6tables-legacy",
            (_, IpAddr::V4(_)) => "iptables-nft",
            (_, IpAddr::V6(_)) => "ip6tables-nft",
        };
        let mut arguments = vec!["--wait", "10", "--table", "nat"];
        arguments.extend(command.split_whitespace());
        node.run(program, &arguments, "").map(drop)
    }
}
