//! Every key of the file, once.

use std::time::Duration;

use clap::ValueEnum;
use detector_core::finding::Severity;

use crate::config::outlets::{Format, LIMIT, LINGERS, REPEAT, WINDOW};
use crate::config::value::shown_duration;
use crate::config::{GRACE, Output, PacketSource, RESYNC, RING, RouteSource, WriterSource};

/// A key, as the reference has it.
pub(super) struct Key {
    /// Its path; what is in a list has `[]` behind the list's name.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// The flag that says the same, without dashes.
    pub(super) flag: Option<&'static str>,
    /// What holds without it, where that is no value of its own.
    pub(super) absent: &'static str,
    pub(super) means: &'static str,
}

/// What a value may be.
#[derive(Clone)]
pub(super) enum Kind {
    /// A text: what it is.
    Text(&'static str),
    /// A text by a pattern: what it is, and the pattern.
    Pattern(&'static str, &'static str),
    Bool,
    Choice(Vec<String>),
    Duration(Duration, Duration),
    Number(u32, u32),
    /// A power of two.
    Power(u32, u32),
    /// A list of texts, with the least number of them.
    List(&'static str, u32),
}

const SINK: (&str, &str) = ("a name of `a-z`, `0-9` and `-`, at most 32", "^[a-z0-9-]{1,32}$");
const URL: (&str, &str) = ("an `http` or `https` URL without a user", "^https?://[^/@]+(/.*)?$");

/// All keys, in the order of the example file.
#[expect(clippy::too_many_lines, reason = "a table, one key an entry")]
pub(super) fn keys() -> Vec<Key> {
    let key = |path, kind, means| Key { path, kind, flag: None, absent: "", means };
    let flagged = |path, flag, kind, means| Key { flag: Some(flag), ..key(path, kind, means) };
    let or = |absent, key: Key| Key { absent, ..key };
    let grace = |path, means| key(path, Kind::Duration(GRACE.0, GRACE.1), means);
    let path = || Kind::Text("a path");
    let path_or_none = || Kind::Text("a path, or `none`");
    let url = || Kind::Pattern(URL.0, URL.1);
    let severity = || {
        let all = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
        Kind::Choice(all.iter().map(|severity| severity.as_str().to_owned()).collect())
    };
    vec![
        or(
            "none: it must be said",
            flagged(
                "nodeName",
                "node-name",
                Kind::Text("a node's name"),
                "The node that the agent runs on; in a DaemonSet better by `NODE_NAME` from `spec.nodeName`.",
            ),
        ),
        or(
            "the pod's service account",
            flagged("kubeconfig", "kubeconfig", path(), "A kubeconfig file for the API server."),
        ),
        key(
            "api.enabled",
            Kind::Bool,
            "Whether to ask the API server at all (`--no-api`: not). Without it no owner can be named, and \
             fewer hijacks can be told from legitimate routes.",
        ),
        flagged(
            "routeSource",
            "route-source",
            choice::<RouteSource>(),
            "Where route changes are seen from: eBPF, or plain netlink, which a burst of changes can \
             overflow; `auto` takes what the kernel lets it.",
        ),
        flagged(
            "packets",
            "packets",
            choice::<PacketSource>(),
            "How packets on pods' interfaces and uplinks are watched: by filters of the qdisc clsact and \
             TCX, by filters only, or not at all.",
        ),
        flagged(
            "writers",
            "writers",
            choice::<WriterSource>(),
            "How it is known who writes a route: read while it writes and refused writes by tracing \
             (`auto`), tracing by `fexit` or `kprobe` only, no tracing (`records`), or by the netlink port \
             alone (`port`).",
        ),
        flagged("output", "output", choice::<Output>(), "Findings on standard output."),
        key(
            "interfacePrefixes",
            Kind::List("beginnings of interfaces' names, of 1 to 4 characters", 1),
            "What names of pods' interfaces begin with, as FelixConfiguration `interfacePrefix` says.",
        ),
        key(
            "uplinks",
            Kind::List("interfaces' names", 0),
            "Interfaces that carry the node's own traffic although their kind does not tell, such as the \
             veth eth0 of a nested node.",
        ),
        grace("grace.newborn", "For a pod whose address the API does not show yet."),
        grace(
            "grace.settle",
            "For news that travels two ways, such as an annotation that Felix read first.",
        ),
        grace(
            "grace.remote",
            "For another node's route to the address of a pod that still runs here.",
        ),
        grace(
            "grace.withdraw",
            "For a node's route to an address that IPAM gave to another: BGP withdraws routes late.",
        ),
        grace("grace.sync", "For the first listing of pods."),
        key(
            "resyncInterval",
            Kind::Duration(RESYNC.0, RESYNC.1),
            "How often the kernel's tables are read anew although nothing was lost.",
        ),
        key(
            "ringBytes",
            Kind::Power(RING.0, RING.1),
            "The size of the ring between the kernel and the agent, in bytes.",
        ),
        flagged(
            "listen",
            "listen",
            Kind::Text("`address:port`, or `none`"),
            "Where metrics and probes (`/metrics`, `/livez`, `/readyz`) are served. They name no pods and no \
             addresses.",
        ),
        flagged(
            "socket",
            "socket",
            path_or_none(),
            "The unix socket for `detector status` and its like. Only its owner, root, can use it.",
        ),
        flagged(
            "state",
            "state",
            path_or_none(),
            "The file that keeps standing findings over a restart; in a pod on a hostPath.",
        ),
        key(
            "alerts.repeat",
            Kind::Duration(REPEAT.0, REPEAT.1),
            "A finding that stands is told again after this time; `0s` is never.",
        ),
        key(
            "alerts.window",
            Kind::Duration(WINDOW.0, WINDOW.1),
            "The time in which messages are counted for the two limits. What is held back is told in one \
             summary at its end, with exact counts.",
        ),
        key(
            "alerts.perAttacker",
            Kind::Number(LIMIT.0, LIMIT.1),
            "Messages about one attacker that a sink is told in a window. Standard output gets all.",
        ),
        key(
            "alerts.perSink",
            Kind::Number(LIMIT.0, LIMIT.1),
            "Messages that a sink is told in a window. Standard output gets all.",
        ),
        or(
            "alerts name the command that shows the page",
            key(
                "alerts.runbooks",
                url(),
                "What addresses of runbook pages begin with, such as where you serve docs/runbook; without \
                 `?` and `#`.",
            ),
        ),
        key(
            "sinks.journald.enabled",
            Kind::Bool,
            "Whether findings go to the node's journal, field by field. In a pod, mount the socket.",
        ),
        or(
            "`/run/systemd/journal/socket`",
            key("sinks.journald.socket", path(), "Journald's native socket."),
        ),
        key(
            "sinks.events.enabled",
            Kind::Bool,
            "Whether Events are written on the attacker's pod, the victim's pod and the node. Wants the \
             right to create and patch `events.k8s.io`.",
        ),
        key(
            "sinks.alertmanagers[].name",
            Kind::Pattern(SINK.0, SINK.1),
            "By which metrics and logs call it; no two sinks have the same.",
        ),
        key("sinks.alertmanagers[].url", url(), "Where it is, without `/api/v2/alerts`."),
        key("sinks.alertmanagers[].urlFile", path(), "A file that has the URL."),
        or(
            "the system's",
            key(
                "sinks.alertmanagers[].caFile",
                path(),
                "Certificates that it is believed by, in PEM.",
            ),
        ),
        or("none", key("sinks.alertmanagers[].tokenFile", path(), "A file with a bearer token.")),
        or(
            "`low`",
            key(
                "sinks.alertmanagers[].leastSeverity",
                severity(),
                "What is less severe is not sent.",
            ),
        ),
        or(
            "`1m`",
            key(
                "sinks.alertmanagers[].lingers",
                Kind::Duration(LINGERS.0, LINGERS.1),
                "How long an alert is kept standing at least: longer than Alertmanager's `group_wait`, or \
                 nobody is told of what was over before.",
            ),
        ),
        key(
            "sinks.webhooks[].name",
            Kind::Pattern(SINK.0, SINK.1),
            "By which metrics and logs call it; no two sinks have the same.",
        ),
        key("sinks.webhooks[].url", url(), "Where to post."),
        key(
            "sinks.webhooks[].urlFile",
            path(),
            "A file that has the URL, where knowing it is all that it takes to write there.",
        ),
        or(
            "the system's",
            key("sinks.webhooks[].caFile", path(), "Certificates that it is believed by, in PEM."),
        ),
        or("none", key("sinks.webhooks[].tokenFile", path(), "A file with a bearer token.")),
        or(
            "`low`",
            key("sinks.webhooks[].leastSeverity", severity(), "What is less severe is not sent."),
        ),
        or(
            "`json`",
            key(
                "sinks.webhooks[].format",
                choice::<Format>(),
                "Findings as on standard output, messages for Slack, alerts as Falco writes them (for \
                 Falcosidekick), or OpenTelemetry's logs over HTTP.",
            ),
        ),
        or(
            "not signed",
            key(
                "sinks.webhooks[].secretFile",
                path(),
                "A file with the secret that bodies are signed with: `x-detector-signature-256: \
                 sha256=<HMAC>`.",
            ),
        ),
        key(
            "floatingIPs.allow[].cidr",
            Kind::Pattern(
                "a range, `address/length` without host bits",
                "^[0-9A-Fa-f:.]+/[1-9][0-9]{0,2}$",
            ),
            "The addresses. Never loopback, link-local, multicast or all there are.",
        ),
        key(
            "floatingIPs.allow[].namespace",
            Kind::Text("a namespace, no pattern"),
            "Of the pods that may have them.",
        ),
        key(
            "floatingIPs.allow[].serviceAccount",
            Kind::Text("a service account, no pattern"),
            "Of the pods that may have them.",
        ),
        or(
            "for good",
            key(
                "floatingIPs.allow[].expires",
                Kind::Pattern(
                    "a time, such as `2030-01-31T18:00:00Z`",
                    "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})$",
                ),
                "Until when, by the node's clock; an expired entry allows nothing.",
            ),
        ),
        or(
            "none",
            key(
                "floatingIPs.allow[].reason",
                Kind::Text("one line, at most 256 characters"),
                "Why, for whoever reads it next.",
            ),
        ),
    ]
}

/// The words that a choice has.
fn choice<T: ValueEnum>() -> Kind {
    let words = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    Kind::Choice(words.map(|word| word.get_name().to_owned()).collect())
}

// === impl Kind ===

impl Kind {
    /// What it may be, for people.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Text(what) | Self::Pattern(what, _) => (*what).to_owned(),
            Self::Bool => "`true` or `false`".into(),
            Self::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(", ")
            }
            Self::Duration(least, most) => {
                format!("a duration, `{}` to `{}`", shown_duration(*least), shown_duration(*most))
            }
            Self::Number(least, most) => format!("a whole number, {least} to {most}"),
            Self::Power(least, most) => format!("a power of two, {least} to {most}"),
            Self::List(what, _) => format!("a list of {what}"),
        }
    }
}
