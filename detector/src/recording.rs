//! Recordings: every word that the engine is told, in order and with its time, and when each finding
//! was told. Since the engine is pure, the same words give the same findings, byte for byte: on another
//! machine, without a kernel or a cluster, as a test, a demonstration, or part of a bug report.
//!
//! A recording is lines of JSON. It names pods and addresses of the cluster, as findings do.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use detector_core::engine::{Engine, Output};
use detector_core::finding::Finding;
use detector_core::observation::Observation;
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::clock::BootWall;
use crate::health::Health;
use crate::sink::{Origin, Report};

/// The name and version of a recording's shape.
pub const SCHEMA: &str = "detector.recording/v1";

/// The name of the capability that a recording is.
pub(crate) const RECORDING: &str = "recording";

/// Lines that wait for the disk: what half a million changes of routes a second bring in a tenth of one.
const QUEUE: usize = 65_536;

/// How long the disk may take for what is queued at the end.
const FAREWELL: Duration = Duration::from_secs(2);

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

/// Writes a recording, by a thread of its own: a slow disk ends the recording, and delays nobody.
pub struct Recorder {
    lines: Option<SyncSender<Vec<u8>>>,
    /// Tells when all is written.
    written: Receiver<()>,
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
    /// Begins a recording. One that is there already is kept under the same name with `.old`.
    pub fn create(
        path: &Path,
        origin: &Origin,
        settings: Settings,
        health: Health,
    ) -> Result<Self, RecordingError> {
        let wrong = |source| RecordingError::Io { path: path.into(), source };
        let mut old = path.as_os_str().to_owned();
        old.push(".old");
        match fs::rename(path, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(error)),
            _ => {}
        }
        // It names pods and addresses: nobody else's to read, and nowhere that another has put here.
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
        let mut file = BufWriter::with_capacity(1 << 20, file.map_err(wrong)?);
        let header = Header {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: origin.node.clone(),
            runbooks: origin.runbooks.clone(),
            settings,
        };
        file.write_all(&line(&Written::Recording(&header)).map_err(wrong)?).map_err(wrong)?;
        file.flush().map_err(wrong)?;
        let (lines, queue) = sync_channel(QUEUE);
        let (tell, written) = sync_channel(1);
        std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || {
                if let Err(error) = write_all(file, &queue) {
                    let why = format!("the recording cannot be written and ends here: {error}");
                    health.degrade(RECORDING, &why);
                }
                // Nobody listens any more where the agent did not wait.
                let _ = tell.send(());
            })
            .map_err(wrong)?;
        Ok(Self { lines: Some(lines), written })
    }

    pub(crate) fn restore(&self, now: BootTime, findings: &[Finding]) -> Result<(), &'static str> {
        self.write(&Written::Restore(now, findings))
    }

    pub(crate) fn observe(
        &self,
        now: BootTime,
        observation: &Observation,
    ) -> Result<(), &'static str> {
        self.write(&Written::Observe(now, observation))
    }

    pub(crate) fn tick(&self, now: BootTime) -> Result<(), &'static str> {
        self.write(&Written::Tick(now))
    }

    pub(crate) fn told(&self, told: BootTime, boot: BootWall) -> Result<(), &'static str> {
        self.write(&Written::Told(told, boot))
    }

    /// Ends it without waiting for the disk.
    pub(crate) fn abandon(mut self) {
        (self.lines, self.written) = (None, sync_channel(1).1);
    }

    fn write(&self, written: &Written<'_>) -> Result<(), &'static str> {
        let line = line(written).map_err(|_| "a word cannot be written down")?;
        let lines = self.lines.as_ref().ok_or("it has ended")?;
        lines.try_send(line).map_err(|error| match error {
            TrySendError::Full(_) => "the disk is too slow for it",
            TrySendError::Disconnected(_) => "its file cannot be written",
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.lines = None;
        // It writes what is queued. Where it has failed it has said so; where the disk hangs, the end is
        // missing.
        let _ = self.written.recv_timeout(FAREWELL);
    }
}

fn line(written: &Written<'_>) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(written)?;
    line.push(b'\n');
    Ok(line)
}

/// Writes lines as they come; out to the file whenever there are no more.
fn write_all(mut file: BufWriter<File>, queue: &Receiver<Vec<u8>>) -> io::Result<()> {
    while let Ok(line) = queue.recv() {
        file.write_all(&line)?;
        while let Ok(line) = queue.try_recv() {
            file.write_all(&line)?;
        }
        file.flush()?;
    }
    file.flush()
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
