//! What was heard in a selftest: of the canary's finding, and of each sink.

use std::collections::HashMap;
use std::time::Duration;

use detector_core::finding::{Finding, State};
use detector_core::link::InterfaceName;
use detector_core::time::BootTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::sink::Heard;

/// What was heard so far.
pub(super) struct Told {
    heard: mpsc::UnboundedReceiver<Heard>,
    /// The canary's interface.
    interface: InterfaceName,
    /// The finding as it was told last, and when it was told first.
    finding: Option<(Finding, BootTime)>,
    /// When it was over.
    closed: Option<BootTime>,
    sinks: HashMap<Box<str>, Sink>,
}

/// What a sink has done with what it was told first.
enum Sink {
    Taken(BootTime),
    /// Not yet, for this reason.
    Delayed(Box<str>),
    Refused(Box<str>),
}

// === impl Told ===

impl Told {
    pub(super) fn new(interface: InterfaceName, heard: mpsc::UnboundedReceiver<Heard>) -> Self {
        Self { heard, interface, finding: None, closed: None, sinks: HashMap::new() }
    }

    /// The canary's interface.
    pub(super) fn interface(&self) -> &InterfaceName {
        &self.interface
    }

    /// Waits for the finding; gives it and when it was told.
    pub(super) async fn opened(&mut self, until: Instant) -> Option<(Finding, BootTime)> {
        self.until(until, |told| told.finding.is_some()).await;
        self.finding.clone()
    }

    /// Waits for its end; gives when that was told.
    pub(super) async fn closed(&mut self, until: Instant) -> Option<BootTime> {
        self.until(until, |told| told.closed.is_some()).await;
        self.closed
    }

    /// Waits until all these sinks have taken it, or will not.
    pub(super) async fn taken(&mut self, sinks: &[String], until: Instant) {
        let settled = |told: &Self| {
            sinks.iter().all(|name| {
                matches!(told.sinks.get(name.as_str()), Some(Sink::Taken(_) | Sink::Refused(_)))
            })
        };
        self.until(until, settled).await;
    }

    /// How long a sink took, or why it does not take it, as far as that is known.
    pub(super) fn of_sink(&self, name: &str) -> Result<Option<Duration>, &str> {
        match self.sinks.get(name) {
            Some(Sink::Taken(at)) => Ok(self.finding.as_ref().map(|(_, told)| at.since(*told))),
            Some(Sink::Delayed(why) | Sink::Refused(why)) => Err(why),
            None => Ok(None),
        }
    }

    async fn until(&mut self, until: Instant, so: impl Fn(&Self) -> bool) {
        while !so(self) {
            let Ok(Some(heard)) = timeout_at(until, self.heard.recv()).await else { return };
            self.hear(heard);
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Finding(finding, at) => {
                if finding.state == State::Closed {
                    self.closed = Some(at);
                }
                let first = self.finding.as_ref().map_or(at, |(_, first)| *first);
                self.finding = Some((*finding, first));
            }
            Heard::Taken { sink, at } => {
                if !matches!(self.sinks.get(&sink), Some(Sink::Taken(_) | Sink::Refused(_))) {
                    self.sinks.insert(sink, Sink::Taken(at));
                }
            }
            Heard::Refused { sink, why } => {
                if !matches!(self.sinks.get(&sink), Some(Sink::Taken(_))) {
                    self.sinks.insert(sink, Sink::Refused(why));
                }
            }
            Heard::Delayed { sink, why } => {
                if !matches!(self.sinks.get(&sink), Some(Sink::Taken(_) | Sink::Refused(_))) {
                    self.sinks.insert(sink, Sink::Delayed(why));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_word_of_a_sink_counts() {
        let (tell, heard) = mpsc::unbounded_channel();
        let mut told = Told::new(InterfaceName::new("cali0").unwrap(), heard);
        let at = |millis| BootTime::ZERO.after(Duration::from_millis(millis));
        let delayed = |why: &str| Heard::Delayed { sink: "hook".into(), why: why.into() };
        tell.send(delayed("it answers 503")).unwrap();
        tell.send(Heard::Taken { sink: "events".into(), at: at(3) }).unwrap();
        tell.send(Heard::Refused { sink: "events".into(), why: "the end of it".into() }).unwrap();
        drop(tell);
        let names = ["hook".to_owned(), "events".to_owned(), "stdout".to_owned()];
        told.taken(&names, Instant::now() + Duration::from_mins(1)).await;
        assert_eq!(told.of_sink("hook"), Err("it answers 503"));
        assert!(matches!(told.sinks["events"], Sink::Taken(taken) if taken == at(3)));
        assert_eq!(told.of_sink("stdout"), Ok(None));
    }
}
