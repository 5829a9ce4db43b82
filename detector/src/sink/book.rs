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

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use detector_core::finding::{Certainty, Finding, FindingKey, Severity, State};
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
    /// The kernel's id of this boot.
    boot: Box<str>,
    /// The wall clock at boot.
    wall: BootWall,
}

/// A finding as it is kept.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub(super) struct Kept {
    /// The number of what was told last.
    pub(super) n: u64,
    pub(super) finding: Finding,
    /// Sinks that were told of it one by one.
    pub(super) told: BTreeSet<Box<str>>,
    /// Sinks that may not have what was told last.
    pub(super) awaits: BTreeSet<Box<str>>,
    pub(super) acknowledged: Option<Accepted>,
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
    /// The wall clock at boot, where the findings are of an earlier one.
    pub(super) earlier_boot: Option<BootWall>,
    /// Why the file was set aside, and where it is now.
    pub(super) set_aside: Option<String>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    owner: Owner,
    file: File,
    /// Lines in the file.
    lines: usize,
    /// Another agent must not write it.
    _lock: Flock<File>,
}

/// Whose file it is.
#[derive(Debug, Clone)]
struct Owner {
    node: Box<str>,
    boot: Box<str>,
}

// === impl Book ===

impl Book {
    /// Reads what an earlier agent has left and goes on from there.
    pub(super) fn open(path: &Path, node: &str) -> Result<(Self, Read), BookError> {
        let wrong = |source| BookError::Io { path: path.into(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(wrong)?;
        }
        let lock = private()
            .create(true)
            .truncate(false)
            .write(true)
            .open(beside(path, "lock"))
            .map_err(wrong)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| BookError::Taken(path.into()))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(wrong)?;
        let owner = Owner { node: node.into(), boot: boot.trim().into() };
        let read = match read(path, &owner) {
            Ok(read) => read,
            Err(why) => {
                let aside = beside(path, "corrupt");
                fs::rename(path, &aside).map_err(wrong)?;
                let set_aside = format!("{why}; it was set aside as {}", aside.display());
                Read { set_aside: Some(set_aside), ..Read::default() }
            }
        };
        let (file, lines) = write_anew(path, &owner, read.kept.iter().cloned()).map_err(wrong)?;
        Ok((Self { path: path.into(), owner, file, lines, _lock: lock }, read))
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
        (self.file, self.lines) = write_anew(&self.path, &self.owner, kept)?;
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
    owner: &Owner,
    kept: impl Iterator<Item = Kept>,
) -> io::Result<(File, usize)> {
    let new = beside(path, "new");
    let mut text = Vec::new();
    let mut lines = 1;
    let first = Header {
        schema: SCHEMA.into(),
        node: owner.node.clone(),
        boot: owner.boot.clone(),
        wall: BootWall::now(),
    };
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

fn read(path: &Path, own: &Owner) -> Result<Read, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Read::default()),
        Err(error) => return Err(format!("it cannot be read: {error}")),
    };
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > LONGEST {
        return Err(format!("it has {length} bytes, more than any state has"));
    }
    let mut reader = BufReader::new(file);
    let mut all = Read::default();
    let mut kept: HashMap<FindingKey, Kept> = HashMap::new();
    let mut numbers: HashMap<u64, FindingKey> = HashMap::new();
    let mut text = Vec::new();
    let mut number = 0_usize;
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text);
        if read.map_err(|error| format!("it cannot be read: {error}"))? == 0 {
            break;
        }
        number += 1;
        // The end of a line is written with it: where it is missing, the agent was killed in it.
        if text.last() != Some(&b'\n') && number > 1 {
            break;
        }
        let line: Line = serde_json::from_slice(&text)
            .map_err(|error| format!("line {number} makes no sense: {error}"))?;
        match (number, line) {
            (1, Line::Book(header)) => {
                if *header.schema != *SCHEMA {
                    return Err(format!("it is of the shape {:?}, not {SCHEMA}", header.schema));
                }
                if header.node != own.node {
                    return Err(format!("it is of another node, {:?}", header.node));
                }
                all.earlier_boot = (header.boot != own.boot).then_some(header.wall);
            }
            (1, _) => return Err("it does not begin as a state file does".to_owned()),
            (_, Line::Book(_)) => return Err(format!("line {number} begins another file")),
            (_, Line::Finding(new)) => {
                let mut new = *new;
                if let Some(old) = kept.get(&new.finding.key) {
                    new.acknowledged = new.acknowledged.or_else(|| old.acknowledged.clone());
                }
                let key = new.finding.key.clone();
                numbers.insert(new.n, key.clone());
                if let Some(old) = kept.insert(key, new) {
                    numbers.remove(&old.n);
                }
            }
            (_, Line::Done { n, sink }) => {
                // Of an older telling it says nothing about the newer one.
                if let Some(of) = numbers.get(&n).and_then(|key| kept.get_mut(key)) {
                    of.awaits.remove(&sink);
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
        return Err("it is empty".to_owned());
    }
    all.kept = kept.into_values().filter(|kept| !kept.is_over()).collect();
    all.kept.sort_by_key(|kept| kept.n);
    Ok(all)
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
    /// Whether nothing of it is left to tell.
    pub(super) fn is_over(&self) -> bool {
        self.finding.state == State::Closed && self.awaits.is_empty()
    }
}
