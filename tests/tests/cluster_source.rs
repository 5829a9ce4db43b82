//! The agent's cluster source against the emulated API server: what the engine is told of a cluster
//! that lives, and of an API server that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use detector::cli::RunArgs;
use detector::config::{Config, File};
use detector::source::cluster::{Cluster, Running};
use detector_core::claim::{Allocation, Block, Ipam, Pool, Service};
use detector_core::observation::{Answer, Observation, Question, Reply, Sense, What};
use detector_core::policy::{Feature, Felix};
use detector_core::route::Prefix;
use detector_tests::apiserver::ApiServer;
use detector_tests::apiserver::fault::{Connections, Cut, Requests, Times};
use detector_tests::apiserver::refusal::Refusal;
use detector_tests::apiserver::traffic::{Tally, Verb};
use nix::unistd::mkdtemp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How long anything may take that is certain to come; the source itself waits seconds after a
/// failure.
const LONG: Duration = Duration::from_secs(30);

/// A server, and the source on node n1 that asks it.
struct World {
    server: ApiServer,
    rx: mpsc::Receiver<Observation>,
    questions: mpsc::Sender<Question>,
    running: Running,
}

impl World {
    async fn new(prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::on_loopback().unwrap();
        prepare(&server);
        let scratch = mkdtemp(&std::env::temp_dir().join("detector-XXXXXX")).unwrap();
        let kubeconfig = scratch.join("kubeconfig");
        fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let args = RunArgs {
            node_name: Some("n1".into()),
            kubeconfig: Some(kubeconfig),
            ..RunArgs::default()
        };
        let config = Config::resolve(&args, &File::default()).unwrap();
        let cluster = Cluster::connect(&config).await.unwrap();
        fs::remove_dir_all(scratch).unwrap();
        let (tx, rx) = mpsc::channel(256);
        let (questions, asked) = mpsc::channel(8);
        let running = cluster.start(&tx, asked);
        Self { server, rx, questions, running }
    }

    /// What is told next.
    async fn next(&mut self) -> What {
        let next = tokio::time::timeout(LONG, self.rx.recv()).await;
        next.expect("nothing was told").expect("the source goes on").what
    }

    /// What is told next of one kind, passing over the others: each task tells in its own time.
    async fn next_of(&mut self, sense: Sense) -> String {
        loop {
            let what = self.next().await;
            if let Some((told_of, told)) = in_short(&what)
                && told_of == sense
            {
                return told;
            }
        }
    }

    /// All that is told of one kind, up to and with `last`.
    async fn up_to(&mut self, sense: Sense, last: &str) -> Vec<String> {
        let mut told = Vec::new();
        while told.last().is_none_or(|told| told != last) {
            told.push(self.next_of(sense).await);
        }
        told
    }

    async fn ask(&mut self, address: &str) -> Result<Vec<String>, String> {
        let address: IpAddr = address.parse().unwrap();
        self.questions.send(Question::Claimants(address)).await.unwrap();
        match self.answer().await {
            Reply::Claimants(of, claimants) if of == address => {
                let names = |pods: Vec<_>| pods.iter().map(pod_in_short).collect();
                claimants.map(names).map_err(String::from)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn ask_block(&mut self, cidr: &str) -> Result<Option<Block>, String> {
        let cidr = prefix(cidr);
        self.questions.send(Question::Block(cidr)).await.unwrap();
        match self.answer().await {
            Reply::Block(of, block) if of == cidr => block.map_err(String::from),
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self) -> Reply {
        loop {
            if let What::Answer(Answer { reply, .. }) = self.next().await {
                return reply;
            }
        }
    }

    fn traffic(&self) -> Tally {
        self.server.traffic().now()
    }

    /// Waits until the server has been asked what it must be asked.
    fn asked(&self, holds: impl Fn(&Tally) -> bool) {
        let waited = tokio::task::block_in_place(|| self.server.traffic().wait(LONG, holds));
        waited.expect("the server was not asked what it should have been asked");
    }
}

/// An observation in one line, and what it is about.
fn in_short(what: &What) -> Option<(Sense, String)> {
    let all = |names: Vec<String>| format!("all: {}", names.join(", "));
    Some(match what {
        What::PodsReset(pods) => (Sense::Pods, all(pods.iter().map(pod_in_short).collect())),
        What::PodApplied(pod) => (Sense::Pods, pod_in_short(pod)),
        What::PodDeleted(key, uid) => (Sense::Pods, format!("gone: {key} {uid}")),
        What::NodesReset(nodes) => (Sense::Nodes, all(nodes.iter().map(node_in_short).collect())),
        What::NodeApplied(node) => (Sense::Nodes, node_in_short(node)),
        What::NodeDeleted(name) => (Sense::Nodes, format!("gone: {name}")),
        What::Pools(pools) => (Sense::Pools, all(pools.iter().map(pool_in_short).collect())),
        What::Ipam(Ipam::Calico) => (Sense::Pools, "calico".into()),
        What::Ipam(ipam) => (Sense::Pools, format!("{ipam:?}").to_lowercase()),
        What::ServicesReset(services) => {
            (Sense::Services, all(services.iter().map(service_in_short).collect()))
        }
        What::ServiceApplied(service) => (Sense::Services, service_in_short(service)),
        What::ServiceDeleted(key) => (Sense::Services, format!("gone: {key}")),
        What::Felix(felix) => (Sense::Feature, felix_in_short(felix)),
        What::Feature(Feature::Unknown) => (Sense::Feature, "unknown".into()),
        What::Feature(Feature::Enabled { by }) => (Sense::Feature, format!("on by {by}")),
        What::Feature(Feature::Disabled { by }) => (Sense::Feature, format!("off by {by}")),
        What::Blind(sense, Some(reason)) => (*sense, format!("blind: {reason}")),
        What::Blind(sense, None) => (*sense, "seeing".into()),
        _ => return None,
    })
}

fn pod_in_short(pod: &detector_core::workload::Pod) -> String {
    let mut text = format!("{} {:?}", pod.key, pod.addresses);
    for (word, holds) in [("finished", pod.finished), ("terminating", pod.terminating)] {
        if holds {
            text = format!("{text} {word}");
        }
    }
    for address in &pod.floating_addresses {
        text = format!("{text} floating {address}");
    }
    text
}

fn node_in_short(node: &detector_core::observation::Node) -> String {
    format!("{} {:?}", node.name, node.addresses)
}

fn pool_in_short(pool: &Pool) -> String {
    format!("{} {} /{} {:?}", pool.name, pool.cidr, pool.block_length, pool.spread)
}

fn service_in_short(service: &Service) -> String {
    let Service { key, cluster_addresses, external_addresses, balancer_addresses, ports } = service;
    format!("{key} {cluster_addresses:?} {external_addresses:?} {balancer_addresses:?} {ports:?}")
}

fn felix_in_short(felix: &Felix) -> String {
    let Felix { version, heeds_switch, spoofing, bypass } = felix;
    let word = |said: &Option<bool>| said.map_or("?", |said| if said { "yes" } else { "no" });
    let version = version.as_deref().unwrap_or("?");
    let (heeds, spoofing, bypass) = (word(heeds_switch), word(spoofing), word(bypass));
    format!("felix {version} heeds {heeds} spoofing {spoofing} bypass {bypass}")
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]},
    })
}

fn calico(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    })
}

/// A block of four addresses, the second of which is a pod's.
fn block(name: &str, cidr: &str) -> Value {
    let secondary = json!({"pod": "cart", "namespace": "shop", "node": "n2"});
    let spec = json!({
        "cidr": cidr, "affinity": "host:n2", "allocations": [null, 0, null, null],
        "attributes": [{"handle_id": "h", "secondary": secondary}], "unallocated": [0, 2, 3],
        "strictAffinity": false,
    });
    calico("IPAMBlock", name, &spec)
}

fn pod(name: &str, node: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-of-{name}")},
        "spec": {
            "nodeName": node, "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "one"}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn node(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
    })
}

fn felix(name: &str, floating_ips: &str) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
        "metadata": {"name": name}, "spec": {"floatingIPs": floating_ips},
    })
}

fn calico_config(floating_ips: bool) -> Value {
    let text = format!(
        r#"{{"plugins": [{{"type": "calico", "mtu": __CNI_MTU__,
            "feature_control": {{"floating_ips": {floating_ips}}}}}]}}"#
    );
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": "kube-system", "name": "calico-config"},
        "data": {"cni_network_config": text},
    })
}

fn annotation(floating_ips: &str) -> Value {
    json!({"metadata": {"annotations": {"cni.projectcalico.org/floatingIPs": floating_ips}}})
}

const BY_DEFAULT: &str = "off by Calico's default: neither FelixConfiguration spec.floatingIPs nor \
                          calico-config feature_control.floating_ips is set";

/// Of a server that has no object of Calico's at all.
const BARE_FELIX: &str = "felix ? heeds ? spoofing no bypass ?";

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_is_all_there_is_and_only_what_concerns_this_node() {
    let mut world = World::new(|server| {
        server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
        server.apply(pod("b", "n2", "10.0.0.2")).unwrap();
        server.apply(node("n1", "192.168.0.1")).unwrap();
        server.apply(node("n2", "192.168.0.2")).unwrap();
    })
    .await;
    let mut told: BTreeMap<Sense, Vec<String>> = BTreeMap::new();
    let is_whole = |told: &Vec<String>| told.last().is_some_and(|told| told == "seeing");
    while told.len() < 5 || !told.values().all(is_whole) {
        let (sense, line) = in_short(&world.next().await).unwrap();
        told.entry(sense).or_default().push(line);
    }
    assert_eq!(told[&Sense::Pods], ["all: shop/a [10.0.0.1]", "seeing"]);
    assert_eq!(told[&Sense::Nodes], ["all: n1 [192.168.0.1], n2 [192.168.0.2]", "seeing"]);
    assert_eq!(told[&Sense::Feature], [BY_DEFAULT, BARE_FELIX, "seeing"]);
    assert_eq!(told[&Sense::Pools], ["all: ", "other", "seeing"]);
    assert_eq!(told[&Sense::Services], ["all: ", "seeing"]);

    // Ten lists and watches, a look for blocks, and nothing that the server does not have.
    world.asked(|tally| tally.all_requests() == 21);
    let tally = world.traffic();
    let counts = world.running.counters().counts();
    assert_eq!((counts.requests, counts.listings), (21, 10));
    assert_eq!((counts.failures, tally.unknown_paths().len()), (0, 0));
}

#[tokio::test]
async fn a_pod_is_told_from_its_birth_to_its_end() {
    let mut world = World::new(|_| {}).await;
    assert_eq!(world.up_to(Sense::Pods, "seeing").await, ["all: ", "seeing"]);
    let mut newborn = pod("a", "n1", "10.0.0.1");
    newborn["status"] = json!({"phase": "Pending"});
    world.server.apply(newborn).unwrap();
    assert_eq!(world.next_of(Sense::Pods).await, "shop/a []");
    let status = json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    world.server.set_status("pods", "shop", "a", &status).unwrap();
    assert_eq!(world.next_of(Sense::Pods).await, "shop/a [10.0.0.1]");

    // A neighbour on another node is not told at all: what comes next is of this node again.
    world.server.apply(pod("b", "n2", "10.0.0.2")).unwrap();
    let claim = annotation(r#"["10.0.0.2", "10.0.0.2\n", "010.0.0.3"]"#);
    world.server.patch("pods", "shop", "a", &claim).unwrap();
    assert_eq!(world.next_of(Sense::Pods).await, "shop/a [10.0.0.1] floating 10.0.0.2");
    assert_eq!(world.running.counters().counts().rejections, 2);

    world.server.terminate("shop", "a").unwrap();
    let told = world.next_of(Sense::Pods).await;
    assert_eq!(told, "shop/a [10.0.0.1] terminating floating 10.0.0.2");
    world.server.remove("pods", "shop", "a").unwrap();
    // Its grace is shortened to nothing first.
    assert_eq!(world.next_of(Sense::Pods).await, told);
    assert_eq!(world.next_of(Sense::Pods).await, "gone: shop/a uid-of-a");
}

#[tokio::test]
async fn only_what_changes_an_address_is_told_of_a_node() {
    let mut world = World::new(|server| drop(server.apply(node("n1", "192.168.0.1")))).await;
    world.up_to(Sense::Nodes, "seeing").await;
    for heartbeat in 0..3 {
        let beat = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "message": format!("beat {heartbeat}")},
        ]}});
        world.server.patch("nodes", "", "n1", &beat).unwrap();
    }
    let tunnel = json!({"projectcalico.org/IPv4IPIPTunnelAddr": "10.244.0.1"});
    let tunnel = json!({"metadata": {"annotations": tunnel}});
    world.server.patch("nodes", "", "n1", &tunnel).unwrap();
    assert_eq!(world.next_of(Sense::Nodes).await, "n1 [192.168.0.1, 10.244.0.1]");
    world.server.remove("nodes", "", "n1").unwrap();
    assert_eq!(world.next_of(Sense::Nodes).await, "gone: n1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_watch_misses_nothing_and_lists_nothing() {
    for how in [Cut::Orderly, Cut::Abrupt] {
        let mut world = World::new(|_| {}).await;
        world.up_to(Sense::Pods, "seeing").await;
        world.server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
        assert_eq!(world.next_of(Sense::Pods).await, "shop/a [10.0.0.1]");
        world.server.faults().cut_watches(how);
        world.server.apply(pod("b", "n1", "10.0.0.2")).unwrap();
        let told = world.up_to(Sense::Pods, "shop/b [10.0.0.2]").await;
        // A cut may show as a failure or as an end; either way nothing else is told.
        let rest = &told[..told.len() - 1];
        assert!(rest.is_empty() || rest[0].starts_with("blind: ") && rest[1..] == ["seeing"]);
        let tally = world.traffic();
        assert_eq!(tally.requests(Verb::List, "pods"), 1, "{how:?} {told:?}");
        assert_eq!(tally.requests(Verb::Watch, "pods"), 2, "{how:?} {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_told_and_what_happened_meanwhile_too() {
    let mut world = World::new(|_| {}).await;
    world.up_to(Sense::Pods, "seeing").await;
    world.asked(|tally| tally.open_watches("pods") == 1);
    world.server.faults().connections(Connections::Reset).unwrap();
    let blind = world.next_of(Sense::Pods).await;
    assert!(blind.starts_with("blind: cannot list and watch pods: the API server"), "{blind}");
    // A question fails at once and says why.
    let why = world.ask("10.0.0.1").await.unwrap_err();
    assert!(why.contains("the API server cannot be reached: "), "{why}");

    world.server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    world.server.faults().connections(Connections::Serve).unwrap();
    let told = world.up_to(Sense::Pods, "shop/a [10.0.0.1]").await;
    let known = |told: &String| told.starts_with("blind: ") || told == "seeing";
    assert!(told[..told.len() - 1].iter().all(known), "{told:?}");
    assert_eq!(told[told.len() - 2], "seeing", "{told:?}");
    assert_eq!(world.traffic().requests(Verb::List, "pods"), 1, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_history_is_told_and_made_good_by_a_listing() {
    let mut world = World::new(|server| drop(server.apply(pod("a", "n1", "10.0.0.1")))).await;
    world.up_to(Sense::Pods, "seeing").await;
    world.asked(|tally| tally.open_watches("pods") == 1);
    world.server.faults().connections(Connections::Reset).unwrap();
    world.asked(|tally| tally.open_watches("pods") == 0);
    world.server.remove("pods", "shop", "a").unwrap();
    world.server.apply(pod("b", "n1", "10.0.0.1")).unwrap();
    world.server.compact();
    world.server.faults().connections(Connections::Serve).unwrap();
    let told = world.up_to(Sense::Pods, "all: shop/b [10.0.0.1]").await;
    assert!(told[0].starts_with("blind: "), "{told:?}");
    assert!(told.iter().any(|told| told.contains("the API server says 410")), "{told:?}");
    assert_eq!(world.next_of(Sense::Pods).await, "seeing");
    world.server.apply(pod("c", "n1", "10.0.0.3")).unwrap();
    assert_eq!(world.next_of(Sense::Pods).await, "shop/c [10.0.0.3]");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_told_and_made_good_by_a_listing() {
    let mut world = World::new(|_| {}).await;
    world.up_to(Sense::Pods, "seeing").await;
    world.asked(|tally| tally.open_watches("pods") == 1);
    world.server.write_line("pods", "}nonsense").unwrap();
    world.server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    let told = world.up_to(Sense::Pods, "seeing").await;
    assert!(told[0].contains("the API server sent what is no object"), "{told:?}");
    assert_eq!(told[1..], ["all: shop/a [10.0.0.1]", "seeing"]);
}

#[tokio::test]
async fn the_feature_follows_whoever_says_something_about_it() {
    let mut world = World::new(|server| drop(server.apply(calico_config(false)))).await;
    let cni = "ConfigMap kube-system/calico-config feature_control.floating_ips";
    let of_default = "FelixConfiguration default spec.floatingIPs";
    let of_node = "FelixConfiguration node.n1 spec.floatingIPs";
    let told = world.up_to(Sense::Feature, "seeing").await;
    let felix_says = "felix ? heeds ? spoofing no bypass no".to_owned();
    assert_eq!(told, [format!("off by {cni}"), felix_says, "seeing".into()]);

    world.server.apply(calico_config(true)).unwrap();
    assert_eq!(world.next_of(Sense::Feature).await, format!("on by {cni}"));
    world.server.apply(felix("default", "Disabled")).unwrap();
    assert_eq!(world.next_of(Sense::Feature).await, format!("off by {of_default}"));
    // Another node's settings are not this node's.
    world.server.apply(felix("node.n2", "Enabled")).unwrap();
    world.server.apply(felix("node.n1", "Enabled")).unwrap();
    assert_eq!(world.next_of(Sense::Feature).await, format!("on by {of_node}"));
    world.server.remove("felixconfigurations", "", "node.n1").unwrap();
    assert_eq!(world.next_of(Sense::Feature).await, format!("off by {of_default}"));
    world.server.remove("felixconfigurations", "", "default").unwrap();
    assert_eq!(world.next_of(Sense::Feature).await, format!("on by {cni}"));
    world.server.remove("configmaps", "kube-system", "calico-config").unwrap();
    assert_eq!(world.next_of(Sense::Feature).await, BY_DEFAULT);
    assert_eq!(world.next_of(Sense::Feature).await, BARE_FELIX);
}

#[tokio::test]
async fn a_cluster_without_calicos_definitions_is_known_to_have_none() {
    let mut world = World::new(|server| {
        let felix = Requests::all().kind("felixconfigurations");
        let absent = Refusal::new(404, "NotFound", "the server could not find it");
        server.faults().answer(felix, Times::UntilCleared, absent);
    })
    .await;
    assert_eq!(world.up_to(Sense::Feature, "seeing").await, [BY_DEFAULT, BARE_FELIX, "seeing"]);
    assert_eq!(world.running.counters().counts().failures, 0);
}

#[tokio::test]
async fn missing_rights_are_named_and_their_coming_is_noticed() {
    let mut world = World::new(|server| {
        let pods = Requests::all().verb(Verb::List).kind("pods");
        server.faults().answer(pods, Times::Next(1), Refusal::unauthorized());
    })
    .await;
    let told = world.up_to(Sense::Pods, "seeing").await;
    let token = "blind: cannot list and watch pods: the API server does not know this token (401): \
                 check the service account or the kubeconfig";
    assert_eq!(told, [token, "all: ", "seeing"]);

    let mut world = World::new(|server| {
        let felix = Requests::all().kind("felixconfigurations");
        server.faults().answer(felix, Times::UntilCleared, Refusal::forbidden());
    })
    .await;
    let right = "blind: cannot list and watch felixconfigurations: permission is missing (403): \
                 apply the agent's ClusterRole and its binding";
    assert_eq!(world.next_of(Sense::Feature).await, right);
    world.server.faults().clear();
    let told = world.up_to(Sense::Feature, "seeing").await;
    assert_eq!(told, [BY_DEFAULT, BARE_FELIX, "seeing"]);
}

#[tokio::test]
async fn a_question_is_answered_by_all_who_show_the_address() {
    let mut world = World::new(|server| {
        server.apply(pod("a", "n2", "10.0.0.1")).unwrap();
        let mut finished = pod("b", "n3", "10.0.0.1");
        finished["status"]["phase"] = json!("Succeeded");
        server.apply(finished).unwrap();
        let mut second = pod("c", "n2", "10.0.0.2");
        second["status"]["podIPs"] = json!([{"ip": "10.0.0.2"}, {"ip": "fd00::2"}]);
        server.apply(second).unwrap();
    })
    .await;
    let all = world.ask("10.0.0.1").await.unwrap();
    assert_eq!(all, ["shop/a [10.0.0.1]", "shop/b [10.0.0.1] finished"]);
    assert_eq!(world.ask("10.0.0.9").await, Ok(vec![]));
    // The server compares the first address of a pod only.
    assert_eq!(world.ask("10.0.0.2").await.unwrap(), ["shop/c [10.0.0.2, fd00::2]"]);
    assert_eq!(world.ask("fd00::2").await, Ok(vec![]));
    let lists = Requests::all().verb(Verb::List).kind("pods");
    world.server.faults().answer(lists, Times::Next(1), Refusal::internal_error());
    let why = world.ask("10.0.0.1").await.unwrap_err();
    assert!(why.starts_with("cannot list pods: the API server says 500"), "{why}");
    let counts = world.running.counters().counts();
    assert_eq!((counts.questions, counts.unanswered), (5, 1));
}

#[tokio::test]
async fn a_block_is_read_as_it_is_now() {
    let mut world = World::new(|server| {
        server.apply(block("10-0-0-0-30", "10.0.0.0/30")).unwrap();
        server.apply(block("fd00---126", "fd00::/126")).unwrap();
    })
    .await;
    for (cidr, address) in [("10.0.0.0/30", "10.0.0.1"), ("fd00::/126", "fd00::1")] {
        let block = world.ask_block(cidr).await.unwrap().unwrap();
        let [(of, Allocation::Pod { owner, heir: None })] = &block.allocations[..] else {
            panic!("{block:?}");
        };
        assert_eq!((of.to_string(), owner.key.to_string()), (address.into(), "shop/cart".into()));
        assert_eq!(block.affinity.unwrap().to_string(), "n2");
    }
    let free = json!({"spec": {"allocations": [null, null, null, null]}});
    world.server.patch("ipamblocks", "", "10-0-0-0-30", &free).unwrap();
    let block = world.ask_block("10.0.0.0/30").await.unwrap().unwrap();
    assert_eq!(block.allocations, []);
    let deleted = json!({"spec": {"deleted": true}});
    world.server.patch("ipamblocks", "", "10-0-0-0-30", &deleted).unwrap();
    assert_eq!(world.ask_block("10.0.0.0/30").await, Ok(None));
    assert_eq!(world.ask_block("10.0.0.4/30").await, Ok(None));

    let gets = || Requests::all().verb(Verb::Get).kind("ipamblocks");
    for (refusal, why) in [
        (Refusal::forbidden(), "permission is missing (403)"),
        (Refusal::internal_error(), "the API server says 500"),
    ] {
        world.server.faults().answer(gets(), Times::Next(1), refusal);
        let told = world.ask_block("10.0.0.0/30").await.unwrap_err();
        assert!(told.starts_with(&format!("cannot get ipamblocks: {why}")), "{told}");
    }
    world.server.faults().answer(gets(), Times::Next(1), Refusal::unknown_path());
    let told = world.ask_block("10.0.0.0/30").await.unwrap_err();
    assert!(told.ends_with("install Calico's resource definitions"), "{told}");
    let counts = world.running.counters().counts();
    assert_eq!((counts.questions, counts.block_questions, counts.unanswered), (8, 8, 3));
}

#[tokio::test]
async fn pools_are_told_as_they_change_and_whose_the_addresses_are() {
    let vxlan =
        |size: u8| json!({"cidr": "10.244.0.0/16", "blockSize": size, "vxlanMode": "Always"});
    let mut world = World::new(|server| {
        server.apply(calico("IPPool", "a", &vxlan(26))).unwrap();
        server.apply(block("10-244-0-0-30", "10.244.0.0/30")).unwrap();
    })
    .await;
    let told = world.up_to(Sense::Pools, "seeing").await;
    assert_eq!(told, ["all: a 10.244.0.0/16 /26 Contained", "calico", "seeing"]);
    let bgp = calico("IPPool", "b", &json!({"cidr": "fd00::/48", "ipipMode": "Never"}));
    world.server.apply(bgp).unwrap();
    let both = "all: a 10.244.0.0/16 /26 Contained, b fd00::/48 /122 Bgp";
    assert_eq!(world.next_of(Sense::Pools).await, both);
    // What changes nothing that matters is not told.
    let disabled = json!({"spec": {"disabled": true}});
    world.server.patch("ippools", "", "a", &disabled).unwrap();
    world.server.remove("ipamblocks", "", "10-244-0-0-30").unwrap();
    world.server.remove("ippools", "", "b").unwrap();
    // A look for blocks follows each change of pools, and there are none any more. The one that
    // follows the pool that came may be late enough to see that.
    let mut told = [world.next_of(Sense::Pools).await, world.next_of(Sense::Pools).await];
    told.sort();
    assert_eq!(told, ["all: a 10.244.0.0/16 /26 Contained", "other"]);
}

#[tokio::test]
async fn only_what_changes_an_address_is_told_of_a_service() {
    let mut world = World::new(|server| drop(server.apply(service("cart", "10.96.0.7")))).await;
    let told = world.up_to(Sense::Services, "seeing").await;
    assert_eq!(told, ["all: shop/cart [10.96.0.7] [] [] [80]", "seeing"]);
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    world.server.patch("services", "shop", "cart", &labels).unwrap();
    let external = json!({"spec": {"externalIPs": ["192.0.2.1"]}});
    world.server.patch("services", "shop", "cart", &external).unwrap();
    assert_eq!(world.next_of(Sense::Services).await, "shop/cart [10.96.0.7] [192.0.2.1] [] [80]");
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}});
    world.server.set_status("services", "shop", "cart", &status).unwrap();
    assert_eq!(
        world.next_of(Sense::Services).await,
        "shop/cart [10.96.0.7] [192.0.2.1] [198.51.100.1] [80]"
    );
    world.server.remove("services", "shop", "cart").unwrap();
    assert_eq!(world.next_of(Sense::Services).await, "gone: shop/cart");
}

#[tokio::test]
async fn a_felix_without_the_switch_is_known_by_its_version() {
    let version =
        |version: &str| calico("ClusterInformation", "default", &json!({"calicoVersion": version}));
    let mut world = World::new(|server| {
        server.apply(version("v3.22.1")).unwrap();
        server.apply(felix("default", "Enabled")).unwrap();
        server.apply(calico_config(false)).unwrap();
    })
    .await;
    let off = "off by ConfigMap kube-system/calico-config feature_control.floating_ips \
               (Calico v3.22.1 does not heed FelixConfiguration spec.floatingIPs)";
    let told = world.up_to(Sense::Feature, "seeing").await;
    assert_eq!(told, [off, "felix v3.22.1 heeds no spoofing no bypass no", "seeing"]);
    world.server.apply(version("v3.22.2")).unwrap();
    let on = "on by FelixConfiguration default spec.floatingIPs";
    assert_eq!(world.next_of(Sense::Feature).await, on);
    let heeds = "felix v3.22.2 heeds yes spoofing no bypass no";
    assert_eq!(world.next_of(Sense::Feature).await, heeds);
}

#[tokio::test]
async fn each_refusal_blinds_its_own_sense_only() {
    for (kind, blinded) in [
        ("services", Sense::Services),
        ("ippools", Sense::Pools),
        ("ipamblocks", Sense::Pools),
        ("clusterinformations", Sense::Feature),
        ("configmaps", Sense::Feature),
        ("nodes", Sense::Nodes),
        ("pods", Sense::Pods),
    ] {
        let mut world = World::new(|server| {
            let all = Requests::all().kind(kind);
            server.faults().answer(all, Times::UntilCleared, Refusal::forbidden());
        })
        .await;
        let mut seeing = BTreeSet::new();
        let mut blind = BTreeSet::new();
        while seeing.len() + blind.len() < 5 {
            match world.next().await {
                What::Blind(sense, None) => drop(seeing.insert(sense)),
                What::Blind(sense, Some(why)) => {
                    assert!(why.contains(kind) && why.contains("(403)"), "{why}");
                    blind.insert(sense);
                }
                _ => {}
            }
        }
        assert_eq!(Vec::from_iter(blind), [blinded], "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind() {
    let mut world = World::new(|_| {}).await;
    world.asked(|tally| {
        let open = |kind| tally.open_watches(kind);
        let calico = ["felixconfigurations", "clusterinformations", "ippools"];
        let own = ["pods", "nodes", "services", "configmaps", "floatingipallowances"];
        calico.into_iter().chain(own).map(open).sum::<u64>() == 10
    });
    world.rx.close();
    while let Some(ended) = world.running.ended().await {
        ended.unwrap();
    }
    world.asked(|tally| tally.open_watches("pods") + tally.open_watches("nodes") == 0);
}
