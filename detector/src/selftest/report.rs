//! What became of each stage, as people and programs read it.

use std::io::{self, Write};
use std::time::Instant;

use serde::Serialize;

use super::args::Shape;
use crate::text::printable;

/// The name and version of the shape in JSON.
pub const SCHEMA: &str = "detector.selftest/v1";

/// The longest text of a stage.
const LONGEST: usize = 600;

/// What became of a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// All is well.
    Ok,
    /// It works, and not as well as it might.
    Degraded,
    /// It does not work.
    Failed,
    /// It was not tried, as was asked for, or since what comes before it has failed.
    Skipped,
}

/// A stage.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Its name.
    pub stage: String,
    /// What became of it.
    pub outcome: Outcome,
    /// In words: how it went, or why it did not.
    pub text: String,
    /// What the words say that took its time, in milliseconds.
    pub milliseconds: Option<f64>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    schema: &'static str,
    version: &'static str,
    node: Box<str>,
    /// Whether the selftest has passed.
    pub passed: bool,
    /// In the order in which they were over.
    pub stages: Vec<Stage>,
    milliseconds: f64,
}

/// Where stages are told.
pub(super) struct Board<'a> {
    out: &'a mut dyn Write,
    shape: Shape,
    strict: bool,
    began: Instant,
    node: Box<str>,
    stages: Vec<Stage>,
}

// === impl Outcome ===

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

// === impl Board ===

impl<'a> Board<'a> {
    pub(super) fn new(out: &'a mut dyn Write, shape: Shape, strict: bool, node: Box<str>) -> Self {
        Self { out, shape, strict, began: Instant::now(), node, stages: Vec::new() }
    }

    /// A stage went well.
    pub(super) fn ok(&mut self, stage: &str, text: &str) -> io::Result<()> {
        self.tell(stage, Outcome::Ok, text, None)
    }

    /// A stage went well, and took so long.
    pub(super) fn timed(&mut self, stage: &str, text: &str, took: f64) -> io::Result<()> {
        self.tell(stage, Outcome::Ok, text, Some(took))
    }

    /// A stage works, and not as well as it might.
    pub(super) fn degraded(&mut self, stage: &str, why: &str) -> io::Result<()> {
        self.tell(stage, Outcome::Degraded, why, None)
    }

    /// A stage does not work.
    pub(super) fn failed(&mut self, stage: &str, why: &str) -> io::Result<()> {
        self.tell(stage, Outcome::Failed, why, None)
    }

    /// A stage was not tried.
    pub(super) fn skipped(&mut self, stage: &str, why: &str) -> io::Result<()> {
        self.tell(stage, Outcome::Skipped, why, None)
    }

    /// Tells what became of all; gives whether it has passed.
    pub(super) fn end(self) -> io::Result<bool> {
        let bad = |stage: &Stage| match stage.outcome {
            Outcome::Failed => true,
            Outcome::Degraded => self.strict,
            Outcome::Ok | Outcome::Skipped => false,
        };
        let passed = !self.stages.iter().any(bad);
        if self.shape == Shape::Json {
            let report = Report {
                schema: SCHEMA,
                version: env!("CARGO_PKG_VERSION"),
                node: self.node,
                passed,
                stages: self.stages,
                milliseconds: self.began.elapsed().as_secs_f64() * 1_000.0,
            };
            serde_json::to_writer(&mut *self.out, &report)?;
            writeln!(self.out)?;
        }
        self.out.flush()?;
        Ok(passed)
    }

    fn tell(
        &mut self,
        stage: &str,
        outcome: Outcome,
        text: &str,
        milliseconds: Option<f64>,
    ) -> io::Result<()> {
        let text = printable(text, LONGEST);
        if self.shape == Shape::Text {
            let word = outcome.as_str();
            writeln!(self.out, "{word:<9} {stage:<14} {text}")?;
            self.out.flush()?;
        }
        self.stages.push(Stage { stage: stage.to_owned(), outcome, text, milliseconds });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(strict: bool, shape: Shape, tell: impl Fn(&mut Board<'_>)) -> (String, bool) {
        let mut out = Vec::new();
        let mut board = Board::new(&mut out, shape, strict, "a".into());
        tell(&mut board);
        let passed = board.end().unwrap();
        (String::from_utf8(out).unwrap(), passed)
    }

    #[test]
    fn what_is_degraded_fails_only_where_that_is_asked_for() {
        let tell = |board: &mut Board<'_>| {
            board.ok("routes", "seen by ebpf").unwrap();
            board.degraded("packets", "refused").unwrap();
            board.skipped("api", "not asked for").unwrap();
        };
        let (text, passed) = told(false, Shape::Text, tell);
        assert!(passed);
        assert_eq!(
            text,
            "ok        routes         seen by ebpf\n\
             degraded  packets        refused\n\
             skipped   api            not asked for\n"
        );
        assert!(!told(true, Shape::Text, tell).1);
        let failed = |board: &mut Board<'_>| board.failed("api", "down\nand out").unwrap();
        let (text, passed) = told(false, Shape::Text, failed);
        assert_eq!((text.as_str(), passed), ("failed    api            down\\nand out\n", false));
    }

    #[test]
    fn programs_read_one_object() {
        let (text, _) =
            told(false, Shape::Json, |board| board.timed("api", "synced", 1.5).unwrap());
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["schema"], SCHEMA);
        assert_eq!(report["passed"], true);
        assert_eq!(report["stages"][0]["outcome"], "ok");
        assert_eq!(report["stages"][0]["milliseconds"], 1.5);
        assert_eq!(text.lines().count(), 1);
    }
}
