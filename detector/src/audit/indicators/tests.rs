//! Whose word counts, and what must stay silent.

use std::net::IpAddr;

use detector_core::claim::{Allocation, Block, PodHolder};
use detector_core::route::Prefix;
use detector_core::workload::{NodeName, Uid};

use super::*;
use crate::audit::exposure;
use crate::audit::facts::{Resident, Sight};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, shown: &str) -> Pod {
    Pod {
        key: PodKey::new("a", name).unwrap(),
        uid: Uid(name.into()),
        node: NodeName("n".into()),
        service_account: "default".into(),
        host_network: false,
        finished: false,
        terminating: false,
        addresses: vec![address(shown)],
        annotated_addresses: Vec::new(),
        floating_addresses: Vec::new(),
        annotated_prefixes: Vec::new(),
        source_prefixes: Vec::new(),
        bypassing_addresses: Vec::new(),
        sandbox: None,
    }
}

fn facts(pods: Vec<Pod>) -> Facts {
    let pods = pods.into_iter().map(|pod| Resident { pod, marks: None, machine: None }).collect();
    let mut facts = Facts { pods, ..Facts::default() };
    for kind in Kind::ALL {
        facts.saw(kind, Sight::All);
    }
    facts
}

/// IPAM's record of these pods.
fn record(facts: &mut Facts, owners: &[(&str, &str)]) {
    let allocations = owners.iter().map(|(name, shown)| {
        let key = PodKey::new("a", name).unwrap();
        let owner = PodHolder { key, node: None };
        (address(shown), Allocation::Pod { owner, heir: None })
    });
    let cidr = Prefix::new(address("10.0.0.0"), 26).unwrap();
    facts.blocks.push(Block { cidr, affinity: None, allocations: allocations.collect() });
    facts.pools.push(detector_core::claim::Pool {
        name: "p".into(),
        cidr: Prefix::new(address("10.0.0.0"), 16).unwrap(),
        block_length: 26,
        spread: detector_core::claim::Spread::Bgp,
    });
}

fn all(facts: &Facts) -> Vec<Finding> {
    let exposure = exposure::examine(facts);
    let owners = Owners::of(facts);
    let allowed = AllowList::default();
    look(&Ground { facts, exposure: &exposure, owners: &owners, allowed: &allowed })
}

fn found(facts: &Facts) -> Vec<(Rule, String)> {
    all(facts).iter().map(|finding| (finding.rule, finding.object.name.to_string())).collect()
}

#[test]
fn what_pods_show_by_right_is_silent() {
    let mut host = pod("host", "172.18.0.1");
    host.host_network = true;
    let mut other_host = pod("other-host", "172.18.0.1");
    other_host.host_network = true;
    // A completed job, and a pod that goes, still show what others have by now.
    let mut job = pod("job", "10.0.0.1");
    job.finished = true;
    let mut going = pod("going", "10.0.0.2");
    going.terminating = true;
    let pods = vec![pod("one", "10.0.0.1"), pod("two", "10.0.0.2"), host, other_host, job, going];
    let mut with = facts(pods.clone());
    record(&mut with, &[("one", "10.0.0.1"), ("two", "10.0.0.2")]);
    assert_eq!(found(&with), []);
    assert_eq!(found(&facts(pods)), [], "and without IPAM's record");
}

/// A grace of years keeps a pod running while it goes, and Felix routes what its status shows.
#[test]
fn a_pod_that_goes_slowly_is_no_way_out() {
    let mut evil = pod("evil", "10.0.0.1");
    evil.terminating = true;
    evil.annotated_addresses = vec![address("10.0.0.2")];
    let pods = vec![pod("one", "10.0.0.1"), pod("two", "10.0.0.3"), evil];
    let mut recorded = facts(pods.clone());
    record(&mut recorded, &[("one", "10.0.0.1"), ("two", "10.0.0.3"), ("evil", "10.0.0.2")]);
    assert_eq!(found(&recorded), [(Rule::AgainstIpam, "evil".to_owned())]);
    assert_eq!(found(&facts(pods)).len(), 1, "and without IPAM's record");
}

#[test]
fn a_live_migration_has_two_pods_with_one_address() {
    let mut facts =
        facts(vec![pod("one", "10.0.0.1"), pod("two", "10.0.0.2"), pod("heir", "10.0.0.1")]);
    record(&mut facts, &[("one", "10.0.0.1"), ("two", "10.0.0.2")]);
    if let Allocation::Pod { heir, .. } = &mut facts.blocks[0].allocations[0].1 {
        *heir = Some(PodHolder { key: PodKey::new("a", "heir").unwrap(), node: None });
    }
    assert_eq!(found(&facts), []);
}

/// Without a record, two pods with one address are a migration, a network of its own, or a moment; only
/// a status that no kubelet wrote says more.
#[test]
fn a_shared_address_alone_convicts_nobody() {
    let mut facts = facts(vec![pod("one", "10.0.0.1"), pod("two", "10.0.0.1")]);
    let level = |facts: &Facts| all(facts).first().map(|found| (found.level, found.in_force));
    assert_eq!(level(&facts), Some((Level::Medium, false)));
    for resident in &mut facts.pods {
        resident.machine = Some("vm".into());
    }
    assert_eq!(level(&facts), None);
    facts.pods[1].pod.key = PodKey::new("b", "two").unwrap();
    assert_eq!(level(&facts), Some((Level::Medium, false)), "not in another namespace");
    facts.pods[1].pod.key = PodKey::new("a", "two").unwrap();
    let writer = Writer {
        manager: "curl".into(),
        operation: "Update".into(),
        subresource: None,
        time: None,
    };
    let marks = Marks { status_writer: Some(writer), ..Marks::default() };
    facts.pods[1].marks = Some(Box::new(marks));
    assert_eq!(level(&facts), Some((Level::High, true)));
}

#[test]
fn what_was_not_looked_at_again_is_not_said_to_be_so() {
    let pods = vec![pod("one", "10.0.0.1"), pod("two", "10.0.0.1"), pod("three", "10.0.0.3")];
    let mut facts = facts(pods);
    record(&mut facts, &[("one", "10.0.0.1"), ("three", "10.0.0.3")]);
    assert_eq!((all(&facts)[0].level, all(&facts)[0].in_force), (Level::Critical, true));
    facts.unconfirmed.insert(PodKey::new("a", "two").unwrap());
    let finding = all(&facts).remove(0);
    assert_eq!((finding.level, finding.in_force), (Level::Medium, false));
    assert!(finding.message.contains("not looked at a second time"));
    // A record that was read counts, whatever else was not.
    facts.unconfirmed.clear();
    facts.sight.insert(Kind::IpamBlocks, Sight::Part("torn".into()));
    assert_eq!(all(&facts).len(), 1);
    facts.pods.push(Resident { pod: pod("odd", "10.0.0.9"), marks: None, machine: None });
    assert_eq!(all(&facts).len(), 1, "and what none says, another may");
}

#[test]
fn a_record_that_is_another_networks_convicts_nobody() {
    // What is left of Calico's IPAM beside a network that gives out other addresses.
    let mut facts =
        facts(vec![pod("one", "10.0.0.1"), pod("two", "10.9.0.2"), pod("three", "10.9.0.3")]);
    record(&mut facts, &[("gone", "10.0.0.1")]);
    assert_eq!(found(&facts), []);
}

#[test]
fn an_address_of_a_node_or_a_service_is_nobody_elses() {
    let mut facts = facts(vec![pod("one", "172.18.0.1"), pod("two", "10.96.0.10")]);
    facts.nodes.push(crate::audit::facts::Member {
        node: detector_core::observation::Node {
            name: NodeName("n".into()),
            addresses: vec![address("172.18.0.1")],
            pod_prefixes: Vec::new(),
        },
        windows: false,
    });
    facts.services.push(detector_core::claim::Service {
        key: detector_core::claim::ServiceKey::new("kube-system", "kube-dns").unwrap(),
        cluster_addresses: vec![address("10.96.0.10")],
        external_addresses: Vec::new(),
        balancer_addresses: Vec::new(),
        ports: Vec::new(),
    });
    let expected = [(Rule::AgainstIpam, "one".to_owned()), (Rule::AgainstIpam, "two".to_owned())];
    assert_eq!(found(&facts), expected);
    assert_eq!(doubts(&facts).len(), 2);
}

#[test]
fn pods_outside_of_their_nodes_ranges_are_told_where_ranges_are_kept_to() {
    let node = |range: &str| crate::audit::facts::Member {
        node: detector_core::observation::Node {
            name: NodeName("n".into()),
            addresses: Vec::new(),
            pod_prefixes: vec![Prefix::from(range.parse::<ipnet::IpNet>().unwrap())],
        },
        windows: false,
    };
    let pods = || vec![pod("one", "10.0.0.1"), pod("two", "10.0.0.2"), pod("odd", "10.7.0.1")];
    let mut kept = facts(pods());
    kept.nodes.push(node("10.0.0.0/24"));
    assert_eq!(found(&kept), [(Rule::OutsideRanges, "odd".to_owned())]);
    // Ranges that nobody keeps to (a cloud's network) say nothing.
    let mut ignored = facts(pods());
    ignored.nodes.push(node("192.168.0.0/24"));
    assert_eq!(found(&ignored), []);
}
