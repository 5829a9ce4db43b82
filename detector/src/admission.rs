//! `detector policy`: admission policies that refuse what the attack needs, but for what the allow-list
//! allows.
//!
//! What is refused is said once, in CEL, by `guards`, with the allow-list as `grants` writes it and reads
//! it back. `vap` and `kyverno` only dress it as objects of one or the other. The audit's fix plan prints
//! the same, and its judgement of what stands in a cluster compares with the same.

mod grants;
mod guards;
mod kyverno;
mod vap;

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use jiff::Timestamp;

pub(crate) use self::grants::Grants;
pub(crate) use self::guards::Guard;
pub(crate) use self::vap::spec;
use crate::cli::{PolicyArgs, RunArgs};
use crate::config::{self, MOST_ALLOWED};
use crate::policy::Allowed;
use crate::source::cluster;
use crate::text::printable;

/// A policy: each is an object of its own, and can be left out or taken away alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Part {
    /// Annotations that claim addresses: floatingIPs, ipAddrs, ipAddrsNoIpam, allowedSourcePrefixes.
    Claims,
    /// The CNI plugin's annotations, such as podIPs, by anybody but the CNI plugin.
    Records,
    /// Addresses in pods' statuses, by anybody but the kubelets.
    Statuses,
}

/// Whose objects are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Form {
    /// ValidatingAdmissionPolicy, of Kubernetes itself (v1.31 and later, whose CEL knows addresses).
    #[default]
    Vap,
    /// ClusterPolicy of Kyverno (v1.13 and later).
    Kyverno,
}

/// What becomes of a write that is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Action {
    /// It fails.
    #[default]
    Deny,
    /// It succeeds, and is noted in the API server's audit log or in a report of Kyverno's.
    Audit,
    /// It succeeds, is noted, and whoever writes is warned.
    Warn,
}

/// Accounts that may do what others may not, beside those that every installation has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Trusted {
    /// May write the CNI plugin's annotations.
    pub(crate) cni: Vec<String>,
    /// May write pods' addresses.
    pub(crate) nodes: Vec<String>,
}

/// What is printed: the allow-list, what was left out of it and why, and who is trusted.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) allowed: Vec<Allowed>,
    pub(crate) left_out: Vec<String>,
    pub(crate) trusted: Trusted,
}

/// Prints what was asked for to `out`, and to `err` what of the allow-list was left out.
pub async fn run(args: &PolicyArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<()> {
    let trusted = Trusted { cni: users(&args.cni_user)?, nodes: users(&args.node_user)? };
    let mut policy = Policy { trusted, ..Policy::default() };
    let now = Timestamp::now();
    if let Some(file) = &args.config {
        // Whose configuration it is does not matter here.
        let agent = RunArgs {
            config: Some(file.clone()),
            node_name: Some("any".into()),
            ..RunArgs::default()
        };
        // Its words hold its cause already.
        let config = config::load(&agent).map_err(|error| anyhow::Error::msg(error.to_string()))?;
        policy.take(config.allowed, now);
    }
    if args.cluster {
        let connected = cluster::visitor(args.kubeconfig.clone(), args.context.clone()).await;
        let (client, _) = connected.context("the cluster's allowances cannot be read")?;
        match cluster::allowances_now(client).await.map_err(anyhow::Error::msg)? {
            Some(read) => {
                for entry in read {
                    match entry {
                        Ok(allowed) => policy.take([allowed], now),
                        Err(rejection) => policy.left_out.push(rejection.to_string()),
                    }
                }
            }
            None => policy.left_out.push(
                "the cluster has no FloatingIPAllowances: their definition is not installed".into(),
            ),
        }
    }
    if policy.allowed.len() > MOST_ALLOWED {
        bail!(
            "the allow-list has {} entries: at most {MOST_ALLOWED} fit a policy; allow whole ranges",
            policy.allowed.len()
        );
    }
    for why in &policy.left_out {
        writeln!(err, "detector: left out: {why}")?;
    }
    out.write_all(policy.print(&args.only, args.format, args.action).as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Names of accounts, as a request has them.
fn users(typed: &[String]) -> Result<Vec<String>> {
    for name in typed {
        // What is quoted in CEL and in YAML; no account that Kubernetes makes needs more.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@/".contains(c);
        if name.is_empty() || name.len() > 512 || !name.chars().all(plain) {
            bail!(
                "\"{}\" is no account: write its whole name, such as \
                 system:serviceaccount:NAMESPACE:NAME",
                printable(name, 64)
            );
        }
    }
    Ok(typed.to_vec())
}

// === impl Part ===

impl Part {
    /// All, in the order in which they are printed.
    pub(crate) const ALL: [Self; 3] = [Self::Claims, Self::Records, Self::Statuses];

    /// The name of its objects.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Claims => "calico-addresses.route-hijack-detector.io",
            Self::Records => "calico-records.route-hijack-detector.io",
            Self::Statuses => "pod-addresses.route-hijack-detector.io",
        }
    }
}

// === impl Policy ===

impl Policy {
    /// Takes entries of an allow-list that are in force; one that says what another says already adds
    /// nothing, unless it is in force for longer.
    fn take(&mut self, entries: impl IntoIterator<Item = Allowed>, now: Timestamp) {
        for entry in entries {
            if !entry.is_in_force(now) {
                self.left_out.push(format!("{}: it has expired", shown(&entry)));
                continue;
            }
            let same = |other: &&mut Allowed| other.allows_the_same_as(&entry.allowance);
            match self.allowed.iter_mut().find(same) {
                None => self.allowed.push(entry),
                Some(other) if outlives(&entry, other) => *other = entry,
                Some(_) => {}
            }
        }
    }

    /// The objects as YAML, with comments.
    pub(crate) fn print(&self, parts: &[Part], form: Form, action: Action) -> String {
        let mut documents = Vec::new();
        for part in Part::ALL.into_iter().filter(|part| parts.contains(part)) {
            let guard = Guard::new(part, &Grants::of(&self.allowed), &self.trusted);
            let comment = self.comment(part, form);
            documents.push(match form {
                Form::Vap => vap::manifest(&guard, action, &comment),
                Form::Kyverno => kyverno::manifest(&guard, action, &comment),
            });
        }
        documents.join("---\n")
    }

    /// What stands above a policy.
    fn comment(&self, part: Part, form: Form) -> String {
        let mut text = String::new();
        let mut say = |line: &str| {
            // To a string, which takes everything.
            let _ = writeln!(text, "{}", format!("# {line}").trim_end());
        };
        for line in guards::about(part) {
            say(line);
        }
        if part == Part::Claims {
            say("");
            if self.allowed.is_empty() {
                say("Allowed: nothing.");
            } else {
                say(
                    "Allowed, by service account and range. It does not follow the allow-list: print it",
                );
                say("again by `detector policy` when that changes.");
            }
            for entry in &self.allowed {
                say(&format!("  {}", shown(entry)));
                if let Some(expires) = entry.expires {
                    say(&format!(
                        "    expires {expires}, which no policy does by itself: print it again then"
                    ));
                }
            }
            for why in &self.left_out {
                say(&format!("Left out: {}", printable(why, 600)));
            }
        }
        if form == Form::Kyverno {
            say("");
            for line in kyverno::LIMITS {
                say(line);
            }
        }
        text
    }
}

fn outlives(entry: &Allowed, other: &Allowed) -> bool {
    match (entry.expires, other.expires) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(entry), Some(other)) => entry > other,
    }
}

/// An entry in one line.
fn shown(entry: &Allowed) -> String {
    let allowance = &entry.allowance;
    let reason = allowance.reason.as_deref().map(|reason| format!(": {}", printable(reason, 300)));
    format!(
        "{}/{} {} ({}{})",
        allowance.namespace,
        allowance.service_account,
        allowance.cidr,
        printable(&allowance.origin, 300),
        reason.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests;
