//! How a charge is put into words.

use std::net::IpAddr;

use super::{Judge, Leg};
use crate::claim::{Ipam, Spread};
use crate::facts::Identity;
use crate::facts::links::KnownLink;
use crate::facts::pods::LocalPod;
use crate::finding::{
    Attacker, Certainty, Charge, Effect, Evidence, Extent, Means, Reach, Scope, Severity, Victim,
    Witness,
};
use crate::link::InterfaceName;
use crate::policy::Feature;
use crate::route::{NextHop, Prefix};
use crate::workload::NodeName;

impl Judge<'_> {
    /// A charge against a leg, with what the kernel says of it; the caller adds the rest.
    pub(super) fn charge(
        &self,
        leg: Leg<'_>,
        victim: Victim,
        effect: Effect,
        extent: Extent,
    ) -> Charge {
        let route = &leg.entry.route;
        let means = match (leg.rule, route.nexthop_id) {
            (Some(_), _) => Means::Rule,
            (None, Some(_)) => Means::NextHop,
            (None, None) => Means::Route,
        };
        let mut evidence = vec![Evidence {
            at: leg.entry.since,
            witness: Witness::Kernel,
            text: self.route_words(leg).into(),
        }];
        if let Some(rule) = leg.rule {
            let at = self.facts.kernel.rule_since(rule).unwrap_or(self.now);
            let text = format!("rule {rule}").into();
            evidence.push(Evidence { at, witness: Witness::Kernel, text });
        }
        evidence.extend(Self::contradiction(leg));
        Charge {
            certainty: Certainty::Hijack,
            severity: Severity::High,
            means,
            effect,
            extent,
            table: Some(route.table),
            rule: leg.rule.cloned(),
            attacker: self.attacker_of_leg(leg),
            victim,
            reason: Box::default(),
            reach: self.reach(route.prefix, leg.hop),
            evidence,
            missing: self.missing(),
            traffic: None,
            writer: self.wrote(leg),
        }
    }

    /// Which nodes a route bears on. BIRD exports a host route that lies in a pool and in no block of
    /// its own node (confd's bird.cfg.template, `calico_aggr` and the pool filter after it).
    pub(super) fn reach(&self, prefix: Prefix, hop: Option<NextHop>) -> Reach {
        let reach = |scope, why: &str| Reach { scope, why: why.into() };
        if hop.is_some_and(|hop| hop.gateway.is_some()) {
            return reach(Scope::Unknown, "other nodes may have the same route");
        }
        let address = prefix.address();
        match (self.facts.pools.ipam, self.facts.pools.spread(address)) {
            (Ipam::Unknown, _) => reach(Scope::Unknown, "the pools are not known"),
            (_, None) => reach(Scope::Node, "the address is in no pool, so BGP does not export it"),
            (_, Some(Spread::Contained)) => {
                reach(Scope::Node, "routes of the address's pool are not exported by BGP")
            }
            (_, Some(Spread::Bgp)) => {
                let block = self.facts.pools.block_of(address);
                let known = block.and_then(|block| self.facts.answers.blocks.known(block));
                match known.and_then(|known| known.said.as_ref().ok()) {
                    None => reach(Scope::Unknown, "the block of the address is not known"),
                    Some(Some(block))
                        if block.affinity.as_ref() == Some(&self.facts.settings.node) =>
                    {
                        reach(Scope::Node, "the node exports its own blocks as a whole only")
                    }
                    Some(_) => reach(
                        Scope::Cluster,
                        "the address is in a BGP pool and in no block of this node, so every node \
                         learns the route",
                    ),
                }
            }
        }
    }

    pub(super) fn evidence(&self, witness: Witness, text: String) -> Evidence {
        Evidence { at: self.now, witness, text: text.into() }
    }

    pub(super) fn attacker_of_leg(&self, leg: Leg<'_>) -> Attacker {
        let Some(hop) = leg.hop else { return Attacker::default() };
        let Some(link) = hop.interface.and_then(|index| self.facts.kernel.links.get(index)) else {
            return Attacker {
                gateway: hop.gateway,
                node: self.node_at(hop),
                ..Attacker::default()
            };
        };
        let uplink = matches!(self.facts.identity(link), Identity::Uplink);
        let mut attacker = self.attacker_behind(link);
        attacker.gateway = hop.gateway.filter(|_| uplink);
        attacker.node = attacker.gateway.and_then(|_| self.node_at(hop));
        attacker
    }

    /// Who is behind an interface, as an attacker.
    pub(super) fn attacker_behind(&self, link: &KnownLink) -> Attacker {
        let interface = Some(link.link.name.clone());
        match self.facts.identity(link) {
            Identity::Pod(pod) => Attacker { interface, ..attacker_of(pod) },
            _ => Attacker { interface, ..Attacker::default() },
        }
    }

    /// The name of a pod's interface, if that stands.
    pub(super) fn interface_of(&self, pod: &LocalPod) -> Option<InterfaceName> {
        let links = pod.interfaces.iter().filter_map(|name| self.facts.kernel.links.by_name(name));
        links.into_iter().next().map(|link| link.link.name.clone())
    }

    /// The node that a next hop is.
    fn node_at(&self, hop: NextHop) -> Option<NodeName> {
        hop.gateway.and_then(|gateway| self.facts.nodes.owner(gateway)).cloned()
    }

    pub(super) fn first_address_evidence(&self, pod: &LocalPod, address: IpAddr) -> Evidence {
        Evidence {
            at: pod.first_at.unwrap_or(self.now),
            witness: Witness::Api,
            text: format!(
                "{address} is the address that pod {} has had from the first",
                pod.pod.key
            )
            .into(),
        }
    }

    /// Who is behind an interface, as the subject of a sentence.
    pub(super) fn who(&self, link: &KnownLink) -> String {
        let name = &link.link.name;
        let renamed = if link.link.name == link.first_name {
            String::new()
        } else {
            format!(" (once {})", link.first_name)
        };
        match self.facts.identity(link) {
            Identity::Pod(pod) => {
                let account = &pod.pod.service_account;
                format!("pod {} (service account {account})", pod.pod.key) + &renamed
            }
            Identity::Contested(pod) => format!(
                "interface {name}{renamed}, made anew under the name of pod {}'s",
                pod.pod.key
            ),
            _ => format!("interface {name}{renamed}, which is no pod's,"),
        }
    }

    /// By what the address came to the pod, as the end of a sentence.
    pub(super) fn because(&self, pod: &LocalPod, address: IpAddr) -> String {
        if pod.pod.floating_addresses.contains(&address) {
            let state = match &self.facts.feature {
                Feature::Disabled { .. } => "although the floating IP feature is off",
                Feature::Enabled { .. } => "with the floating IP feature on",
                Feature::Unknown => "with the floating IP feature's state unknown",
            };
            return format!(": the pod's floatingIPs annotation claims it, {state}");
        }
        if pod.pod.addresses.contains(&address) {
            return ": the pod's status was changed to say so".to_owned();
        }
        if pod.pod.annotated_addresses.contains(&address) {
            return ": the pod's podIPs annotation says so".to_owned();
        }
        String::new()
    }

    /// Adds what the pod says of the address, and what the feature's state is where that matters.
    pub(super) fn add_claims(&self, charge: &mut Charge, pod: &LocalPod, address: IpAddr) {
        let key = &pod.pod.key;
        let say = |charge: &mut Charge, text: String| {
            charge.evidence.push(self.evidence(Witness::Api, text));
        };
        if pod.pod.floating_addresses.contains(&address) {
            let name = "cni.projectcalico.org/floatingIPs";
            say(charge, format!("pod {key} has annotation {name} with {address}"));
            charge.evidence.extend(self.translated_to(address, pod));
            self.add_feature(charge);
        }
        if pod.pod.addresses.contains(&address) {
            charge.evidence.push(self.forged_status(pod, address));
        }
        if pod.pod.annotated_addresses.contains(&address) {
            let name = "cni.projectcalico.org/podIPs";
            say(charge, format!("pod {key} has annotation {name} with {address}"));
        }
        if pod.pod.bypassing_addresses.contains(&address) {
            let name = "cni.projectcalico.org/ipAddrsNoIpam";
            say(charge, format!("pod {key} has annotation {name} with {address}"));
        }
    }

    /// Adds whether floating IPs are on, and whether that is heeded.
    pub(super) fn add_feature(&self, charge: &mut Charge) {
        let mut say = |text: String| charge.evidence.push(self.evidence(Witness::Api, text));
        match &self.facts.feature {
            Feature::Disabled { by } => say(format!("floating IPs are off: {by}")),
            Feature::Enabled { by } => say(format!("floating IPs are on: {by}")),
            Feature::Unknown => {}
        }
        if let (Some(false), Some(version)) =
            (self.facts.felix.heeds_switch, &self.facts.felix.version)
        {
            say(format!(
                "Calico {version} acts on every floatingIPs annotation (TTA-2022-001): no switch \
                 holds it back"
            ));
        }
    }

    pub(super) fn forged_status(&self, pod: &LocalPod, address: IpAddr) -> Evidence {
        let text = if pod.had_first(address) {
            format!("forged status: pod {} shows {address}, which it was not given", pod.pod.key)
        } else {
            format!("forged status: pod {} did not have {address} at first", pod.pod.key)
        };
        self.evidence(Witness::Api, text)
    }

    /// The route in the words of `ip route`, with who wrote it.
    fn route_words(&self, leg: Leg<'_>) -> String {
        use std::fmt::Write as _;

        let entry = leg.entry;
        let route = &entry.route;
        let mut text = String::from("route ");
        // Writing to a String cannot fail.
        if route.kind != crate::route::RouteKind::Unicast {
            let _ = write!(text, "{} ", route.kind);
        }
        let _ = write!(text, "{}", route.prefix);
        if let Some(hop) = leg.hop {
            if let Some(gateway) = hop.gateway {
                let _ = write!(text, " via {gateway}");
            }
            if let Some(link) = hop.interface.and_then(|on| self.facts.kernel.links.get(on)) {
                let _ = write!(text, " dev {}", link.link.name);
            }
        }
        if let Some(id) = route.nexthop_id {
            let _ = write!(text, " nhid {}", id.get());
        }
        let _ = write!(text, " table {} proto {}", route.table, route.protocol);
        if route.metric != 0 {
            let _ = write!(text, " metric {}", route.metric);
        }
        text.push_str(&Self::writer_words(entry));
        let displaced = entry.displaced.and_then(|on| self.facts.kernel.links.get(on));
        if let Some(link) = displaced {
            let _ = write!(text, ", in place of one dev {}", link.link.name);
        }
        text
    }
}

/// The pod as a victim.
pub(super) fn victim_of(pod: &LocalPod) -> Victim {
    Victim::Pod { key: pod.pod.key.clone(), node: Some(pod.pod.node.clone()) }
}

/// The pod as an attacker.
pub(super) fn attacker_of(pod: &LocalPod) -> Attacker {
    Attacker {
        pod: Some(pod.pod.key.clone()),
        uid: Some(pod.pod.uid.clone()),
        service_account: Some(pod.pod.service_account.clone()),
        ..Attacker::default()
    }
}
