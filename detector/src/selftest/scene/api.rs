//! The stages that the API server has a part in: that it is read, that it answers, and who the victim is
//! by what it says.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use detector_core::observation::Reply;
use tokio::time::{Instant, timeout_at};

use super::super::cluster::Victim;
use super::super::ground::{self, Ground, GroundError};
use super::{Begun, Scene, millis};
use crate::agent::is_of_cluster;
use crate::health::Degraded;

/// How long a sense that does not see is given to see: what a server that restarts needs, or a
/// connection that broke off.
const RECOVERY: Duration = Duration::from_secs(5);

/// How long a question may be unanswered; the agent gives up before.
const ANSWER: Duration = Duration::from_secs(4);

impl Scene<'_> {
    /// What the API server tells; gives whether the victim can be one that it knows.
    pub(super) async fn api(&mut self, begun: &Begun) -> io::Result<bool> {
        if let Some(why) = &begun.unconnected {
            self.board.failed("api", why)?;
            return Ok(false);
        }
        let pulse = &begun.pulse;
        let ready = timeout_at(self.end, pulse.until(|| pulse.is_ready())).await.is_ok();
        if let Some(kernel) = self.blind(|name| name == "kernel").first() {
            self.board.failed("routes", &format!("the tables cannot be read: {}", kernel.why))?;
        }
        if !self.config.api {
            let why = "not asked (--no-api): the canary is judged by its route alone";
            self.board.skipped("api", why)?;
            return Ok(false);
        }
        // It may be starting, or a connection may have broken off: that passes.
        let until = self.end.min(Instant::now() + RECOVERY);
        let sees = || self.blind(is_of_cluster).is_empty();
        let recovered = timeout_at(until, pulse.until(sees)).await.is_ok();
        let took = begun.began.elapsed();
        if !recovered {
            let why = reasons(&self.blind(is_of_cluster));
            self.board.failed("api", &why)?;
            return Ok(false);
        }
        if !ready {
            let awaited = pulse.awaited().join(", ");
            let why = format!("nothing was told in time of: {awaited}; does the server answer?");
            self.board.failed("api", &why)?;
            return Ok(false);
        }
        let node = &self.config.node;
        if self.overheard.addresses(node).is_none_or(|addresses| addresses.is_empty()) {
            let why = format!(
                "the cluster has no node {node} with an address: is that its name (--node-name or \
                 NODE_NAME)? `kubectl get nodes` shows them"
            );
            self.board.failed("api", &why)?;
            return Ok(false);
        }
        let nodes = match self.overheard.nodes() {
            1 => "1 node".to_owned(),
            nodes => format!("{nodes} nodes"),
        };
        let took = millis(took);
        self.board.timed("api", &format!("synced in {took:.0} ms, {nodes}"), took)?;
        Ok(true)
    }

    /// Whether the network namespace is the node's own after all, by what the API server says.
    pub(super) fn hosts_network(&self, ground: &Ground) -> io::Result<Option<String>> {
        if !ground.here {
            return Ok(None);
        }
        let own = ground::own_addresses()?;
        let of_node = self.overheard.addresses(&self.config.node).unwrap_or_default();
        let Some(address) = of_node.iter().find(|address| own.contains(address)) else {
            return Ok(None);
        };
        let node = &self.config.node;
        match ground::refused(&format!("it has the address {address} of the node {node}")) {
            GroundError::Refused(why) | GroundError::Failed(why) => Ok(Some(why)),
        }
    }

    /// Asks what the engine asks when it doubts, and chooses the victim.
    pub(super) async fn victim(&mut self, begun: &mut Begun) -> io::Result<Option<Victim>> {
        let used = if self.args.here { ground::peers() } else { BTreeSet::new() };
        let victim = self.overheard.victim(&self.config.node, &used).or_else(Victim::of_nobody);
        let Some(victim) = victim else { return Ok(None) };
        let questions = self.overheard.questions(victim.prefix().address());
        let (asked, count) = (Instant::now(), questions.len());
        let mut wrong = Vec::new();
        for question in questions {
            let Some(ask) = &begun.questions else { break };
            if ask.send(question).await.is_err() {
                wrong.push("nobody answers questions any more".to_owned());
                break;
            }
            let until = self.end.min(Instant::now() + ANSWER);
            let answer = async {
                while let Some(reply) = begun.answers.recv().await {
                    if reply.question() == question {
                        return Some(reply);
                    }
                }
                None
            };
            match timeout_at(until, answer).await {
                Ok(Some(Reply::Block(_, Err(why)) | Reply::Claimants(_, Err(why)))) => {
                    wrong.push(why.into_string());
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => wrong.push("a question was not answered in time".to_owned()),
            }
        }
        if wrong.is_empty() {
            let took = millis(asked.elapsed());
            let text = format!("{count} answered in {took:.0} ms");
            self.board.timed("questions", &text, took)?;
        } else {
            self.board.failed("questions", &wrong.join("; "))?;
        }
        Ok(Some(victim))
    }
}

/// Why nothing is seen, each reason once: a server that cannot be reached is one reason for all.
fn reasons(blind: &[Degraded]) -> String {
    let cause = |why: &str| why.split_once(": ").map_or(why, |(_, cause)| cause).to_owned();
    let mut causes: Vec<(String, Vec<&Degraded>)> = Vec::new();
    for one in blind {
        let of_one = cause(&one.why);
        match causes.iter_mut().find(|(cause, _)| *cause == of_one) {
            Some((_, all)) => all.push(one),
            None => causes.push((of_one, vec![one])),
        }
    }
    let told = causes.iter().map(|(cause, all)| match &all[..] {
        [one] => one.why.clone(),
        all => {
            let cannot =
                all.iter().map(|one| one.why.split_once(": ").map_or("", |(what, _)| what));
            let what: Vec<&str> = cannot.map(|what| what.trim_start_matches("cannot ")).collect();
            format!("cannot {}: {cause}", what.join(", "))
        }
    });
    told.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reason_is_told_once() {
        let one = |capability: &str, why: &str| Degraded {
            capability: capability.into(),
            why: why.into(),
            since: jiff::Timestamp::UNIX_EPOCH,
        };
        let down = "the API server cannot be reached: connection refused";
        let all = [
            one("nodes", &format!("cannot list and watch nodes: {down}")),
            one("pods", &format!("cannot list and watch pods: {down}")),
            one("pools", "cannot list and watch ippools: permission is missing (403): apply it"),
        ];
        assert_eq!(
            reasons(&all),
            "cannot list and watch nodes, list and watch pods: the API server cannot be reached: \
             connection refused; cannot list and watch ippools: permission is missing (403): apply it"
        );
    }
}
