//! The allow-list in force while the cluster's objects and the configuration file change: the real
//! cluster source and the real policy, as the agent wires them, against the emulated API server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use detector::cli::RunArgs;
use detector::config;
use detector::policy::Policy;
use detector::source::cluster::{Cluster, Running};
use detector_core::observation::{Observation, Sense, What};
use detector_core::policy::{AllowList, Allowance};
use detector_core::route::Prefix;
use detector_tests::apiserver::ApiServer;
use detector_tests::apiserver::fault::{Cut, Requests, Times};
use detector_tests::apiserver::refusal::Refusal;
use detector_tests::apiserver::traffic::{Tally, Verb};
use jiff::Timestamp;
use nix::unistd::mkdtemp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How long anything may take that is certain to come: a status waits up to ten seconds, what failed
/// up to thirty.
const LONG: Duration = Duration::from_mins(1);

const PLURAL: &str = "floatingipallowances";

/// A server, and an agent's source and policy.
struct World {
    server: ApiServer,
    folder: PathBuf,
    rx: mpsc::Receiver<Observation>,
    running: Running,
    policy: Policy,
    first: AllowList,
}

impl World {
    /// With this configuration file.
    async fn new(text: &str, prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::on_loopback().unwrap();
        prepare(&server);
        let folder = mkdtemp(&std::env::temp_dir().join("detector-XXXXXX")).unwrap();
        fs::write(folder.join("kubeconfig"), server.kubeconfig()).unwrap();
        fs::write(folder.join("config.yaml"), text).unwrap();
        let args = RunArgs {
            config: Some(folder.join("config.yaml")),
            node_name: Some("n1".into()),
            kubeconfig: Some(folder.join("kubeconfig")),
            ..RunArgs::default()
        };
        let config = config::load(&args).unwrap();
        let (tx, rx) = mpsc::channel(1_024);
        // Nobody asks anything.
        let (_, asked) = mpsc::channel(1);
        let mut running = Cluster::connect(&config).await.unwrap().start(&tx, asked);
        let (policy, first) = Policy::start(&config, &args, running.grants(), &tx);
        Self { server, folder, rx, running, policy, first }
    }

    /// What is told next of the allow-list: the list, or why its part cannot be seen.
    async fn next(&mut self) -> Result<AllowList, Option<String>> {
        loop {
            let next = tokio::time::timeout(LONG, self.rx.recv()).await;
            match next.expect("nothing was told").expect("the policy goes on").what {
                What::AllowList(list) => return Ok(list),
                What::Blind(Sense::Allowances, why) => return Err(why.map(String::from)),
                _ => {}
            }
        }
    }

    async fn list(&mut self) -> AllowList {
        self.next().await.expect("a list is told next")
    }

    async fn seeing(&mut self) {
        assert_eq!(self.next().await, Err(None), "that it sees is told next");
    }

    fn patch(&self, name: &str, spec: &Value) {
        self.server.patch(PLURAL, "", name, &json!({ "spec": spec })).unwrap();
    }

    /// Waits until the status of an object has been written; gives its condition.
    async fn condition(&self, name: &str, reason: &str) -> Value {
        let end = tokio::time::Instant::now() + LONG;
        loop {
            let object = self.server.get(PLURAL, "", name).unwrap();
            let condition = object["status"]["conditions"][0].clone();
            if condition["reason"] == reason
                && object["status"]["observedGeneration"] == object["metadata"]["generation"]
            {
                return condition;
            }
            assert!(tokio::time::Instant::now() < end, "{reason} was not written: {object}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn patches(&self) -> u64 {
        self.server.traffic().now().requests(Verb::Patch, PLURAL)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn object(name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "route-hijack-detector.io/v1", "kind": "FloatingIPAllowance",
        "metadata": {"name": name},
        "spec": {
            "cidr": cidr, "namespace": "edge", "serviceAccount": "gateway", "reason": "ticket 42",
        },
    })
}

/// An entry as it must come out.
fn entry(origin: &str, cidr: &str, reason: Option<&str>) -> Allowance {
    let (address, length) = cidr.split_once('/').unwrap();
    Allowance {
        cidr: Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap(),
        namespace: "edge".into(),
        service_account: "gateway".into(),
        origin: origin.into(),
        reason: reason.map(Into::into),
    }
}

fn list(entries: &[(&str, &str)]) -> AllowList {
    let entry = |(name, cidr): &(&str, &str)| {
        entry(&format!("floatingipallowance {name}"), cidr, Some("ticket 42"))
    };
    AllowList::new(entries.iter().map(entry).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_in_force_from_its_creation_to_its_deletion() {
    let mut world = World::new("", |_| {}).await;
    assert_eq!(world.first, AllowList::default());
    world.seeing().await;
    world.server.apply(object("vip", "192.0.2.0/28")).unwrap();
    assert_eq!(world.list().await, list(&[("vip", "192.0.2.0/28")]));
    let condition = world.condition("vip", "Accepted").await;
    assert_eq!((&condition["status"], &condition["message"]), (&json!("True"), &json!("in force")));

    // An invalid version: the old one stays, and the status says why.
    world.patch("vip", &json!({"cidr": "192.0.2.1/28"}));
    let condition = world.condition("vip", "Invalid").await;
    let message = condition["message"].as_str().unwrap();
    let why = "spec.cidr \"192.0.2.1/28\" has host bits set: did you mean 192.0.2.0/28?; an \
               earlier valid version stays in force";
    assert!(message.starts_with(why), "{message}");
    assert_eq!(world.running.counters().counts().rejections, 1);

    // Nothing was told of it: what is told next is the valid version after it.
    world.patch("vip", &json!({"cidr": "192.0.2.7"}));
    assert_eq!(world.list().await, list(&[("vip", "192.0.2.7/32")]));
    world.server.apply(object("another", "2001:db8::/64")).unwrap();
    let both = list(&[("another", "2001:db8::/64"), ("vip", "192.0.2.7/32")]);
    assert_eq!(world.list().await, both);
    world.condition("vip", "Accepted").await;
    world.server.remove(PLURAL, "", "vip").unwrap();
    assert_eq!(world.list().await, list(&[("another", "2001:db8::/64")]));
    let counts = world.running.counters().counts();
    assert_eq!((counts.rejections, counts.unwritten, counts.failures), (1, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_expires_by_itself() {
    let mut world = World::new("", |server| {
        let mut expired = object("old", "192.0.2.1");
        expired["spec"]["expires"] = json!("2020-01-01T00:00:00Z");
        server.apply(expired).unwrap();
    })
    .await;
    world.seeing().await;
    let mut short = object("short", "192.0.2.2");
    let end = Timestamp::now() + Duration::from_millis(1_500);
    short["spec"]["expires"] = json!(end.to_string());
    world.server.apply(short).unwrap();
    assert_eq!(world.list().await, list(&[("short", "192.0.2.2/32")]));
    assert_eq!(world.list().await, AllowList::default());
    assert!(Timestamp::now() >= end);
    for name in ["old", "short"] {
        let condition = world.condition(name, "Expired").await;
        assert_eq!(condition["status"], "False", "{condition}");
    }
    // A later end brings it back at once.
    world.patch("old", &json!({"expires": "2199-01-01T00:00:00Z"}));
    assert_eq!(world.list().await, list(&[("old", "192.0.2.1/32")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_agents_few_write_and_all_agree() {
    let mut world = World::new("", |_| {}).await;
    world.seeing().await;
    let config = config::load(&RunArgs {
        node_name: Some("n2".into()),
        kubeconfig: Some(world.folder.join("kubeconfig")),
        ..RunArgs::default()
    })
    .unwrap();
    let (tx, _rx) = mpsc::channel(1_024);
    let mut others = Vec::new();
    for _ in 0..9 {
        let (_, asked) = mpsc::channel(1);
        others.push(Cluster::connect(&config).await.unwrap().start(&tx, asked));
    }
    let open = |tally: &Tally| tally.open_watches(PLURAL) == 10;
    tokio::task::block_in_place(|| world.server.traffic().wait(LONG, open)).unwrap();
    world.server.apply(object("vip", "192.0.2.0/28")).unwrap();
    world.condition("vip", "Accepted").await;
    // All of them have had their time by then; who comes later sees that it was said.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!((1..=3).contains(&world.patches()), "{} patches", world.patches());
    drop(others);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_to_write_is_counted_and_blinds_nothing() {
    let mut world = World::new("", |server| {
        let patches = Requests::all().verb(Verb::Patch).kind(PLURAL);
        server.faults().answer(patches, Times::UntilCleared, Refusal::forbidden());
    })
    .await;
    world.seeing().await;
    world.server.apply(object("vip", "192.0.2.0/28")).unwrap();
    assert_eq!(world.list().await, list(&[("vip", "192.0.2.0/28")]));
    let patched = |tally: &Tally| tally.requests(Verb::Patch, PLURAL) > 0;
    tokio::task::block_in_place(|| world.server.traffic().wait(LONG, patched)).unwrap();
    world.server.apply(object("another", "192.0.2.16/28")).unwrap();
    let both = list(&[("another", "192.0.2.16/28"), ("vip", "192.0.2.0/28")]);
    assert_eq!(world.list().await, both);
    while world.running.counters().counts().unwritten == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((world.patches(), world.running.counters().counts().statuses), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn blindness_is_told_and_takes_nothing_away() {
    let mut world = World::new("", |server| drop(server.apply(object("vip", "192.0.2.1")))).await;
    assert_eq!(world.list().await, list(&[("vip", "192.0.2.1/32")]));
    world.seeing().await;
    let all = Requests::all().kind(PLURAL);
    world.server.faults().answer(all, Times::UntilCleared, Refusal::forbidden());
    world.server.faults().cut_watches(Cut::Abrupt);
    let why = loop {
        // The broken connection may be told first.
        let why = world.next().await.unwrap_err().unwrap();
        if why.contains("403") {
            break why;
        }
    };
    assert_eq!(
        why,
        "cannot list and watch floatingipallowances: permission is missing (403): \
         apply the agent's ClusterRole and its binding"
    );
    world.server.faults().clear();
    world.seeing().await;
    world.server.remove(PLURAL, "", "vip").unwrap();
    assert_eq!(world.list().await, AllowList::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_definition_is_not_installed_all_is_well() {
    let mut world = World::new("", |server| {
        let absent = Refusal::new(404, "NotFound", "the server could not find it");
        server.faults().answer(Requests::all().kind(PLURAL), Times::UntilCleared, absent);
    })
    .await;
    world.seeing().await;
    let counts = world.running.counters().counts();
    assert_eq!((counts.failures, counts.rejections), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_and_the_cluster_make_one_list() {
    let file = |address: &str, expires: &str| {
        format!(
            "floatingIPs:\n  allow:\n  - cidr: {address}/32\n    namespace: edge\n    \
             serviceAccount: gateway\n{expires}"
        )
    };
    let mut world = World::new(&file("198.51.100.1", ""), |server| {
        server.apply(object("vip", "192.0.2.1")).unwrap();
    })
    .await;
    let configured = |cidr: &str| entry("configuration", cidr, None);
    let vip = entry("floatingipallowance vip", "192.0.2.1/32", Some("ticket 42"));
    assert_eq!(world.first, AllowList::new(vec![configured("198.51.100.1/32")]));
    let both = |cidr: &str| AllowList::new(vec![configured(cidr), vip.clone()]);
    assert_eq!(world.list().await, both("198.51.100.1/32"));
    world.seeing().await;

    let path = world.folder.join("config.yaml");
    fs::write(&path, file("198.51.100.2", "")).unwrap();
    assert_eq!(world.list().await, both("198.51.100.2/32"));
    // A file that is refused changes nothing; the next good one is told next.
    fs::write(&path, file("198.51.100.0.1", "")).unwrap();
    while world.policy.reloads().refused() == 0 {
        tokio::task::yield_now().await;
    }
    fs::write(&path, file("198.51.100.3", "    expires: 2020-01-01T00:00:00Z\n")).unwrap();
    assert_eq!(world.list().await, AllowList::new(vec![vip.clone()]));
    assert_eq!((world.policy.reloads().ok(), world.policy.reloads().refused()), (2, 1));
}
