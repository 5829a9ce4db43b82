//! Reads a cluster from files: `kubectl get ... -o yaml` or `-o json`, and folders such as must-gather
//! makes.
//!
//! Files are read object by object, so that a large one needs little memory and one that is damaged
//! costs what is damaged. What is no object is looked through line by line for the annotations of the
//! family: a manifest that somebody abbreviated until it is no YAML any more still says something.

mod json;
mod object;
mod scraps;
mod yaml;

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use super::facts::{Kind, Sight};
use super::gather::Gather;
use super::progress::Progress;
use crate::text::printable;

/// Folders are not followed deeper than this.
const DEEPEST: usize = 32;

/// No more files than this are read.
const MOST_FILES: usize = 200_000;

/// Why files could not be read to their end.
#[derive(Error, Debug)]
pub(super) enum DumpError {
    /// A file or folder cannot be opened.
    #[error("{path} cannot be read: {error}; correct --from")]
    Io {
        /// Which.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// There is nothing in it.
    #[error(
        "there are no objects in {0}: give a file or folder of `kubectl get ... -o yaml` or `-o json`"
    )]
    Empty(String),
}

/// A dump that ended, or can be read no further, in the middle of an object or a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Torn {
    /// The file, and where it ends, for people.
    pub(super) place: String,
    /// What is wrong with it there.
    pub(super) how: &'static str,
}

/// What is known while files are read.
pub(super) struct Reader<'a> {
    gather: &'a mut Gather,
    /// Kinds of which there was anything.
    kinds: BTreeSet<Kind>,
    /// Kinds of which something could not be read, and what.
    damaged: Vec<(Kind, Box<str>)>,
    /// What was read, so that a copy counts once.
    seen: HashSet<u64>,
    keys: RandomState,
    torn: Vec<Torn>,
    objects: u64,
    scraps: u64,
}

/// Reads all files of some paths. Gives those that break off.
pub(super) fn read(
    paths: &[PathBuf],
    gather: &mut Gather,
    progress: &Progress,
) -> Result<Vec<Torn>, DumpError> {
    let mut reader = Reader {
        gather,
        kinds: BTreeSet::new(),
        damaged: Vec::new(),
        seen: HashSet::new(),
        keys: RandomState::new(),
        torn: Vec::new(),
        objects: 0,
        scraps: 0,
    };
    progress.begin("files");
    let mut files = 0;
    for path in paths {
        for file in files_of(path)? {
            reader.file(&file)?;
            files += 1;
            progress.at(files, None);
        }
    }
    let names: Vec<String> = paths.iter().map(|path| shown(path)).collect();
    if reader.objects == 0 && reader.scraps == 0 && reader.torn.is_empty() {
        return Err(DumpError::Empty(names.join(", ")));
    }
    Ok(reader.finish())
}

// === impl Reader ===

impl Reader<'_> {
    fn file(&mut self, path: &Path) -> Result<(), DumpError> {
        let wrong = |error| DumpError::Io { path: shown(path), error };
        let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(wrong)?);
        // PowerShell writes UTF-16 where it is told nothing else, and a mark in front of UTF-8.
        let first = file.fill_buf().map_err(wrong)?;
        if first.starts_with(&[0xfe, 0xff]) || first.starts_with(&[0xff, 0xfe]) {
            return Err(wrong(io::Error::other("it is UTF-16: write it as UTF-8")));
        }
        if first.starts_with(b"\xef\xbb\xbf") {
            file.consume(3);
        }
        let is_json = loop {
            let (first, blank) = {
                let buffer = file.fill_buf().map_err(wrong)?;
                let first = buffer.iter().position(|byte| !byte.is_ascii_whitespace());
                (first.map(|at| buffer[at]), buffer.len())
            };
            match first {
                Some(first) => break matches!(first, b'{' | b'['),
                None if blank == 0 => return Ok(()),
                None => file.consume(blank),
            }
        };
        if is_json {
            // It is read twice, and what comes from a pipe comes once.
            let regular = file.get_ref().metadata().map_err(wrong)?.is_file();
            if !regular {
                return Err(wrong(io::Error::other(
                    "JSON from a pipe is not read: write it to a file first",
                )));
            }
            json::read(self, path, file);
        } else {
            yaml::read(self, path, file).map_err(wrong)?;
        }
        Ok(())
    }

    /// Takes an object. `kind` is what its list is of, for objects that do not say themselves.
    fn object(&mut self, place: &str, list: Option<&str>, mut value: Value) {
        if value.is_null() {
            return;
        }
        if value["kind"].is_null()
            && let Some(kind) = list
            && value.is_object()
        {
            value["kind"] = kind.into();
        }
        match object::take(self.gather, &value) {
            object::Taken::Object(kind, key) => {
                // The text is what is hashed, under a key that nobody outside can know.
                if self.seen.insert(self.keys.hash_one(&key)) {
                    object::add(self.gather, kind, &value, place, &mut self.damaged);
                }
                self.kinds.insert(kind);
                self.objects += 1;
            }
            object::Taken::Foreign => self.objects += 1,
            object::Taken::Excerpt(of) => {
                self.gather.refuse(format!("{place}: no complete object: taken for {of}"));
                self.kinds.insert(Kind::CniConfig);
                self.objects += 1;
            }
            object::Taken::Nothing => {
                let text = value.to_string();
                self.scrap(place, 0, &text, "is no object of Kubernetes");
            }
        }
    }

    /// Notes that a list of this kind was there, however empty.
    fn list(&mut self, kind: &str, version: Option<&str>) {
        self.kinds.extend(object::listed(kind, version));
    }

    /// Looks through what is no object.
    fn scrap(&mut self, place: &str, line: usize, text: &str, why: &str) {
        let found = scraps::look(self.gather, place, line, text);
        self.scraps += 1;
        let about = found.about.as_deref().map_or(String::new(), |about| format!(" about {about}"));
        let annotations = match found.annotations {
            0 => "no annotation of the family in it".to_owned(),
            1 => "1 annotation of the family in it".to_owned(),
            count => format!("{count} annotations of the family in it"),
        };
        let place = if line == 0 { place.to_owned() } else { format!("{place}:{line}") };
        self.gather.refuse(format!("{place}: what stands there{about} {why}: {annotations}"));
        if let Some(kind) = found.kind {
            self.kinds.insert(kind);
            self.damaged.push((kind, format!("{place} {why}").into()));
        }
    }

    fn tear(&mut self, place: String, how: &'static str) {
        self.torn.push(Torn { place, how });
    }

    fn finish(self) -> Vec<Torn> {
        let Self { gather, kinds, damaged, torn, .. } = self;
        for kind in Kind::ALL {
            let sight = if kinds.contains(&kind) {
                Sight::All
            } else {
                Sight::Nothing("none in the dump".into())
            };
            gather.saw(kind, sight);
        }
        for (kind, why) in damaged {
            gather.saw(kind, Sight::Part(why));
        }
        if let Some(torn) = torn.first() {
            // Whatever came behind it is missing.
            let why = format!("{} {}", torn.place, torn.how);
            for kind in kinds {
                gather.saw(kind, Sight::Part(why.clone().into()));
            }
        }
        torn
    }
}

/// The files of a path, in the order of their names.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, DumpError> {
    let wrong = |path: &Path, error| DumpError::Io { path: shown(path), error };
    if !fs::metadata(path).map_err(|error| wrong(path, error))?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut folders = vec![(path.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| wrong(&folder, error))? {
            let entry = entry.map_err(|error| wrong(&folder, error))?;
            // Links are not followed: a dump comes from somewhere else.
            let kind = entry.file_type().map_err(|error| wrong(&entry.path(), error))?;
            if kind.is_dir() && depth < DEEPEST {
                folders.push((entry.path(), depth + 1));
            } else if kind.is_file() && is_objects(&entry.path()) && files.len() < MOST_FILES {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// By its name: a must-gather is mostly logs.
fn is_objects(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    ["yaml", "yml", "json"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// What the objects of a file are, by its name: must-gather's lists do not say.
fn named_after(path: &Path) -> Option<&'static str> {
    let stem = path.file_stem()?.to_str()?;
    object::KINDS.iter().find(|(_, plural, ..)| *plural == stem).map(|(kind, ..)| *kind)
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy(), 400)
}

#[cfg(test)]
mod tests;
