//! The product at work: a node with pods, attacks on it, and what the agent says when.
//!
//! Everything is real but the API server: the kernel and its routes, the eBPF program, the agent.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use detector_core::route::Prefix;
use detector_tests::agent::{Agent, Heard};
use detector_tests::scenario::node::Node;
use detector_tests::scenario::step::{PodStep, Step};
use detector_tests::scenario::words::{Words, interface};
use detector_tests::scenario::{Family, Scenario};
use serde_json::Value;

/// How long the agent is listened to after each step.
const LISTEN: Duration = Duration::from_millis(700);

/// How long it may be silent once it has said something.
const SILENCE: Duration = Duration::from_millis(150);

fn main() -> Result<()> {
    let json = std::env::args().skip(1).any(|argument| argument == "--json");
    let scenario = Scenario::parse(include_str!("../../demo/demo.yaml"))?;
    let words = Words { scenario: &scenario, family: Family::Ipv4 };
    Demo { words, json, start: Instant::now(), colour: colour() }.run()
}

fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

struct Demo<'a> {
    words: Words<'a>,
    json: bool,
    start: Instant,
    colour: bool,
}

impl Demo<'_> {
    fn run(&self) -> Result<()> {
        self.title("A node, its pods, and an agent that watches its routes")?;
        let mut node = Node::new(self.words)?;
        for step in &self.words.scenario.given {
            node.step(self.words, step)?;
            self.tell_step(step)?;
        }
        let starting = Instant::now();
        let agent = node.start_agent(self.words, "auto")?;
        self.line(&format!(
            "the agent is ready {} ms after its start",
            starting.elapsed().as_millis()
        ))?;
        for step in &self.words.scenario.steps {
            if let Step::Say(text) = step {
                self.title(text)?;
                continue;
            }
            self.tell_step(step)?;
            node.step(self.words, step)?;
            if matches!(step, Step::Ip(_)) {
                self.listen(&agent)?;
            }
        }
        let log = agent.stop()?;
        let last = log.last().map(|entry| entry["fields"].clone()).unwrap_or_default();
        self.title("The end")?;
        self.line(&format!(
            "the agent has ended: {} kernel messages seen, {} of them left out in the kernel, {} \
             lost; {} questions asked of the API server",
            last["seen"], last["filtered"], last["lost"], last["questions"]
        ))
    }

    /// Shows what the agent says now, or that it says nothing.
    fn listen(&self, agent: &Agent) -> Result<()> {
        let mut patience = LISTEN;
        let mut heard_any = false;
        while let Some(heard) = agent.next_finding(patience)? {
            heard_any = true;
            patience = SILENCE;
            self.finding(&heard)?;
        }
        if !heard_any {
            self.line(&self.paint("32", "the agent says nothing"))?;
        }
        Ok(())
    }

    fn finding(&self, heard: &Heard) -> Result<()> {
        let finding = &heard.finding;
        if self.json {
            writeln!(std::io::stdout(), "{finding}")?;
            return Ok(());
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let began = finding["bootTime"]["began"].as_u64().context("a finding began")?;
        let after = Duration::from_nanos(heard.at.as_nanos().saturating_sub(began));
        let state = text(&finding["state"]);
        let line = match state.as_str() {
            "closed" => {
                let lasted = finding["durationMs"].as_f64().unwrap_or_default();
                self.paint("32", &format!("CLOSED    it lasted {lasted:.1} ms"))
            }
            "opened" => self.paint(
                "1;31",
                &format!(
                    "{} {}, {after:.0?} after the kernel's change",
                    text(&finding["severity"]).to_uppercase(),
                    text(&finding["verdict"]),
                ),
            ),
            other => other.to_uppercase(),
        };
        self.line(&line)?;
        if state == "closed" {
            return Ok(());
        }
        let (attacker, victim) = (&finding["attacker"], &finding["victim"]);
        self.detail(&text(&finding["reason"]))?;
        self.detail(&format!(
            "attacker  {}/{} on {}",
            text(&attacker["namespace"]),
            text(&attacker["pod"]),
            text(&attacker["interface"])
        ))?;
        self.detail(&format!(
            "victim    {}/{} on {}",
            text(&victim["namespace"]),
            text(&victim["name"]),
            text(&victim["node"])
        ))?;
        for evidence in finding["evidence"].as_array().into_iter().flatten() {
            self.detail(&format!("{:<9} {}", text(&evidence["source"]), text(&evidence["text"])))?;
        }
        Ok(())
    }

    fn tell_step(&self, step: &Step) -> Result<()> {
        let text = match step {
            Step::Pod(pod) => self.pod(pod)?,
            Step::Annotate(step) => {
                let (namespace, name) = step.pod.split_once('/').context("a pod")?;
                let mut text = format!("$ kubectl annotate pod -n {namespace} {name}");
                for (key, value) in &step.annotations {
                    text = match value.as_str() {
                        "" => format!("{text} cni.projectcalico.org/{key}-"),
                        value => {
                            let value = self.words.expand(value)?;
                            format!("{text} cni.projectcalico.org/{key}='{value}'")
                        }
                    };
                }
                text
            }
            Step::Ip(arguments) => format!("$ ip {}", self.words.expand(arguments)?),
            Step::Link(pod) => format!("the CNI plugin makes {} for {pod}", interface(pod)?),
            _ => return Ok(()),
        };
        self.line(&text)
    }

    fn pod(&self, pod: &PodStep) -> Result<String> {
        let mut addresses = Vec::new();
        for name in &pod.addresses {
            addresses.push(Prefix::host(self.words.address(name)?).address().to_string());
        }
        let node = pod.node.as_deref().unwrap_or(&self.words.scenario.node);
        let addresses = addresses.join(", ");
        Ok(if pod.wired && node == self.words.scenario.node {
            format!("pod {} has {addresses} on {node}, by {}", pod.name, interface(&pod.name)?)
        } else {
            format!("pod {} has {addresses} on {node}", pod.name)
        })
    }

    fn title(&self, text: &str) -> Result<()> {
        if !self.json {
            writeln!(std::io::stdout(), "\n{}", self.paint("1", text))?;
        }
        Ok(())
    }

    fn line(&self, text: &str) -> Result<()> {
        if !self.json {
            let at = self.start.elapsed().as_secs_f64();
            writeln!(std::io::stdout(), "{at:>8.3} s  {text}")?;
        }
        Ok(())
    }

    fn detail(&self, text: &str) -> Result<()> {
        if !self.json {
            writeln!(std::io::stdout(), "              {text}")?;
        }
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
