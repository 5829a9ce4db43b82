//! What the socket answers, as types: the commands read with them what the agent writes with them.

use std::net::IpAddr;

use bytes::Bytes;
use detector_core::explain::{Explanation, Fate as Walked, Leg, Opinion};
use detector_core::route::{Route, RouteKind};
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::serve::reply;
use super::{Inquiry, Inside, Watching};
use crate::clock::BootWall;
use crate::health::Degraded;
use crate::sink::{Acknowledgement, Report};
use crate::source::kernel::lookup::{self, Fate};

/// The longest that a finding can be acknowledged for.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 31);

/// `/v1/status`.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct Status {
    pub schema: String,
    pub version: String,
    pub node: String,
    pub started: Timestamp,
    pub ready: bool,
    pub awaited: Vec<String>,
    pub degraded: Vec<DegradedView>,
    pub routes_seen_by: String,
    pub packets_seen_by: Option<String>,
    pub known: Vec<(String, u64)>,
    pub findings_standing: u64,
    pub findings_told: u64,
    pub sinks: Vec<SinkView>,
}

/// A degraded capability.
#[derive(Serialize, Deserialize, Debug)]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct DegradedView {
    pub capability: String,
    pub why: String,
    pub since: Timestamp,
}

/// What became of a sink's messages.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct SinkView {
    pub name: String,
    pub delivered: u64,
    pub failed: u64,
    pub dropped: u64,
    pub held_back: u64,
    pub retried: u64,
    pub queued: i64,
}

/// `/v1/explain`.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct Explained {
    pub schema: String,
    pub address: IpAddr,
    pub pool: Option<String>,
    pub block: Option<String>,
    /// What the kernel answers, now.
    pub kernel: KernelView,
    /// What follows from the routes and rules that are watched.
    pub watched: String,
    /// Whether the two are the same; `None` where the winning route is of those that are not watched.
    pub agree: Option<bool>,
    pub claims: Vec<ClaimView>,
    pub rules: Vec<String>,
    pub routes: Vec<RouteShown>,
    pub translations: Vec<TranslationShown>,
    pub neighbours: Vec<String>,
    pub verdicts: Vec<VerdictView>,
    pub findings: Vec<String>,
    pub missing: Vec<String>,
}

/// The kernel's answer.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct KernelView {
    /// Such as `10.1.2.3 dev cali0` or `unreachable`.
    pub way: String,
    pub interface: Option<String>,
    pub gateway: Option<IpAddr>,
    pub table: Option<String>,
    /// The route that is taken, with its prefix.
    pub route: Option<String>,
    /// Why the packet is not sent.
    pub refused: Option<String>,
}

/// Somebody's word on whose the address is.
#[derive(Serialize, Deserialize, Debug)]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct ClaimView {
    pub strength: String,
    pub whose: String,
    pub by: String,
    pub since: Option<Timestamp>,
}

/// A route for the address.
#[derive(Serialize, Deserialize, Debug)]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct RouteShown {
    pub route: String,
    pub behind: Vec<String>,
    pub since: Timestamp,
    pub wins: bool,
}

/// A translation of the address.
#[derive(Serialize, Deserialize, Debug)]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct TranslationShown {
    pub to: IpAddr,
    pub whose: Option<String>,
    pub rules: Vec<String>,
    pub connections: u64,
}

/// What is thought of one place where packets end up.
#[derive(Serialize, Deserialize, Debug)]
#[expect(missing_docs, reason = "docs/operating.md describes each field")]
pub struct VerdictView {
    pub subject: String,
    pub target: String,
    pub verdict: String,
    pub reason: Option<String>,
    pub since: Timestamp,
}

/// `/v1/acknowledge`: what is asked.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Acknowledge {
    /// The key of the finding.
    pub key: String,
    /// Who takes care of it; `None` takes an acknowledgement back.
    pub by: Option<Box<str>>,
    /// For how many seconds.
    #[serde(default)]
    pub seconds: u64,
    /// Why.
    pub reason: Option<Box<str>>,
}

/// How the agent is.
pub(super) async fn status(inside: &Inside) -> Response<Full<Bytes>> {
    let (answer, answered) = oneshot::channel();
    let watching = match inside.inquiries.send(Inquiry::Status(answer)).await {
        Ok(()) => answered.await.ok(),
        Err(_) => None,
    };
    let Some(watching) = watching else { return ending() };
    let Watching { routes, packets, holdings, interfaces, addresses, told, dumps } = watching;
    let number = |number: usize| number as u64;
    let known = [
        ("routes", number(holdings.routes)),
        ("interfaces", number(holdings.links)),
        ("pods", number(holdings.pods)),
        ("services", number(holdings.services)),
        ("podInterfacesWatched", number(interfaces.0)),
        ("uplinksWatched", number(interfaces.1)),
        ("interfacesRefused", number(interfaces.2)),
        ("addressesWatched", number(addresses)),
        ("questionsPending", number(holdings.questions)),
        ("findingsPending", number(holdings.waiting)),
        ("dumps", dumps),
    ];
    json(&Status {
        schema: "detector.status/v1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: inside.node.to_string(),
        started: inside.started,
        ready: inside.pulse.is_ready(),
        awaited: inside.pulse.awaited().into_iter().map(str::to_owned).collect(),
        degraded: inside.health.degraded().into_iter().map(degraded).collect(),
        routes_seen_by: routes.to_owned(),
        packets_seen_by: packets.map(str::to_owned),
        known: known.map(|(what, count)| (what.to_owned(), count)).into(),
        findings_standing: number(holdings.standing),
        findings_told: told,
        sinks: inside.telemetry.sinks(),
    })
}

/// What stands, as it was told.
pub(super) async fn findings(inside: &Inside) -> Response<Full<Bytes>> {
    let mut reports = inside.counter.findings().await;
    reports.sort_by_key(|report| (std::cmp::Reverse(report.severity()), report.finding.began));
    let findings: Vec<Value> = reports.iter().map(Report::to_value).collect();
    json(&findings)
}

/// What is known of an address.
pub(super) async fn explain(inside: &Inside, query: &str) -> Response<Full<Bytes>> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let address = pairs.find(|(name, _)| name == "address").map(|(_, value)| value.into_owned());
    let Some(address) = address.as_deref().and_then(|text| text.parse::<IpAddr>().ok()) else {
        return wrong("no address is named: ask for /v1/explain?address=10.1.2.3");
    };
    let address = address.to_canonical();
    let (answer, answered) = oneshot::channel();
    let explanation = match inside.inquiries.send(Inquiry::Explain(address, answer)).await {
        Ok(()) => answered.await.ok(),
        Err(_) => None,
    };
    let Some(explanation) = explanation else { return ending() };
    let kernel = tokio::task::spawn_blocking(move || lookup::lookup(address)).await;
    let kernel = kernel.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    json(&explained(*explanation, kernel))
}

/// Somebody takes care of a finding, or nobody any more.
pub(super) async fn acknowledge(inside: &Inside, body: &[u8]) -> Response<Full<Bytes>> {
    let asked: Acknowledge = match serde_json::from_slice(body) {
        Ok(asked) => asked,
        Err(error) => return wrong(&format!("that is no acknowledgement: {error}")),
    };
    let lasts = SignedDuration::from_secs(i64::try_from(asked.seconds).unwrap_or(i64::MAX));
    if asked.by.is_some() && (lasts.is_zero() || lasts > LONGEST) {
        return wrong("an acknowledgement lasts from a second to 31 days: say how long");
    }
    if asked.by.as_deref().is_some_and(|by| by.trim().is_empty()) {
        return wrong("nobody is named who takes care of it: say who");
    }
    let text = |text: &str| crate::config::value::line(text);
    for text in [asked.by.as_deref().map(text), asked.reason.as_deref().map(text)] {
        if let Some(Err(problem)) = text {
            return wrong(&format!("the text {problem}"));
        }
    }
    let until = Timestamp::now().checked_add(lasts).unwrap_or(Timestamp::MAX);
    let by = asked.by.map(|by| Acknowledgement { by, until, reason: asked.reason });
    match inside.counter.acknowledge(asked.key, by.clone()).await {
        Ok(()) => json(&by),
        Err(why) => error(StatusCode::NOT_FOUND, &why),
    }
}

/// The request makes no sense.
pub(super) fn wrong(why: &str) -> Response<Full<Bytes>> {
    error(StatusCode::BAD_REQUEST, why)
}

fn ending() -> Response<Full<Bytes>> {
    error(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending")
}

fn error(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    reply(status, "application/json", serde_json::json!({ "error": why }).to_string())
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(body) => reply(StatusCode::OK, "application/json", body),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
    }
}

fn degraded(degraded: Degraded) -> DegradedView {
    let Degraded { capability, why, since } = degraded;
    DegradedView { capability, why, since }
}

fn explained(explanation: Explanation, kernel: std::io::Result<Fate>) -> Explained {
    let boot = BootWall::now();
    let watched = watched(&explanation);
    let kernel_route = match &kernel {
        Ok(Fate::Goes { way, .. }) => Some(way.clone()),
        _ => None,
    };
    let agree = agree(&explanation, kernel_route.as_ref());
    let Explanation {
        address,
        pool,
        sayings,
        rules,
        routes,
        fate: _,
        translations,
        neighbours,
        opinions,
        findings,
        missing,
    } = explanation;
    let (pool, block) = pool.map_or((None, None), |(name, block)| {
        (Some(name.to_string()), block.map(|block| block.to_string()))
    });
    Explained {
        schema: "detector.explanation/v1".to_owned(),
        address,
        pool,
        block,
        kernel: kernel_view(address, kernel),
        watched,
        agree,
        claims: sayings
            .into_iter()
            .map(|saying| ClaimView {
                strength: saying.strength.as_str().to_owned(),
                whose: saying.whose,
                by: saying.by,
                since: saying.since.map(|since| boot.at(since)),
            })
            .collect(),
        rules: rules.iter().map(ToString::to_string).collect(),
        routes: routes
            .iter()
            .map(|view| RouteShown {
                route: in_words(&view.route, &view.legs),
                behind: view.legs.iter().filter_map(|leg| leg.behind.clone()).collect(),
                since: boot.at(view.since),
                wins: view.wins,
            })
            .collect(),
        translations: translations
            .into_iter()
            .map(|view| TranslationShown {
                to: view.to,
                whose: view.whose.map(|key| format!("pod {key}")),
                rules: view.rules.iter().map(ToString::to_string).collect(),
                connections: view.connections,
            })
            .collect(),
        neighbours,
        verdicts: opinions.into_iter().map(|opinion| verdict(opinion, boot)).collect(),
        findings: findings.iter().map(|finding| finding.key.to_string()).collect(),
        missing: missing.iter().map(ToString::to_string).collect(),
    }
}

fn verdict(opinion: Opinion, boot: BootWall) -> VerdictView {
    let Opinion { key: _, subject, target, verdict, reason, since } = opinion;
    VerdictView {
        subject,
        target,
        verdict: verdict.to_owned(),
        reason: reason.map(|reason| reason.to_string()),
        since: boot.at(since),
    }
}

/// What becomes of a packet of the node's own, as far as watched routes tell.
fn watched(explanation: &Explanation) -> String {
    match explanation.fate {
        Walked::Route { route, .. } => {
            let view = &explanation.routes[route];
            in_words(&view.route, &view.legs)
        }
        Walked::Dropped { rule } => format!("dropped by rule {}", explanation.rules[rule]),
        Walked::Unknown { rule } => {
            let rule = &explanation.rules[rule];
            format!(
                "not known: rule {rule} is for some packets, or does what only the kernel knows"
            )
        }
        Walked::Unwatched => {
            "no watched route: a wider one by an uplink takes it, or none".to_owned()
        }
    }
}

/// Whether the kernel does what the watched routes say; `None` where those say nothing.
fn agree(explanation: &Explanation, kernel: Option<&Route>) -> Option<bool> {
    match explanation.fate {
        Walked::Unwatched | Walked::Unknown { .. } => None,
        Walked::Dropped { .. } => Some(kernel.is_none()),
        Walked::Route { route, .. } => {
            let view = &explanation.routes[route];
            let sends = matches!(view.route.kind, RouteKind::Unicast | RouteKind::Local);
            let Some(kernel) = kernel else { return Some(!sends) };
            if view.route.kind == RouteKind::Local {
                return Some(kernel.kind == RouteKind::Local);
            }
            let way = kernel.hops.as_slice().first().copied();
            let name = way.and_then(|hop| hop.interface).map(|i| lookup::interface_name(i.get()));
            let gateway = way.and_then(|hop| hop.gateway);
            Some(view.legs.iter().any(|leg| {
                leg.gateway == gateway
                    && leg.interface.as_ref().map(detector_core::link::InterfaceName::as_str)
                        == name.as_deref()
            }))
        }
    }
}

fn kernel_view(address: IpAddr, kernel: std::io::Result<Fate>) -> KernelView {
    let nothing = KernelView {
        way: String::new(),
        interface: None,
        gateway: None,
        table: None,
        route: None,
        refused: None,
    };
    match kernel {
        Ok(Fate::Goes { way, route }) => {
            let hop = way.hops.as_slice().first().copied();
            let interface =
                hop.and_then(|hop| hop.interface).map(|i| lookup::interface_name(i.get()));
            let gateway = hop.and_then(|hop| hop.gateway);
            let mut text = match way.kind {
                RouteKind::Unicast => address.to_string(),
                kind => format!("{kind} {address}"),
            };
            text.extend(gateway.map(|gateway| format!(" via {gateway}")));
            text.extend(interface.as_ref().map(|name| format!(" dev {name}")));
            KernelView {
                way: text,
                interface,
                gateway,
                table: Some(way.table.to_string()),
                route: route.map(|route| {
                    let legs = route.hops.as_slice().iter().map(|hop| Leg {
                        interface: hop.interface.and_then(|index| {
                            let name = lookup::interface_name(index.get());
                            detector_core::link::InterfaceName::new(&name)
                        }),
                        gateway: hop.gateway,
                        behind: None,
                    });
                    in_words(&route, &legs.collect::<Vec<_>>())
                }),
                ..nothing
            }
        }
        Ok(Fate::Refused(error)) => {
            KernelView { way: "not sent".to_owned(), refused: Some(error.to_string()), ..nothing }
        }
        Err(error) => KernelView {
            way: "not known".to_owned(),
            refused: Some(format!("the kernel could not be asked: {error}")),
            ..nothing
        },
    }
}

/// A route as `ip route` writes it.
fn in_words(route: &Route, legs: &[Leg]) -> String {
    use std::fmt::Write as _;

    let mut text = match route.kind {
        RouteKind::Unicast => route.prefix.to_string(),
        kind => format!("{kind} {}", route.prefix),
    };
    for leg in legs {
        if legs.len() > 1 {
            text.push_str(" nexthop");
        }
        // A String takes every character.
        if let Some(gateway) = leg.gateway {
            let _ = write!(text, " via {gateway}");
        }
        if let Some(interface) = &leg.interface {
            let _ = write!(text, " dev {interface}");
        }
    }
    let _ = write!(text, " table {} proto {}", route.table, route.protocol);
    if route.metric != 0 {
        let _ = write!(text, " metric {}", route.metric);
    }
    if let Some(id) = route.nexthop_id {
        let _ = write!(text, " nhid {}", id.get());
    }
    text
}
