//! The state file: which findings stand, what each sink was told of them, and who takes care of them.
//!
//! It is a journal of lines. A line is written before a sink is told what it says, and another when
//! the sink has it; so whatever moment the agent is killed at, the next one knows what stands, and who
//! may not have heard of it. Now and then the file is written anew, without what is over, and put in
//! the place of the old one in one step.
//!
//! A kill leaves at most the last line unfinished, and that one nobody was told of yet. A file that
//! makes no sense otherwise is set aside, and said so. Lines are not forced to the disk one by one:
//! what a power cut could take of them is about routes that went with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use detector_core::finding::{Certainty, Finding, FindingKey, Severity, State};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::report::Acknowledgement;
use crate::clock::BootWall;

/// The name and version of the file's shape.
const SCHEMA: &str = "detector.state/v1";

/// Lines that are over before the file is written anew.
const SLACK: usize = 1_024;

/// A longer file than this is none of ours, in bytes.
const LONGEST: u64 = 1 << 30;

/// Why there is no state file.
#[derive(Error, Debug)]
pub(super) enum BookError {
    /// The file, or its folder, cannot be read or written.
    #[error(
        "the state file {} cannot be used ({source}): findings that stand are told anew after a \
         restart; make its folder writable, or name another by --state", .path.display()
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent has it.
    #[error(
        "the state file {} is another agent's, which is running: stop that one, or name another \
         file by --state", .0.display()
    )]
    Taken(PathBuf),
}

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    /// The first line.
    Book(Header),
    /// What was last told of a finding.
    Finding(Box<Kept>),
    /// A sink has it.
    Done { n: u64, sink: Box<str> },
    /// Who takes care of a finding; nobody where there is none.
    Acknowledged { key: FindingKey, by: Option<Accepted> },
}

#[derive(Serialize, Deserialize)]
struct Header {
    schema: Box<str>,
    node: Box<str>,
}

/// A finding as it is kept.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(super) struct Kept {
    /// The number of what was told last.
    pub(super) n: u64,
    pub(super) finding: Finding,
    /// Sinks that were told of it one by one.
    pub(super) told: BTreeSet<Box<str>>,
    /// Sinks that were told of it in a summary.
    pub(super) summed: BTreeSet<Box<str>>,
    /// Sinks that may not have all that was told, and the number of the last that they have to confirm.
    pub(super) awaits: BTreeMap<Box<str>, u64>,
    /// When it was last told.
    pub(super) last: Timestamp,
    /// The boot whose times the finding has.
    pub(super) boot: Boot,
    pub(super) acknowledged: Option<Accepted>,
}

/// A boot of the kernel.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Boot {
    /// The kernel's id of it.
    pub(super) id: Box<str>,
    /// What the wall clock showed then.
    pub(super) wall: BootWall,
}

/// Who takes care of a finding, and how bad it was when he said so: what is worse is news to him.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(super) struct Accepted {
    pub(super) by: Acknowledgement,
    pub(super) severity: Severity,
    pub(super) certainty: Certainty,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) kept: Vec<Kept>,
    /// Why the file was set aside, and where it is now.
    pub(super) set_aside: Option<String>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    node: Box<str>,
    file: File,
    /// Lines in the file.
    lines: usize,
    /// Another agent must not write it.
    _lock: Flock<File>,
}

// === impl Book ===

impl Book {
    /// Reads what an earlier agent has left and goes on from there. What was read is given even where
    /// the file cannot be written.
    /// One that another agent has is waited for as long as `patience`: that one may be ending.
    pub(super) fn open(
        path: &Path,
        node: &str,
        patience: Duration,
    ) -> (Result<Self, BookError>, Read) {
        let wrong = |source| BookError::Io { path: path.into(), source };
        let locked = lock(path, patience);
        let lock = match locked {
            Ok(lock) => lock,
            Err(error) => return (Err(error), Read::default()),
        };
        let read = match read(path, node) {
            Ok(read) => read,
            Err(Unread::Io(error)) => return (Err(wrong(error)), Read::default()),
            Err(Unread::Nonsense(why)) => {
                let aside = beside(path, "corrupt");
                if let Err(error) = fs::rename(path, &aside) {
                    return (Err(wrong(error)), Read::default());
                }
                let set_aside = format!("{why}; it was set aside as {}", aside.display());
                Read { set_aside: Some(set_aside), ..Read::default() }
            }
        };
        let book = write_anew(path, node, read.kept.iter().cloned()).map_err(wrong).map(
            |(file, lines)| Self { path: path.into(), node: node.into(), file, lines, _lock: lock },
        );
        (book, read)
    }

    /// Notes what is about to be told of a finding.
    pub(super) fn tell(&mut self, kept: Kept) -> io::Result<()> {
        self.write(&Line::Finding(Box::new(kept)))
    }

    /// Notes that a sink has what was told.
    pub(super) fn done(&mut self, n: u64, sink: &str) -> io::Result<()> {
        self.write(&Line::Done { n, sink: sink.into() })
    }

    /// Notes who takes care of a finding.
    pub(super) fn acknowledge(
        &mut self,
        key: &FindingKey,
        by: Option<&Accepted>,
    ) -> io::Result<()> {
        self.write(&Line::Acknowledged { key: key.clone(), by: by.cloned() })
    }

    /// Whether most of the file is over, where so many findings are not.
    pub(super) fn is_stale(&self, kept: usize) -> bool {
        self.lines > 2 * kept + SLACK
    }

    /// Writes the file anew.
    pub(super) fn rewrite(&mut self, kept: impl Iterator<Item = Kept>) -> io::Result<()> {
        (self.file, self.lines) = write_anew(&self.path, &self.node, kept)?;
        Ok(())
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // In one call: what a kill leaves of it is a beginning.
        self.file.write_all(&text)?;
        self.lines += 1;
        Ok(())
    }
}

/// Writes all to a file beside it, forces that to the disk, and puts it in the place of the old one.
fn write_anew(
    path: &Path,
    node: &str,
    kept: impl Iterator<Item = Kept>,
) -> io::Result<(File, usize)> {
    let new = beside(path, "new");
    let mut text = Vec::new();
    let mut lines = 1;
    let first = Header { schema: SCHEMA.into(), node: node.into() };
    serde_json::to_writer(&mut text, &Line::Book(first))?;
    text.push(b'\n');
    for kept in kept {
        serde_json::to_writer(&mut text, &Line::Finding(Box::new(kept)))?;
        text.push(b'\n');
        lines += 1;
    }
    let mut file = private().create(true).truncate(true).write(true).open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let file = private().append(true).open(path)?;
    Ok((file, lines))
}

/// Why a file was not read.
enum Unread {
    /// It could not be.
    Io(io::Error),
    /// It is none of ours, or broken.
    Nonsense(String),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Takes the lock that keeps other agents away. One that is just ending is waited for.
fn lock(path: &Path, patience: Duration) -> Result<Flock<File>, BookError> {
    let wrong = |source| BookError::Io { path: path.into(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(wrong)?;
    }
    let mut file = private()
        .create(true)
        .truncate(false)
        .write(true)
        .open(beside(path, "lock"))
        .map_err(wrong)?;
    let end = Instant::now() + patience;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, _)) if Instant::now() >= end => return Err(BookError::Taken(path.into())),
            // Nothing tells when a lock is given back, but for waiting in the kernel without end.
            Err((back, _)) => file = back,
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn read(path: &Path, node: &str) -> Result<Read, Unread> {
    let nonsense = |why: String| Err(Unread::Nonsense(why));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::default()),
        Err(error) => return Err(error.into()),
    };
    let length = file.metadata()?.len();
    if length > LONGEST {
        return nonsense(format!("it has {length} bytes, more than any state has"));
    }
    let mut reader = BufReader::new(file);
    let mut kept: HashMap<FindingKey, Kept> = HashMap::new();
    let mut numbers: HashMap<u64, FindingKey> = HashMap::new();
    let mut text = Vec::new();
    let mut number = 0_usize;
    loop {
        text.clear();
        if reader.read_until(b'\n', &mut text)? == 0 {
            break;
        }
        number += 1;
        // The end of a line is written with it: where it is missing, the agent was killed in it.
        if text.last() != Some(&b'\n') && number > 1 {
            break;
        }
        let line: Line = match serde_json::from_slice(&text) {
            Ok(line) => line,
            Err(error) => return nonsense(format!("line {number} makes no sense: {error}")),
        };
        match (number, line) {
            (1, Line::Book(header)) if *header.schema != *SCHEMA => {
                return nonsense(format!("it is of the shape {:?}, not {SCHEMA}", header.schema));
            }
            (1, Line::Book(header)) if *header.node != *node => {
                return nonsense(format!("it is of another node, {:?}", header.node));
            }
            (1, Line::Book(_)) => {}
            (1, _) => return nonsense("it does not begin as a state file does".to_owned()),
            (_, Line::Book(_)) => return nonsense(format!("line {number} begins another file")),
            (_, Line::Finding(new)) => {
                for n in new.awaits.values().chain([&new.n]) {
                    numbers.insert(*n, new.finding.key.clone());
                }
                kept.insert(new.finding.key.clone(), *new);
            }
            (_, Line::Done { n, sink }) => {
                if let Some(of) = numbers.get(&n).and_then(|key| kept.get_mut(key)) {
                    of.confirm(n, &sink);
                }
            }
            (_, Line::Acknowledged { key, by }) => {
                if let Some(of) = kept.get_mut(&key) {
                    of.acknowledged = by;
                }
            }
        }
    }
    if number == 0 {
        return nonsense("it is empty".to_owned());
    }
    let mut kept: Vec<Kept> = kept.into_values().filter(|kept| !kept.is_over()).collect();
    kept.sort_by_key(|kept| kept.n);
    Ok(Read { kept, set_aside: None })
}

/// The kernel's id of this boot.
pub(super) fn boot_id() -> Box<str> {
    // Without it, which no Linux lacks, a reboot would not be noticed.
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().into()
}

/// A path beside the file's.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

/// Findings name pods and addresses: nobody else's to read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

impl Kept {
    /// A sink has what was told by this number, and all before.
    pub(super) fn confirm(&mut self, n: u64, sink: &str) {
        if self.awaits.get(sink).is_some_and(|last| *last <= n) {
            self.awaits.remove(sink);
        }
    }

    /// Whether nothing of it is left to tell.
    pub(super) fn is_over(&self) -> bool {
        self.finding.state == State::Closed && self.awaits.is_empty()
    }
}

#[cfg(test)]
mod tests;
