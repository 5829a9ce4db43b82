//! Each privilege is there for a reason: without it something is missing, and the agent says what.
//!
//! The privileges are those of the rendered manifests, and what is missing without each is what the table
//! of docs/privileges.md says: a privilege without a row fails, and so does a row without a privilege.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use detector_tests::agent::Agent;
use detector_tests::container::{Pod, Runtime};
use detector_tests::deploy::role_without;
use detector_tests::real::found_or_skip;
use detector_tests::real::http::{Request, over_unix};
use detector_tests::scenario::node::Node;
use detector_tests::scenario::step::Step;
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{Family, Scenario};
use serde_json::{Value, json};

use super::stage::{Stage, turn};

/// Two pods of another node, whose addresses a pod of this one takes, one after the other.
const WORLD: &str = "
id: privileges
title: A node whose agent uses all that it may.
families: [ipv4]
addresses:
  cart: [10.244.1.5, 'fd00:10:244:1::5']
  db: [10.244.1.6, 'fd00:10:244:1::6']
  evil: [10.244.1.66, 'fd00:10:244:1::66']
pools:
  default: {cidr: [10.244.0.0/16, 'fd00:10:244::/48']}
given:
  - pod: {name: shop/cart, node: node-b, addresses: [cart]}
  - pod: {name: shop/db, node: node-b, addresses: [db]}
  - pod: {name: default/evil, addresses: [evil]}
steps:
  - ip: route add ${cart/host} dev ${dev default/evil} scope link proto 3
  - ip: route add ${db/host} dev ${dev default/evil} scope link proto 3
expect: []
";

/// What takes the first of them again, once it has been given back: what happens again is added to what
/// was written before.
const GIVE_BACK: &str = "route del ${cart/host} dev ${dev default/evil}";
const TAKE_AGAIN: &str = "route add ${cart/host} dev ${dev default/evil} scope link proto 3";
const TAKEN: &str = "10.244.1.5/32 ";

/// What the agent gives a verdict of.
const ALLOWANCE: &str = "
apiVersion: route-hijack-detector.io/v1
kind: FloatingIPAllowance
metadata: {name: edge}
spec: {cidr: 192.0.2.0/28, namespace: edge, serviceAccount: gateway, reason: the gateways of the edge}
";

/// How long anything may take that is certain to come.
const LONG: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(20);

/// Where the table is.
const TABLE: &str = include_str!("../../../docs/privileges.md");

/// Where it shows that a privilege is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    /// A capability of the agent is degraded; its name.
    Degraded(String),
    /// A finding says that something is missing; how that begins.
    Missing(String),
    /// An allowance has no verdict.
    NoVerdict,
}

/// An agent that has found two hijacks.
struct Live<'a> {
    stage: &'a Stage,
    node: Node<'static>,
    words: Words<'static>,
    pod: Pod,
    agent: Agent,
    missing: BTreeSet<String>,
}

#[test]
fn without_any_one_of_them_something_is_missing_and_it_says_what() {
    let _turn = turn();
    let Some(stage) = Stage::new("the privileges of the manifests") else { return };
    if !found_or_skip("the privileges of the manifests", &["crun"]) {
        return;
    }
    let world: &'static Scenario = Box::leak(Box::new(Scenario::parse(WORLD).unwrap()));
    let mut rows = table();
    let all = privileges(&stage);

    // With all of them nothing of what the table names is missing.
    let mut live = Live::start(&stage, world, None).unwrap();
    live.wait_for_events().unwrap();
    for (privilege, shown) in all.iter().filter_map(|name| rows.get_key_value(name)) {
        assert!(!live.shows(shown).unwrap(), "{privilege}: {shown:?} although nothing is missing");
    }
    live.wait_for_verdict().unwrap();
    drop(live);

    let mut wrong = Vec::new();
    for privilege in &all {
        let Some(shown) = rows.remove(privilege) else {
            wrong.push(format!("{privilege}: docs/privileges.md has no row for it"));
            continue;
        };
        let seen = Live::start(&stage, world, Some(privilege))
            .and_then(|mut live| live.wait_until_it_shows(&shown));
        if let Err(error) = seen {
            wrong.push(format!("without {privilege}: {error:#}"));
        }
    }
    wrong.extend(
        rows.keys().map(|name| format!("{name}: docs/privileges.md names what nobody has")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// All that the manifests give: capabilities by their names, rights as `resource verb`.
fn privileges(stage: &Stage) -> Vec<String> {
    let set = stage.objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let capabilities = container["securityContext"]["capabilities"]["add"].as_array().unwrap();
    let mut all: Vec<String> =
        capabilities.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    for rule in role(stage)["rules"].as_array().unwrap() {
        for (resource, verb) in pairs(rule) {
            all.push(format!("{resource} {verb}"));
        }
    }
    all
}

fn role(stage: &Stage) -> &Value {
    stage.objects.iter().find(|object| object["kind"] == "ClusterRole").unwrap()
}

fn pairs(rule: &Value) -> Vec<(String, String)> {
    let words = |key: &str| -> Vec<String> {
        rule[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let verbs = words("verbs");
    let resources = words("resources");
    let pair =
        |resource: &String| verbs.iter().map(|verb| (resource.clone(), verb.clone())).collect();
    resources.iter().flat_map(|resource| -> Vec<_> { pair(resource) }).collect()
}

/// The rows of the table: of each privilege where it shows that it is missing.
fn table() -> BTreeMap<String, Shown> {
    let heading = "| privilege | reason | without it | shown as |";
    let rows = TABLE.split_once(heading).expect("docs/privileges.md has the table").1;
    rows.lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [privilege, _, _, shown] = cells[..] else { panic!("four cells: {line}") };
            let word = |text: &str| text.split('`').nth(1).unwrap_or_default().to_owned();
            let shown = match shown.split_once(' ').map_or(shown, |(first, _)| first) {
                "degraded" => Shown::Degraded(word(shown)),
                "missing" => Shown::Missing(word(shown)),
                "no" => Shown::NoVerdict,
                _ => panic!("where does it show? {line}"),
            };
            (word(privilege), shown)
        })
        .collect()
}

// === impl Live ===

impl<'a> Live<'a> {
    /// Starts the agent without one privilege, and makes it use all that it has.
    fn start(stage: &'a Stage, world: &'static Scenario, without: Option<&str>) -> Result<Self> {
        let words = Words { scenario: world, family: Family::Ipv4 };
        let mut node = Node::in_cluster(words, Arc::clone(&stage.cluster))?;
        for step in &world.given {
            node.step(words, step)?;
        }
        stage.cluster.kubectl_fed(&["apply", "--filename=-"], ALLOWANCE)?;
        let more = json!({"sinks": {"events": {"enabled": true}}, "grace": {"sync": "1s"}});
        let mut pod = stage.pod(&node, words, Runtime::Crun, &more)?;
        let right = without.and_then(|privilege| privilege.split_once(' '));
        let role = role(stage);
        let less = right.map(|(resource, verb)| role_without(role, resource, verb));
        stage.apply(&[less.unwrap_or_else(|| role.clone())])?;
        let added = &mut pod.spec().containers[0].security_context.capabilities.add;
        added.retain(|capability| Some(&**capability) != without);
        pod.initialise(node.namespace())?;
        let mut agent = pod.start(node.namespace())?;
        if without.is_none() {
            agent.wait_until_ready()?;
        }
        agent.wait_for_log("watching")?;
        for step in &world.steps {
            node.step(words, step)?;
        }
        Ok(Self { stage, node, words, pod, agent, missing: BTreeSet::new() })
    }

    fn wait_until_it_shows(&mut self, shown: &Shown) -> Result<()> {
        let end = Instant::now() + LONG;
        while !self.shows(shown)? {
            if Instant::now() > end {
                bail!("{shown:?} is not to be seen; missing: {:?}", self.missing);
            }
        }
        Ok(())
    }

    /// Whether it shows now. What findings say is heard meanwhile.
    fn shows(&mut self, shown: &Shown) -> Result<bool> {
        while let Some(heard) = self.agent.next_finding(GLANCE)? {
            let about = heard.finding["key"].as_str().unwrap_or_default();
            let turn = match heard.finding["state"].as_str() {
                Some("opened") => GIVE_BACK,
                _ => TAKE_AGAIN,
            };
            if about.starts_with(TAKEN) && heard.finding["state"] != "updated" {
                self.node.step(self.words, &Step::Ip(turn.to_owned()))?;
            }
            let missing = heard.finding["missing"].as_array().into_iter().flatten();
            self.missing.extend(missing.filter_map(Value::as_str).map(str::to_owned));
        }
        Ok(match shown {
            Shown::Degraded(capability) => {
                let socket = self.pod.volume("run").join("detector.sock");
                // The door opens a moment later than routes are seen.
                let Ok(answer) = over_unix(&socket, &Request::get("/v1/status")) else {
                    return Ok(false);
                };
                let status = answer.json()?;
                let degraded = status["degraded"].as_array().context("what is degraded")?;
                degraded.iter().any(|entry| entry["capability"] == **capability)
            }
            Shown::Missing(what) => self.missing.iter().any(|missing| missing.starts_with(&**what)),
            Shown::NoVerdict => {
                self.agent.has_logged_with("cannot write the status of floatingipallowances")
                    && self.verdict()?.is_empty()
            }
        })
    }

    fn wait_for_verdict(&self) -> Result<()> {
        let end = Instant::now() + LONG;
        while self.verdict()?.is_empty() {
            if Instant::now() > end {
                bail!("the allowance has no verdict");
            }
        }
        Ok(())
    }

    /// Waits until what was found has been written as Events, and so was judged and told.
    fn wait_for_events(&self) -> Result<()> {
        let end = Instant::now() + LONG;
        let events = [
            "get",
            "events.events.k8s.io",
            "--all-namespaces",
            "--output=jsonpath={.items[*].action}",
        ];
        loop {
            let actions = self.stage.cluster.kubectl(&events)?;
            if ["10.244.1.5/32", "10.244.1.6/32"].iter().all(|victim| actions.contains(victim)) {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("no Event tells of both: {actions}");
            }
        }
    }

    /// What is said of the allowance.
    fn verdict(&self) -> Result<String> {
        let path = "--output=jsonpath={.status.conditions}";
        self.stage.cluster.kubectl(&["get", "floatingipallowances", "edge", path])
    }
}
