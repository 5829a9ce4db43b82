//! The cluster of a real kube-apiserver: that tests can rely on it, and that the agent's source can
//! live with it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use detector::cli::RunArgs;
use detector::config::{Config, File};
use detector::source::cluster::{Cluster as Sources, Running};
use detector_core::observation::{Answer, Observation, Question, Reply, Sense, What};
use detector_core::workload::Pod;
use detector_tests::agent::MemoryFile;
use detector_tests::cluster::objects::Objects;
use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use detector_tests::relay::Relay;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::block_in_place;

/// How long anything may take that is certain to come; the source waits up to half a minute after
/// failures.
const LONG: Duration = Duration::from_mins(1);

#[test]
fn a_cluster_is_driven_stopped_and_started_again_and_leaves_nothing() {
    let Some(programs) = Programs::find_or_skip("the cluster of a real kube-apiserver") else {
        return;
    };
    let cluster = Cluster::start(programs).unwrap();
    let folder = cluster.kubeconfig_path().parent().unwrap().to_path_buf();

    // By kubectl, as people do.
    cluster.kubectl(&["create", "namespace", "shop"]).unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": { "nodeName": "node-a", "containers": [{ "name": "main", "image": "one" }] },
    });
    cluster.kubectl_fed(&["create", "--filename=-"], &pod.to_string()).unwrap();
    let annotation = r#"cni.projectcalico.org/floatingIPs=["10.0.0.9"]"#;
    cluster.kubectl(&["annotate", "--overwrite", "-n=shop", "pod", "cart", annotation]).unwrap();
    let status = r#"{"status":{"phase":"Running","podIP":"10.0.0.1"}}"#;
    let patch = ["patch", "-n=shop", "pod", "cart", "--subresource=status", "--type=merge", "-p"];
    cluster.kubectl(&[&patch[..], &[status]].concat()).unwrap();
    let wrong = cluster.kubectl(&["get", "-n=shop", "pod", "nobody"]).unwrap_err().to_string();
    assert!(wrong.contains("NotFound"), "{wrong}");

    // By requests, which is quicker.
    let objects = cluster.objects();
    let read = objects.get("pods", "shop", "cart").unwrap();
    assert_eq!(read["status"]["podIP"], "10.0.0.1");
    let mut block = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
        "metadata": { "name": "10-244-1-0-26" }, "spec": { "cidr": "10.244.1.0/26" },
    });
    objects.apply(block.clone()).unwrap();
    block["spec"] = json!({ "cidr": "10.244.1.0/26", "affinity": "host:node-a" });
    assert_eq!(objects.apply(block.clone()).unwrap()["spec"], block["spec"]);

    // The agent may do what its role says.
    let agent = Objects::connect(&cluster.kubeconfig(User::Agent, cluster.addr())).unwrap();
    agent.get("ipamblocks", "", "10-244-1-0-26").unwrap();
    let forbidden = agent.get("configmaps", "shop", "any").unwrap_err();
    assert!(format!("{forbidden:#}").contains("forbidden"), "{forbidden:#}");

    // A server that was killed comes back on its port with all it had.
    let before = cluster.pid();
    cluster.stop();
    assert_eq!(cluster.pid(), None);
    assert!(TcpStream::connect(cluster.addr()).is_err());
    cluster.restart().unwrap();
    assert_ne!(cluster.pid(), before);
    assert_eq!(objects.get("pods", "shop", "cart").unwrap(), read);

    objects.clear().unwrap();
    assert!(objects.get("pods", "shop", "cart").is_err());
    assert!(objects.get("ipamblocks", "", "10-244-1-0-26").is_err());
    assert!(objects.get("services", "default", "kubernetes").is_ok());

    let addr = cluster.addr();
    drop(cluster);
    assert!(!folder.exists());
    assert!(TcpStream::connect(addr).is_err());
}

/// The agent's cluster source on node n1, and the relay by which it reaches the server.
struct Source {
    relay: Relay,
    rx: mpsc::Receiver<Observation>,
    questions: mpsc::Sender<Question>,
    _running: Running,
}

impl Source {
    async fn new(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(listener, cluster.addr()).unwrap();
        let kubeconfig = MemoryFile::new(&cluster.kubeconfig(User::Agent, relay.addr())).unwrap();
        let args = RunArgs {
            node_name: Some("n1".into()),
            kubeconfig: Some(kubeconfig.path().into()),
            ..RunArgs::default()
        };
        let config = Config::resolve(&args, &File::default()).unwrap();
        let (tx, rx) = mpsc::channel(256);
        let (questions, asked) = mpsc::channel(8);
        let running = Sources::connect(&config).await.unwrap().start(&tx, asked);
        Self { relay, rx, questions, _running: running }
    }

    /// Waits until something is told.
    async fn until(&mut self, wanted: impl Fn(&What) -> bool) {
        let told =
            async { while !wanted(&self.rx.recv().await.expect("the source goes on").what) {} };
        tokio::time::timeout(LONG, told).await.expect("it was never told");
    }

    async fn until_pods_are(&mut self, seen: bool) {
        let is = |what: &What| matches!(what, What::Blind(Sense::Pods, reason) if reason.is_none() == seen);
        self.until(is).await;
    }

    async fn until_told_of(&mut self, name: &str) {
        let is = |pod: &Pod| pod.key.name() == name;
        self.until(|what| match what {
            What::PodApplied(pod) => is(pod),
            What::PodsReset(pods) => pods.iter().any(is),
            _ => false,
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_source_outlives_cut_connections_and_a_killed_server() {
    let Some(programs) = Programs::find_or_skip("the agent's source with a real API server") else {
        return;
    };
    let cluster = block_in_place(|| Cluster::start(programs)).unwrap();
    let create = |name: &str| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "shop", "name": name },
            "spec": { "nodeName": "n1", "containers": [{ "name": "main", "image": "one" }] },
            "status": { "phase": "Running", "podIP": "10.0.0.1" },
        });
        block_in_place(|| cluster.objects().create(&pod)).unwrap();
    };
    block_in_place(|| cluster.objects().make_namespace("shop")).unwrap();
    create("a");
    let mut source = Source::new(&cluster).await;
    source.until_told_of("a").await;
    source.until_pods_are(true).await;

    let address = "10.0.0.1".parse().unwrap();
    source.questions.send(Question::Claimants(address)).await.unwrap();
    let is_a = |pods: &Vec<Pod>| pods.iter().any(|pod| pod.key.name() == "a");
    source
        .until(|what| match what {
            What::Answer(Answer { reply: Reply::Claimants(_, pods), .. }) => {
                pods.as_ref().is_ok_and(is_a)
            }
            _ => false,
        })
        .await;

    let before = source.relay.counts();
    assert!(before.to_server > 0 && before.to_clients > 0, "{before:?}");
    source.relay.cut().unwrap();
    create("b");
    source.until_told_of("b").await;
    assert!(source.relay.counts().connections > before.connections);

    cluster.stop();
    source.until_pods_are(false).await;
    block_in_place(|| cluster.restart()).unwrap();
    source.until_pods_are(true).await;
    create("c");
    source.until_told_of("c").await;
}
