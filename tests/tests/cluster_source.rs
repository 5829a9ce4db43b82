//! The agent's cluster source against the emulated API server: what the engine is told of a cluster
//! that lives, and of an API server that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use detector::cli::RunArgs;
use detector::config::{Config, File};
use detector::source::cluster::{Cluster, Running};
use detector_core::observation::{Observation, Question, Sense, What};
use detector_core::policy::Feature;
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
        self.questions.send(Question { address }).await.unwrap();
        loop {
            if let What::Answer(answer) = self.next().await {
                assert_eq!(answer.address, address);
                let names = |pods: Vec<_>| pods.iter().map(pod_in_short).collect();
                return answer.claimants.map(names).map_err(String::from);
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

#[tokio::test]
async fn the_beginning_is_all_there_is_and_only_what_concerns_this_node() {
    let mut world = World::new(|server| {
        server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
        server.apply(pod("b", "n2", "10.0.0.2")).unwrap();
        server.apply(node("n1", "192.168.0.1")).unwrap();
        server.apply(node("n2", "192.168.0.2")).unwrap();
    })
    .await;
    let (mut pods, mut nodes, mut feature) = (vec![], vec![], vec![]);
    while [&pods, &nodes, &feature].iter().any(|told| told.len() < 2) {
        let (sense, told) = in_short(&world.next().await).unwrap();
        match sense {
            Sense::Pods => pods.push(told),
            Sense::Nodes => nodes.push(told),
            _ => feature.push(told),
        }
    }
    assert_eq!(pods, ["all: shop/a [10.0.0.1]", "seeing"]);
    assert_eq!(nodes, ["all: n1 [192.168.0.1], n2 [192.168.0.2]", "seeing"]);
    assert_eq!(feature, [BY_DEFAULT, "seeing"]);

    // Five lists, five watches, and nothing that the server does not have.
    let tally = world.traffic();
    let counts = world.running.counters().counts();
    assert_eq!((tally.all_requests(), counts.requests, counts.listings), (10, 10, 5));
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
    assert_eq!(told, [format!("off by {cni}"), "seeing".into()]);

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
}

#[tokio::test]
async fn a_cluster_without_calicos_definitions_is_known_to_have_none() {
    let mut world = World::new(|server| {
        let felix = Requests::all().kind("felixconfigurations");
        let absent = Refusal::new(404, "NotFound", "the server could not find it");
        server.faults().answer(felix, Times::UntilCleared, absent);
    })
    .await;
    assert_eq!(world.up_to(Sense::Feature, "seeing").await, [BY_DEFAULT, "seeing"]);
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
    assert_eq!(world.up_to(Sense::Feature, "seeing").await, [BY_DEFAULT, "seeing"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_behind() {
    let mut world = World::new(|_| {}).await;
    world.asked(|tally| {
        let open = |kind| tally.open_watches(kind);
        open("pods") + open("nodes") + open("felixconfigurations") + open("configmaps") == 5
    });
    world.rx.close();
    while let Some(ended) = world.running.ended().await {
        ended.unwrap();
    }
    world.asked(|tally| tally.open_watches("pods") + tally.open_watches("nodes") == 0);
}
