//! What the agent tells of itself in numbers: the metrics, by the names that dashboards and rules use.
//!
//! No label names a pod or an address: who can make routes must not be able to make series.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use detector_core::finding::{Finding, State};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// From the kernel's change to the finding: the fastest take a fraction of a millisecond, and those
/// that wait for evidence take up to the longest grace.
const LATENCIES: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// What the metrics are served as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older text format of Prometheus.
    Text,
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
        pub struct $name {
            $(#[doc = concat!("The label `", stringify!($field), "`.")] pub $field: String,)+
        }

        impl $name {
            /// The labels with these values.
            pub fn new($($field: &str),+) -> Self {
                Self { $($field: $field.to_owned()),+ }
            }
        }
    )+};
}

labels! {
    /// Where from.
    Source { source }
    /// At which stage.
    Stage { stage }
    /// For which reason.
    Reason { reason }
    /// A finding's transition.
    Transition { state, verdict, severity, means }
    /// What stands.
    Standing { verdict, severity }
    /// Of what.
    What { what }
    /// Which capability.
    Capability { capability }
    /// A sink, and what became of a message there.
    Delivery { sink, result }
    /// A sink.
    Sink { sink }
    /// With which outcome.
    Outcome { result }
    /// Of which kind.
    Kind { kind }
    /// On which side of a translation packets were counted.
    Side { side }
    /// What packets pretended.
    Pretence { pretence }
    /// Which watch.
    Watch { watch }
}

/// A number that only grows and that is kept elsewhere: it is taken over as it is.
pub type Total = Counter<u64, AtomicU64>;

/// All metrics. Whoever has something to tell holds a reference and counts.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is described where it is registered, in the words of HELP")]
pub struct Telemetry {
    registry: Registry,
    pub ready: Gauge,
    pub observations: Family<Source, Total>,
    pub lost: Family<Stage, Total>,
    pub resyncs: Family<Reason, Total>,
    pub findings: Family<Transition, Total>,
    pub standing: Family<Standing, Gauge>,
    pub latency: Histogram,
    pub known: Family<What, Gauge>,
    pub pending: Family<What, Gauge>,
    pub overflowed: Total,
    pub questions: Total,
    pub unanswered: Total,
    pub requests: Total,
    pub failures: Total,
    pub rejected: Total,
    pub watch_silence: Family<Watch, Gauge<f64, AtomicU64>>,
    pub degraded: Family<Capability, Gauge>,
    pub blind: Family<Capability, Counter<f64, AtomicU64>>,
    pub sink_messages: Family<Delivery, Total>,
    pub sink_queue: Family<Sink, Gauge>,
    pub reloads: Family<Outcome, Total>,
    pub interfaces: Family<Kind, Gauge>,
    pub addresses: Gauge,
    pub packets: Family<Side, Total>,
    pub pretended: Family<Pretence, Total>,
    /// Commands that are none of Calico's and wrote a pod's own route, each counted once.
    pub strangers: Total,
    sink_names: Mutex<Vec<String>>,
    resident: Gauge,
    cpu: Counter<f64, AtomicU64>,
    started: Gauge<f64, AtomicU64>,
    descriptors: Gauge,
}

// === impl Telemetry ===

impl Default for Telemetry {
    #[expect(clippy::too_many_lines, reason = "one entry for each metric")]
    fn default() -> Self {
        let mut registry = Registry::default();
        let version = env!("CARGO_PKG_VERSION");
        registry.register(
            "detector_build",
            "The version of the agent",
            Info::new(vec![("version", version)]),
        );
        macro_rules! register {
            ($name:literal, $help:literal) => {
                register!($name, $help, Default::default())
            };
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
        }
        let ready = register!(
            "detector_ready",
            "Whether every source has told all there is, or is declared degraded"
        );
        let observations =
            register!("detector_observations", "Observations taken, by where they come from");
        let lost = register!("detector_lost", "What was sent and not heard, by stage");
        let resyncs = register!("detector_resyncs", "Readings of the kernel's tables, by reason");
        let findings = register!("detector_findings", "Findings told, by what became of them");
        let standing = register!("detector_findings_standing", "Findings that stand now");
        let latency = Histogram::new(LATENCIES);
        registry.register_with_unit(
            "detector_detection_latency",
            "From the kernel's change to the finding, waiting for evidence included",
            Unit::Seconds,
            latency.clone(),
        );
        let known = register!("detector_known", "How much is known, by what");
        let pending = register!("detector_pending", "What waits for evidence or an answer");
        let overflowed = register!(
            "detector_overflowed",
            "Diversions that could not be waited for at once since too many were"
        );
        let questions = register!("detector_questions", "Questions asked of the API server");
        let unanswered =
            register!("detector_questions_unanswered", "Questions that nobody could answer");
        let requests = register!("detector_api_requests", "Requests to the API server");
        let failures =
            register!("detector_api_failures", "Listings and watches that failed and began again");
        let rejected = register!(
            "detector_rejected_inputs",
            "Parts of objects that were not taken since they make no sense"
        );
        let watch_silence = Family::default();
        registry.register_with_unit(
            "detector_watch_silence",
            "For how long a watch of the API server has said nothing",
            Unit::Seconds,
            Family::clone(&watch_silence),
        );
        let degraded = register!(
            "detector_degraded",
            "Whether the agent is blind or impaired in a capability"
        );
        let blind = Family::default();
        registry.register_with_unit(
            "detector_blind",
            "For how long the agent was blind or impaired in a capability",
            Unit::Seconds,
            Family::clone(&blind),
        );
        let sink_messages =
            register!("detector_sink_messages", "Messages for sinks, by what became of them");
        let sink_queue = register!("detector_sink_queue_length", "Messages that wait for a sink");
        let reloads =
            register!("detector_config_reloads", "Changes of the configuration file, by outcome");
        let interfaces =
            register!("detector_watched_interfaces", "Interfaces whose packets are watched");
        let addresses =
            register!("detector_watched_addresses", "Addresses whose packets are counted");
        let packets =
            register!("detector_watched_packets", "Packets counted for addresses under suspicion");
        let strangers = register!(
            "detector_strange_writers",
            "Commands that are none of Calico's and wrote a pod's own route, each counted once"
        );
        let pretended =
            register!("detector_pretended_packets", "Packets of pods that pretend to be another's");
        let resident = Gauge::default();
        registry.register_with_unit(
            "process_resident_memory",
            "Resident memory size",
            Unit::Bytes,
            resident.clone(),
        );
        let cpu = Counter::default();
        registry.register_with_unit(
            "process_cpu",
            "Total user and system CPU time spent",
            Unit::Seconds,
            cpu.clone(),
        );
        let started = Gauge::default();
        registry.register_with_unit(
            "process_start_time",
            "Start time of the process since the Unix epoch",
            Unit::Seconds,
            started.clone(),
        );
        let descriptors = register!("process_open_fds", "Open file descriptors");
        let telemetry = Self {
            registry,
            ready,
            observations,
            lost,
            resyncs,
            findings,
            standing,
            latency,
            known,
            pending,
            overflowed,
            questions,
            unanswered,
            requests,
            failures,
            rejected,
            watch_silence,
            degraded,
            blind,
            sink_messages,
            sink_queue,
            reloads,
            interfaces,
            addresses,
            packets,
            pretended,
            strangers,
            sink_names: Mutex::default(),
            resident,
            cpu,
            started,
            descriptors,
        };
        telemetry.started.set(start_time().unwrap_or_default());
        telemetry
    }
}

impl Telemetry {
    /// All metrics as text.
    pub fn expose(&self, exposition: Exposition) -> String {
        self.look_at_process();
        let mut written = String::new();
        // A String takes every character.
        let _ = text::encode(&mut written, &self.registry);
        match exposition {
            Exposition::OpenMetrics => written,
            Exposition::Text => older_text(&written),
        }
    }

    /// Counts a finding that is told.
    pub fn count_finding(&self, finding: &Finding, latency: Duration) {
        let charge = &finding.charge;
        let labels = Transition::new(
            finding.state.as_str(),
            charge.certainty.as_str(),
            charge.severity.as_str(),
            charge.means.as_str(),
        );
        self.findings.get_or_create(&labels).inc();
        if finding.state == State::Opened {
            self.latency.observe(latency.as_secs_f64());
        }
    }

    /// Counts a message for a sink.
    pub fn count_message(&self, sink: &str, result: &str) {
        self.sink_messages.get_or_create(&Delivery::new(sink, result)).inc();
    }

    /// How many messages for a sink had this result.
    pub fn messages(&self, sink: &str, result: &str) -> u64 {
        self.sink_messages.get(&Delivery::new(sink, result)).map_or(0, |count| count.get())
    }

    /// What became of the messages of each sink.
    pub fn sinks(&self) -> Vec<crate::doors::SinkView> {
        let names = self.sink_names.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let view = |name: String| crate::doors::SinkView {
            delivered: self.messages(&name, "delivered"),
            failed: self.messages(&name, "failed"),
            dropped: self.messages(&name, "dropped"),
            held_back: self.messages(&name, "held_back"),
            retried: self.messages(&name, "retried"),
            queued: self.sink_queue.get(&Sink::new(&name)).map_or(0, |queue| queue.get()),
            name,
        };
        names.into_iter().map(view).collect()
    }

    /// Makes a sink known, so that its numbers are shown before anything was sent.
    pub fn expect_sink(&self, name: &str) {
        for result in ["delivered", "failed", "dropped", "held_back", "retried"] {
            drop(self.sink_messages.get_or_create(&Delivery::new(name, result)));
        }
        drop(self.sink_queue.get_or_create(&Sink::new(name)));
        self.sink_names.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    fn look_at_process(&self) {
        let page = u64::try_from(
            nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096),
        );
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        if let (Some(pages), Ok(page)) = (pages, page) {
            self.resident.set(i64::try_from(pages * page).unwrap_or(i64::MAX));
        }
        if let Ok(usage) = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)
        {
            let seconds = |time: nix::sys::time::TimeVal| {
                let micros = i32::try_from(time.tv_usec()).unwrap_or_default();
                let whole = u32::try_from(time.tv_sec()).unwrap_or_default();
                f64::from(whole) + f64::from(micros) / 1e6
            };
            let spent = seconds(usage.user_time()) + seconds(usage.system_time());
            self.cpu.inner().store(spent.to_bits(), Ordering::Relaxed);
        }
        let open = fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
        self.descriptors.set(i64::try_from(open).unwrap_or(i64::MAX));
    }
}

/// Takes a total over that is counted elsewhere.
pub fn take_over(total: &Total, value: u64) {
    total.inner().store(value, Ordering::Relaxed);
}

/// When this process began, in seconds since the epoch: field 22 of `/proc/self/stat` counts in ticks
/// since boot.
fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: f64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten()?;
    let hertz = f64::from(u32::try_from(hertz).ok()?);
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + ticks / hertz)
}

/// OpenMetrics as the older text format: there a counter's name has its suffix everywhere, there is no
/// type `info`, and units and the end are not told.
fn older_text(metrics: &str) -> String {
    let mut written = String::with_capacity(metrics.len());
    let mut help = None;
    for line in metrics.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
        } else if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap_or((typed, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some(help) = help.take() {
                let words = help.strip_prefix("# HELP ").and_then(|help| help.split_once(' '));
                let words = words.map_or("", |(_, words)| words);
                let _ = writeln!(written, "# HELP {name}{suffix} {words}");
            }
            let _ = writeln!(written, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let _ = writeln!(written, "{line}");
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_its_suffix_in_either_format() {
        let telemetry = Telemetry::default();
        telemetry.lost.get_or_create(&Stage::new("ring")).inc_by(3);
        let open = telemetry.expose(Exposition::OpenMetrics);
        assert!(open.contains("# TYPE detector_lost counter\n"), "{open}");
        assert!(open.contains("detector_lost_total{stage=\"ring\"} 3\n"), "{open}");
        assert!(open.ends_with("# EOF\n"));
        let older = telemetry.expose(Exposition::Text);
        assert!(older.contains("# TYPE detector_lost_total counter\n"), "{older}");
        assert!(older.contains("# TYPE detector_build_info gauge\n"), "{older}");
        assert!(!older.contains("# EOF"));
    }

    #[test]
    fn the_process_is_told_of() {
        let text = Telemetry::default().expose(Exposition::Text);
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes ") > 100_000.0);
        assert!(value("process_open_fds ") >= 3.0);
        let now = jiff::Timestamp::now().as_duration().as_secs_f64();
        let age = now - value("process_start_time_seconds ");
        assert!((-2.0..600.0).contains(&age), "{age}");
    }
}
