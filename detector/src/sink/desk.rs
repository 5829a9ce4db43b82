//! The desk: a thread between the agent's loop and the sinks.
//!
//! It takes every finding at once, so that no sink and no disk ever holds the engine up; writes down
//! what it is about to tell; decides who is told what, by severity, limits, repetition and
//! acknowledgement; and hands each sink its messages over a bounded queue. What it does not tell it
//! counts, and says so in a summary.

mod told;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use detector_core::finding::{Charge, Evidence, Finding, FindingKey, State, Witness};
use detector_core::time::BootTime;
use jiff::Timestamp;
use tracing::{info, warn};

use self::told::Told;
use super::book::{Accepted, Book, BookError, Kept, Read, boot_id};
use super::limit::Limiter;
use super::outlet::{Confirmed, Delivery, Message, Outlet};
use super::report::{How, Origin, Report};
use super::summary::Summary;
use super::{Ask, In};
use crate::clock::{self, BootWall};
use crate::health::Health;
use crate::telemetry::Telemetry;

/// How long an agent that is ending may keep the state file.
const HANDOVER: Duration = Duration::from_secs(3);

/// How long the engine may take to find by itself what it was not told of: the longest grace and more.
const LATE: Duration = Duration::from_mins(2);

/// How soon a state file that could not be written is tried again.
const REPAIR: Duration = Duration::from_secs(10);

/// How often it looks around although nothing came: for repetitions and acknowledgements that expire.
const GLANCE: Duration = Duration::from_secs(1);

/// Stands for the boot of what could not be read in time.
const UNREAD: &str = "unread";

/// The name of the capability that the state file is.
pub(super) const STATE: &str = "state";

/// What the desk is made of.
pub(super) struct Options {
    pub(super) origin: Arc<Origin>,
    /// Whether all that is told is a test.
    pub(super) test: bool,
    pub(super) repeat: Duration,
    pub(super) state: Option<PathBuf>,
    /// Findings that were sent here and not begun with.
    pub(super) backlog: Arc<AtomicUsize>,
    pub(super) health: Health,
    pub(super) telemetry: Arc<Telemetry>,
}

/// The desk's own state.
pub(super) struct Desk {
    options: Options,
    outlets: Vec<(Outlet, Option<Limiter>)>,
    book: Option<Book>,
    /// When the state file is tried again, where it could not be written.
    repair: Option<Instant>,
    told: Told,
    boot: BootWall,
    /// When it last looked for what is to be told again.
    glanced: Instant,
    /// Findings that stood before and that the engine was not told of, since they could not be read in
    /// time: what of them still stands it finds by itself.
    late: Vec<Kept>,
    began: Instant,
}

// === impl Desk ===

impl Desk {
    /// Reads what an earlier agent has left. Gives the findings that stand by it, for the engine.
    pub(super) fn open(
        options: Options,
        outlets: Vec<(Outlet, Option<Limiter>)>,
    ) -> (Self, Vec<Finding>) {
        options.health.expect(STATE);
        let mut desk = Self {
            options,
            outlets,
            book: None,
            repair: None,
            told: Told::new(boot_id()),
            boot: BootWall::now(),
            glanced: Instant::now(),
            late: Vec::new(),
            began: Instant::now(),
        };
        let mut standing = Vec::new();
        if let Some(path) = desk.options.state.clone() {
            let (book, left) = Book::open(&path, &desk.options.origin.node, HANDOVER);
            standing = desk.take_over(left);
            match book {
                Ok(book) => desk.book = Some(book),
                Err(error) => desk.broke(&error),
            }
        }
        (desk, standing)
    }

    fn take_over(&mut self, left: Read) -> Vec<Finding> {
        let Read { kept, set_aside } = left;
        if let Some(why) = set_aside {
            let why = format!("the state file made no sense: {why}");
            warn!(why, "findings that stand are told anew");
        }
        let known: BTreeSet<Box<str>> =
            self.outlets.iter().map(|(outlet, _)| outlet.name.clone()).collect();
        let now = boot_id();
        let mut standing = Vec::new();
        for kept in kept {
            let mut finding = kept.finding.clone();
            let earlier = kept.boot.id != now;
            let (boot, mut told) = (kept.boot.wall, clock::now());
            if earlier {
                told = finding.at;
            }
            if earlier && finding.state != State::Closed {
                // Whatever the kernel had of it is gone; what is made anew is another diversion.
                finding.state = State::Closed;
                finding.ended = Some(finding.at);
                finding.charge.evidence.push(Evidence {
                    at: finding.at,
                    witness: Witness::Kernel,
                    text: if *kept.boot.id == *UNREAD {
                        "the agent could not read of it at its start, and has not seen it since"
                    } else {
                        "the node was booted anew since, which took it away"
                    }
                    .into(),
                });
            } else if finding.state != State::Closed {
                standing.push(finding.clone());
            }
            let mut report = Report::new(&self.options.origin, boot, told, finding);
            report.past = earlier;
            self.told.restore(kept, report, &known);
        }
        if !standing.is_empty() {
            info!(standing = standing.len(), "findings are known that stood before");
        }
        standing
    }

    /// Tells sinks what an earlier agent may not have told them, then works until told to end.
    /// `known` is whether the engine was told of the findings that stood.
    pub(super) fn run(mut self, inbox: &Receiver<In>, known: bool) {
        if !known {
            self.late = self.told.take_standing();
        }
        self.tell_what_was_not();
        let patience = loop {
            let wait = self.next_deadline().unwrap_or(GLANCE).min(GLANCE);
            match inbox.recv_timeout(wait) {
                Ok(In::Finding { finding, told, boot }) => {
                    self.options.backlog.fetch_sub(1, Ordering::Relaxed);
                    self.take(*finding, told, boot);
                }
                Ok(In::Standing { findings, told, boot }) => self.reconcile(findings, told, boot),
                Ok(In::Confirmed(confirmed)) => self.confirm(&confirmed),
                Ok(In::Ask(ask)) => self.answer(ask),
                Ok(In::End(patience)) => break patience,
                Err(RecvTimeoutError::Disconnected) => break Duration::ZERO,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look_around();
        };
        self.end(inbox, patience);
    }

    fn take(&mut self, finding: Finding, told: BootTime, boot: BootWall) {
        self.boot = boot;
        let mut report = Report::new(&self.options.origin, boot, told, finding);
        report.test = self.options.test;
        self.tell(report, &BTreeSet::new());
    }

    /// Tells a report to whom it concerns: `only` to these sinks, where any are named.
    fn tell(&mut self, mut report: Report, only: &BTreeSet<Box<str>>) {
        let key = report.finding.key.clone();
        if report.how == How::Closed && only.is_empty() && self.told.says(&key).is_none() {
            // Nobody was told that it began, or it was closed here already.
            return;
        }
        let now = clock::now();
        let attacker = report.attacker();
        let entry = self.told.entry(&report);
        report.acknowledged = entry.acknowledged();
        let (quiet, turned) = (entry.is_quiet(&report), entry.is_turned_by(&report));
        let (mut singly, mut summed) = (Vec::new(), Vec::new());
        for (at, (outlet, limiter)) in self.outlets.iter_mut().enumerate() {
            let knows = entry.told.contains(&outlet.name);
            let severe = report.severity() >= outlet.least;
            let concerns = match report.how {
                _ if !only.is_empty() => only.contains(&outlet.name),
                // Who keeps what stands shows who takes care of it.
                How::Repeated => severe && (outlet.level || (outlet.repeats && !quiet)),
                _ if outlet.record => true,
                // Whoever was told that it began is told that it is over.
                How::Closed => knows || entry.summed.contains(&outlet.name),
                // Whoever has it as it was is told that it turned, be it for the better.
                How::Updated if knows && turned => outlet.level || !quiet,
                _ => severe && (outlet.level || !quiet),
            };
            if !concerns {
                continue;
            }
            let passes = match limiter {
                None => true,
                // The end of what was summed up is summed up.
                Some(_) if report.how == How::Closed && !knows => false,
                Some(limiter) => limiter.admits(now, &attacker, report.how),
            };
            if passes { singly.push(at) } else { summed.push(at) }
        }
        let names = |all: &[usize]| all.iter().map(|at| self.outlets[*at].0.name.clone()).collect();
        let n = self.told.note(&report, names(&singly), names(&summed), only.is_empty());
        // Before anybody is told: who is killed in between has it to tell again.
        self.write(&key);
        let report = Arc::new(report);
        for at in singly {
            let message = Message::Report(Arc::clone(&report));
            self.hand(at, Delivery { message, numbers: vec![n] });
        }
        for at in summed {
            let (outlet, limiter) = &mut self.outlets[at];
            if let Some(limiter) = limiter {
                limiter.hold(now, n, &report);
                self.options.telemetry.count_message(&outlet.name, "held_back");
            }
        }
        self.told.forget_if_over(&key);
    }

    /// Hands a message to a sink; one that has no room for it never gets it, and that is counted.
    fn hand(&mut self, at: usize, delivery: Delivery) {
        let outlet = &mut self.outlets[at].0;
        let numbers = delivery.numbers.clone();
        if let Err(why) = outlet.send(delivery) {
            let name = outlet.name.clone();
            self.options.telemetry.count_message(&name, "dropped");
            self.options.health.degrade(&outlet.capability(), why);
            self.confirm(&Confirmed { sink: at, numbers });
        }
    }

    fn confirm(&mut self, confirmed: &Confirmed) {
        let name = self.outlets[confirmed.sink].0.name.clone();
        for n in &confirmed.numbers {
            self.told.done(*n, &name);
            if let Some(book) = self.book.as_mut()
                && let Err(source) = book.done(*n, &name)
            {
                self.cannot_write(source);
            }
        }
    }

    fn write(&mut self, key: &FindingKey) {
        let Some(kept) = self.told.kept(key) else { return };
        if let Some(book) = self.book.as_mut()
            && let Err(source) = book.tell(kept)
        {
            self.cannot_write(source);
        }
    }

    fn cannot_write(&mut self, source: std::io::Error) {
        // The last line may be half written: nothing can follow it.
        self.book = None;
        if let Some(path) = self.options.state.clone() {
            self.broke(&BookError::Io { path, source });
        }
    }

    fn broke(&mut self, error: &BookError) {
        self.options.health.degrade(STATE, &error.to_string());
        self.repair = Some(Instant::now() + REPAIR);
    }

    /// Opens the state file again and writes all that is known to it.
    fn repair(&mut self) {
        let Some(path) = self.options.state.clone() else { return };
        self.repair = None;
        let (book, Read { kept, set_aside: _ }) =
            Book::open(&path, &self.options.origin.node, Duration::ZERO);
        let known = |key: &FindingKey| {
            self.told.knows(key) || self.late.iter().any(|late| late.finding.key == *key)
        };
        let unknown: Vec<Kept> =
            kept.into_iter().filter(|kept| !known(&kept.finding.key)).collect();
        self.late.extend(unknown);
        let written = book.and_then(|mut book| {
            let rewritten = book.rewrite(self.all());
            rewritten.map_err(|source| BookError::Io { path, source })?;
            Ok(book)
        });
        match written {
            Ok(book) => {
                self.book = Some(book);
                self.options.health.restore(STATE);
            }
            Err(error) => self.broke(&error),
        }
    }

    /// Tells of findings that came too late for the engine that they are over, unless it has found them
    /// by itself: it has had the time.
    fn give_up_late(&mut self) {
        if self.late.is_empty() || self.began.elapsed() < LATE {
            return;
        }
        for mut kept in std::mem::take(&mut self.late) {
            let key = kept.finding.key.clone();
            if self.told.knows(&key) {
                continue;
            }
            if kept.finding.state != State::Closed {
                kept.boot.id = UNREAD.into();
            }
            drop(self.take_over(Read { kept: vec![kept], set_aside: None }));
            self.tell_to_those_who_wait(&key);
        }
    }

    fn tell_what_was_not(&mut self) {
        for (report, mut only) in self.told.to_tell() {
            let closed = report.finding.state == State::Closed;
            if !closed {
                // Who keeps what stands begins with nothing.
                let keeps = self.outlets.iter().filter(|(outlet, _)| outlet.level);
                let keeps = keeps.filter(|(outlet, _)| report.severity() >= outlet.least);
                only.extend(keeps.map(|(outlet, _)| outlet.name.clone()));
            }
            if !only.is_empty() {
                let report = if closed { report } else { report.repeated(clock::now()) };
                self.tell(report, &only);
            }
        }
        self.rewrite_if(true);
    }

    fn tell_to_those_who_wait(&mut self, key: &FindingKey) {
        let waiting = self.told.to_tell();
        let this = waiting.into_iter().find(|(report, _)| report.finding.key == *key);
        if let Some((report, only)) = this.filter(|(_, only)| !only.is_empty()) {
            self.tell(report, &only);
        }
    }

    /// All that is kept.
    fn all(&self) -> impl Iterator<Item = Kept> {
        self.told.all().chain(self.late.iter().cloned())
    }

    fn look_around(&mut self) {
        let now = clock::now();
        for at in 0..self.outlets.len() {
            let batch = self.outlets[at].1.as_mut().and_then(|limiter| limiter.end_window(now));
            if let Some(batch) = batch {
                self.sum_up(at, batch);
            }
        }
        if self.glanced.elapsed() < GLANCE {
            return;
        }
        self.glanced = Instant::now();
        if self.repair.is_some_and(|due| Instant::now() >= due) {
            self.repair();
        }
        self.give_up_late();
        let again = self.told.due(self.options.repeat, Timestamp::now());
        for (report, expired) in again {
            if expired {
                self.note_acknowledgement(&report.finding.key, None);
            }
            self.tell(report.repeated(now), &BTreeSet::new());
        }
        self.rewrite_if(false);
        for (outlet, _) in &self.outlets {
            outlet.measure(&self.options.telemetry);
        }
    }

    fn sum_up(&mut self, at: usize, batch: super::limit::Batch) {
        let numbers = batch.numbers.clone();
        let summary = Summary::new(&self.options.origin, self.boot, batch);
        self.hand(at, Delivery { message: Message::Summary(Arc::new(summary)), numbers });
    }

    fn rewrite_if(&mut self, anyway: bool) {
        let kept = self.told.len() + self.late.len();
        let Some(book) = self.book.as_mut().filter(|book| anyway || book.is_stale(kept)) else {
            return;
        };
        let all = self.told.all().chain(self.late.iter().cloned());
        if let Err(source) = book.rewrite(all) {
            self.cannot_write(source);
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let now = clock::now();
        let windows = self.outlets.iter().filter_map(|(_, limiter)| limiter.as_ref());
        windows.filter_map(Limiter::next_deadline).map(|due| due.since(now)).min()
    }

    /// Takes the whole of what stands, where findings were lost on their way here: tells what was not
    /// told, and closes what is over.
    fn reconcile(&mut self, findings: Vec<Finding>, told: BootTime, boot: BootWall) {
        self.boot = boot;
        let stand: HashMap<FindingKey, Finding> =
            findings.into_iter().map(|finding| (finding.key.clone(), finding)).collect();
        for mut finding in
            self.told.standing().filter(|f| !stand.contains_key(&f.key)).collect::<Vec<_>>()
        {
            finding.state = State::Closed;
            finding.ended = Some(told);
            finding.at = told;
            self.take(finding, told, boot);
        }
        for (_, mut finding) in stand {
            match self.told.says(&finding.key) {
                // Packets are counted on without a word.
                Some(known) if is_as_told(known, &finding) => continue,
                Some(_) => finding.state = State::Updated,
                None => finding.state = State::Opened,
            }
            self.take(finding, told, boot);
        }
        self.options.health.restore(super::DESK);
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Acknowledge { key, by, answer } => {
                let found = self.told.acknowledge(&key, by.as_ref());
                let answered = match found {
                    Some((key, accepted)) => {
                        self.note_acknowledgement(&key, accepted.as_ref());
                        self.show_acknowledgement(&key);
                        Ok(())
                    }
                    None => Err(format!(
                        "no finding with the key \"{key}\" stands: `detector findings` shows those \
                         that do"
                    )),
                };
                // Who asked may have gone.
                let _ = answer.send(answered);
            }
            Ask::Findings(answer) => {
                let _ = answer.send(self.told.reports());
            }
            Ask::Test(report) => {
                let report = Arc::new(*report);
                for at in 0..self.outlets.len() {
                    let message = Message::Report(Arc::clone(&report));
                    self.hand(at, Delivery { message, numbers: Vec::new() });
                }
            }
        }
    }

    /// Shows who takes care of a finding where it stands.
    fn show_acknowledgement(&mut self, key: &FindingKey) {
        let keeps = self.outlets.iter().filter(|(outlet, _)| outlet.level);
        let keeps: BTreeSet<Box<str>> = keeps.map(|(outlet, _)| outlet.name.clone()).collect();
        let Some((report, told)) = self.told.report(key) else { return };
        let only: BTreeSet<Box<str>> = keeps.intersection(told).cloned().collect();
        let report = report.repeated(clock::now());
        if !only.is_empty() {
            self.tell(report, &only);
        }
    }

    fn note_acknowledgement(&mut self, key: &FindingKey, by: Option<&Accepted>) {
        if let Some(book) = self.book.as_mut()
            && let Err(source) = book.acknowledge(key, by)
        {
            self.cannot_write(source);
        }
    }

    /// Tells what is held back, and lets the sinks finish what they have.
    fn end(mut self, inbox: &Receiver<In>, patience: Duration) {
        let now = clock::now();
        for at in 0..self.outlets.len() {
            let batch = self.outlets[at].1.as_mut().and_then(|limiter| limiter.flush(now));
            if let Some(batch) = batch {
                self.sum_up(at, batch);
            }
        }
        let end = Instant::now() + patience;
        for (outlet, _) in &mut self.outlets {
            outlet.close();
        }
        // Each sink ends its part of the channel when it has sent what it had.
        while self.outlets.iter().any(|(outlet, _)| !outlet.has_ended()) {
            let left = end.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left.min(Duration::from_millis(20))) {
                Ok(In::Confirmed(confirmed)) => self.confirm(&confirmed),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if left.is_zero() => break,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
        while let Ok(message) = inbox.try_recv() {
            if let In::Confirmed(confirmed) = message {
                self.confirm(&confirmed);
            }
        }
        for (outlet, _) in &self.outlets {
            if !outlet.has_ended() {
                warn!(sink = %outlet.name, "has not taken all that was queued: giving up");
            }
        }
    }
}

/// Whether a finding is as it was told, but for its packets.
fn is_as_told(told: &Finding, now: &Finding) -> bool {
    let bare = |finding: &Finding| Charge { traffic: None, ..finding.charge.clone() };
    bare(told) == bare(now)
}
