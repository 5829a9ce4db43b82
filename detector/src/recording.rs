//! Recordings: every word that the engine is told, in order and with its time, and when each finding
//! was told. Since the engine is pure, the same words give the same findings, byte for byte: on another
//! machine, without a kernel or a cluster, as a test, a demonstration, or part of a bug report.
//!
//! A recording is lines of JSON. It names pods and addresses of the cluster, as findings do.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use detector_core::engine::{Engine, Output};
use detector_core::finding::Finding;
use detector_core::observation::Observation;
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::clock::BootWall;
use crate::sink::{Origin, Report};

/// The name and version of a recording's shape.
pub const SCHEMA: &str = "detector.recording/v1";

/// Why there is no recording, or why it cannot be replayed.
#[derive(Error, Debug)]
pub enum RecordingError {
    /// The file cannot be read or written.
    #[error("{}: {source}; correct the path", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A line is none of a recording.
    #[error("line {line} of the recording {problem}")]
    Line {
        /// Which; the first is 1.
        line: usize,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The findings are not those that were recorded.
    #[error(
        "line {line} of the recording tells a finding that this version does not find: replay it by \
         the version that made it, {version}"
    )]
    Diverged {
        /// Where.
        line: usize,
        /// The version that made it.
        version: String,
    },
    /// What is replayed cannot be written.
    #[error("the findings cannot be written: {0}")]
    Write(#[source] io::Error),
}

/// What a recording begins with.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: String,
    /// The version of the agent that made it.
    pub version: String,
    /// What its reports had in common.
    pub node: Box<str>,
    /// As in [`Origin`].
    pub runbooks: Option<Box<str>>,
    /// The engine's settings.
    pub settings: Settings,
}

/// A line, to be written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Written<'a> {
    Recording(&'a Header),
    Restore(BootTime, &'a [Finding]),
    Observe(BootTime, &'a Observation),
    Tick(BootTime),
    Told(BootTime, BootWall),
}

/// A line of a recording.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// The first.
    Recording(Header),
    /// These findings stood before.
    Restore(BootTime, Vec<Finding>),
    /// The engine is told this, at that time.
    Observe(BootTime, Observation),
    /// Time passes.
    Tick(BootTime),
    /// A finding is told: when, and by which wall clock.
    Told(BootTime, BootWall),
}

/// Writes a recording.
pub struct Recorder {
    file: BufWriter<File>,
}

/// What a replay came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Replayed {
    /// Words to the engine.
    pub words: u64,
    /// Findings that were told.
    pub told: u64,
    /// Findings that stand at the end.
    pub standing: usize,
    /// Whether the last line was unfinished: the agent was killed in it.
    pub torn: bool,
}

// === impl Recorder ===

impl Recorder {
    /// Begins a recording; what the file held before is gone.
    pub fn create(
        path: &Path,
        origin: &Origin,
        settings: Settings,
    ) -> Result<Self, RecordingError> {
        let wrong = |source| RecordingError::Io { path: path.into(), source };
        let mut options = OpenOptions::new();
        // It names pods and addresses: nobody else's to read.
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
        let mut recorder = Self { file: BufWriter::with_capacity(1 << 20, file.map_err(wrong)?) };
        let header = Header {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: origin.node.clone(),
            runbooks: origin.runbooks.clone(),
            settings,
        };
        recorder.write(&Written::Recording(&header)).map_err(wrong)?;
        recorder.flush().map_err(wrong)?;
        Ok(recorder)
    }

    pub(crate) fn restore(&mut self, now: BootTime, findings: &[Finding]) -> io::Result<()> {
        self.write(&Written::Restore(now, findings))
    }

    pub(crate) fn observe(&mut self, now: BootTime, observation: &Observation) -> io::Result<()> {
        self.write(&Written::Observe(now, observation))
    }

    pub(crate) fn tick(&mut self, now: BootTime) -> io::Result<()> {
        self.write(&Written::Tick(now))
    }

    pub(crate) fn told(&mut self, told: BootTime, boot: BootWall) -> io::Result<()> {
        self.write(&Written::Told(told, boot))
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    fn write(&mut self, line: &Written<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, line)?;
        self.file.write_all(b"\n")
    }
}

/// Reads the lines of a recording; an unfinished last one is left out.
pub fn lines(reader: impl BufRead) -> impl Iterator<Item = Result<Line, RecordingError>> {
    let mut reader = reader;
    let mut number = 0;
    let mut text = Vec::new();
    std::iter::from_fn(move || {
        text.clear();
        number += 1;
        let wrong = |problem| Some(Err(RecordingError::Line { line: number, problem }));
        match reader.read_until(b'\n', &mut text) {
            Ok(0) => return None,
            Ok(_) if text.last() != Some(&b'\n') && number > 1 => return None,
            Ok(_) => {}
            Err(error) => return wrong(format!("cannot be read: {error}")),
        }
        match serde_json::from_slice(&text) {
            Ok(Line::Recording(header)) if number == 1 && header.schema != SCHEMA => {
                wrong(format!("says {:?}: this version replays {SCHEMA}", header.schema))
            }
            Ok(Line::Recording(_)) if number > 1 => {
                wrong("begins another recording: replay one at a time".to_owned())
            }
            Ok(line) if number > 1 || matches!(line, Line::Recording(_)) => Some(Ok(line)),
            Ok(_) => wrong("is not how a recording begins: give a file of --record".to_owned()),
            Err(error) => {
                wrong(format!("makes no sense ({error}): give a file of `detector run --record`"))
            }
        }
    })
}

/// Tells an engine all that was recorded, and gives each finding that was told to `each`.
pub fn replay(
    reader: impl BufRead,
    each: &mut dyn FnMut(Report) -> io::Result<()>,
) -> Result<Replayed, RecordingError> {
    let mut lines = lines(reader).enumerate();
    let Some((_, first)) = lines.next() else {
        let problem = "is missing: the file is empty".to_owned();
        return Err(RecordingError::Line { line: 1, problem });
    };
    let Line::Recording(header) = first? else {
        let problem = "is not how a recording begins".to_owned();
        return Err(RecordingError::Line { line: 1, problem });
    };
    let origin = Arc::new(Origin { node: header.node, runbooks: header.runbooks });
    let mut engine = Engine::new(header.settings);
    let mut found = VecDeque::new();
    let mut replayed = Replayed::default();
    for (at, line) in lines {
        match line? {
            Line::Recording(_) => {}
            Line::Restore(now, findings) => engine.restore(now, findings),
            Line::Observe(now, observation) => engine.observe(now, observation),
            Line::Tick(now) => engine.tick(now),
            Line::Told(told, boot) => {
                let Some(finding) = found.pop_front() else {
                    let version = header.version;
                    return Err(RecordingError::Diverged { line: at + 1, version });
                };
                replayed.told += 1;
                each(Report::new(&origin, boot, told, finding)).map_err(RecordingError::Write)?;
                continue;
            }
        }
        replayed.words += 1;
        while let Some(output) = engine.poll() {
            if let Output::Finding(finding) = output {
                found.push_back(*finding);
            }
        }
    }
    // The agent was ended between finding and telling.
    replayed.torn = !found.is_empty();
    replayed.standing = engine.standing().len();
    Ok(replayed)
}
