//! A node with two attackers and many victims elsewhere, its agent, and what they do.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use detector_tests::agent::{Agent, Heard};
use detector_tests::real::http::{Request, over_unix};
use detector_tests::scenario::node::Node;
use detector_tests::scenario::step::Step;
use detector_tests::scenario::words::{Words, interface};
use detector_tests::scenario::{Family, Scenario};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long anything may take that is certain to come.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// Pods that attack.
pub(crate) const EVIL: [&str; 3] = ["default/evil", "default/evil-two", "default/evil-three"];

/// What a node is made of; `${VICTIMS}` is replaced by addresses of another node, which belong to it
/// beyond doubt, so that nobody has to be asked for.
const NODE: &str = "
id: operating
title: A node for those who operate the agent.
families: [ipv4]
addresses:
  cart: [10.244.1.5, 'fd00:10:244:1::5']
  evil: [10.244.1.66, 'fd00:10:244:1::66']
  two: [10.244.1.67, 'fd00:10:244:1::67']
  three: [10.244.1.68, 'fd00:10:244:1::68']
  db: [10.244.7.9, 'fd00:10:244:7::9']
  victim: [10.99.0.1, 'fd00:10:99::1']
nodes:
  node-b: [${VICTIMS}]
given:
  - pod: {name: shop/cart, addresses: [cart]}
  - pod: {name: default/evil, addresses: [evil]}
  - pod: {name: default/evil-two, addresses: [two]}
  - pod: {name: default/evil-three, addresses: [three]}
  - pod: {name: shop/db, node: node-b, addresses: [db]}
steps: []
expect: []
";

/// A node, and a folder for what its agent keeps.
pub(crate) struct Stage {
    pub(crate) node: Node<'static>,
    pub(crate) words: Words<'static>,
    pub(crate) folder: TempDir,
}

impl Stage {
    /// A node with so many victims, as [`Self::victim`] counts them.
    pub(crate) fn new(victims: u32) -> Self {
        Self::with(victims, Node::new)
    }

    pub(crate) fn with(
        victims: u32,
        node: impl FnOnce(Words<'static>) -> anyhow::Result<Node<'static>>,
    ) -> Self {
        let names: Vec<String> = (0..victims).map(|n| format!("victim+{n}")).collect();
        let text = NODE.replace("${VICTIMS}", &names.join(", "));
        // It lives as long as the test.
        let scenario: &'static Scenario = Box::leak(Box::new(Scenario::parse(&text).unwrap()));
        let words = Words { scenario, family: Family::Ipv4 };
        let mut stage =
            Self { node: node(words).unwrap(), words, folder: tempfile::tempdir().unwrap() };
        for step in &scenario.given {
            stage.step(step);
        }
        stage
    }

    pub(crate) fn step(&mut self, step: &Step) {
        self.node.step(self.words, step).unwrap();
    }

    pub(crate) fn ip(&mut self, arguments: &str) {
        self.step(&Step::Ip(arguments.to_owned()));
    }

    /// The address of a victim.
    pub(crate) fn victim(n: u32) -> String {
        let address = u32::from(std::net::Ipv4Addr::new(10, 99, 0, 1)) + n;
        std::net::Ipv4Addr::from(address).to_string()
    }

    /// The key of the finding about a victim's route to an attacker.
    pub(crate) fn key(n: u32, attacker: &str) -> String {
        format!("{}/32 dev {}", Self::victim(n), interface(attacker).unwrap())
    }

    /// An attacker takes these victims' addresses.
    pub(crate) fn attack(&self, victims: std::ops::Range<u32>, attacker: &str) {
        self.routes("add", victims, attacker);
    }

    /// It gives them back.
    pub(crate) fn relent(&self, victims: std::ops::Range<u32>, attacker: &str) {
        self.routes("del", victims, attacker);
    }

    fn routes(&self, verb: &str, victims: std::ops::Range<u32>, attacker: &str) {
        let dev = interface(attacker).unwrap();
        let commands: Vec<String> =
            victims.map(|n| format!("route {verb} {}/32 dev {dev}", Self::victim(n))).collect();
        self.node.namespace().ip_batch(false, &commands).unwrap();
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Starts the agent with its socket in the folder, and with more in its configuration.
    pub(crate) fn start(&self, more: &Value) -> Agent {
        let mut all = json!({ "socket": self.socket() });
        for (key, value) in more.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        self.node.start_agent_with(self.words, "auto", &all).unwrap()
    }

    /// Asks the agent over its socket, as soon as it is there: an agent that was killed leaves one
    /// behind which nobody answers, and the next has to make its own first.
    pub(crate) fn ask(&self, path: &str) -> Value {
        let end = Instant::now() + LONG;
        loop {
            match over_unix(&self.socket(), &Request::get(path)) {
                Ok(answer) => return answer.json().unwrap(),
                Err(error) => assert!(Instant::now() < end, "{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks again and again until the answer is good.
    pub(crate) fn ask_until(&self, path: &str, good: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LONG;
        loop {
            let answer = self.ask(path);
            if good(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "{path} never says what it should: {answer:#}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The numbers of a sink, when they are good.
    pub(crate) fn sink_until(&self, name: &str, good: impl Fn(&Value) -> bool) -> Value {
        let of = |status: &Value| {
            let sinks = status["sinks"].as_array().into_iter().flatten();
            sinks.clone().find(|sink| sink["name"] == name).cloned().unwrap_or_default()
        };
        of(&self.ask_until("/v1/status", |status| good(&of(status))))
    }
}

/// Waits until the agent tells a finding of this key in this state.
pub(crate) fn hear(agent: &Agent, key: &str, state: &str) -> Heard {
    loop {
        let heard = agent.next_finding(LONG).unwrap().expect("it is never told");
        if heard.finding["key"] == key && heard.finding["state"] == state {
            return heard;
        }
    }
}

/// The agent's program with these arguments: what it wrote, and whether it said that all went well.
pub(crate) fn detector(arguments: &[&str]) -> (String, String, Option<i32>) {
    let output = std::process::Command::new(detector_tests::agent::program().unwrap())
        .args(arguments)
        .env("NO_COLOR", "1")
        .env_remove("NODE_NAME")
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code())
}

/// What is degraded by an agent's status, but for what it cannot do on a host that lets no functions be
/// traced.
pub(crate) fn lacks(status: &Value) -> Vec<String> {
    let all = status["degraded"].as_array().unwrap().iter();
    let names = all.map(|one| one["capability"].as_str().unwrap().to_owned());
    names.filter(|name| !name.starts_with("refused-")).collect()
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
