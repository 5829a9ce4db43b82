//! What came of each test on each kernel.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// What came of a test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Held,
    Wrong,
    Skipped,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Held => "ok",
            Self::Wrong => "WRONG",
            Self::Skipped => "skip",
        }
    }
}

/// Outcomes by test and kernel.
pub(super) struct Report {
    kernels: Vec<String>,
    rows: BTreeMap<String, BTreeMap<usize, Outcome>>,
    /// How each machine ended.
    ends: BTreeMap<usize, Result<()>>,
    /// Kernels of which the next lines explain what is wrong.
    explaining: BTreeSet<usize>,
}

// === impl Report ===

impl Report {
    pub(super) fn new(kernels: impl Iterator<Item = String>) -> Self {
        Self {
            kernels: kernels.collect(),
            rows: BTreeMap::new(),
            ends: BTreeMap::new(),
            explaining: BTreeSet::new(),
        }
    }

    /// Takes a line that a machine wrote; prints what of it is of interest before the end.
    pub(super) fn line(&mut self, kernel: usize, line: &str) {
        let read = read(line);
        if let Some((name, outcome)) = &read {
            self.rows.entry(name.clone()).or_default().insert(kernel, *outcome);
        }
        if read.is_some() || !line.starts_with(' ') {
            self.explaining.remove(&kernel);
        }
        let wrong = matches!(read, Some((_, Outcome::Wrong))) || line.contains("panicked at");
        if wrong || line.starts_with("guest: ") || self.explaining.contains(&kernel) {
            eprintln!("{}: {line}", self.kernels[kernel]);
        }
        if wrong {
            self.explaining.insert(kernel);
        }
    }

    pub(super) fn ended(&mut self, kernel: usize, end: Result<()>) {
        self.ends.insert(kernel, end);
    }

    /// Prints the table; fails where anything did.
    pub(super) fn finish(self) -> Result<()> {
        let width = self.rows.keys().map(|name| name.chars().count()).max().unwrap_or_default();
        let heads: Vec<&str> = self
            .kernels
            .iter()
            .map(|kernel| kernel.split(['-', '+']).next().unwrap_or_default())
            .collect();
        let line = |name: &str, cells: &[&str]| {
            let cells: Vec<String> = cells.iter().map(|cell| format!("{cell:>9}")).collect();
            println!("{name:<width$} {}", cells.join(" "));
        };
        line("", &heads);
        for (name, outcomes) in &self.rows {
            let cell = |kernel| outcomes.get(&kernel).map_or("-", |outcome| outcome.as_str());
            line(name, &(0..self.kernels.len()).map(cell).collect::<Vec<_>>());
        }
        let mut failed = Vec::new();
        for (at, kernel) in self.kernels.iter().enumerate() {
            let all = self.rows.values().filter_map(|outcomes| outcomes.get(&at));
            let count = |wanted| all.clone().filter(|outcome| **outcome == wanted).count();
            let [held, wrong, skipped] =
                [Outcome::Held, Outcome::Wrong, Outcome::Skipped].map(count);
            println!("{kernel}: {held} passed, {wrong} failed, {skipped} skipped");
            match self.ends.get(&at) {
                Some(Ok(())) if wrong == 0 && held > 0 => continue,
                Some(Err(error)) => eprintln!("{error:#}"),
                Some(Ok(())) => {}
                None => eprintln!("{kernel} has not run"),
            }
            failed.push(kernel.as_str());
        }
        if !failed.is_empty() {
            bail!("failed on {}", failed.join(", "));
        }
        println!("passed on {}", self.kernels.join(", "));
        Ok(())
    }
}

/// The name and outcome of a test, in the words of the scenario runner and of Rust's tests.
fn read(line: &str) -> Option<(String, Outcome)> {
    let marks =
        [("ok    ", Outcome::Held), ("WRONG ", Outcome::Wrong), ("skip  ", Outcome::Skipped)];
    for (mark, outcome) in marks {
        if let Some(rest) = line.strip_prefix(mark) {
            let name = rest.split_once("):").map_or(rest, |(name, _)| name);
            return Some((format!("{name})"), outcome));
        }
    }
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match outcome {
        "ok" => Outcome::Held,
        "ignored" => Outcome::Skipped,
        _ => Outcome::Wrong,
    };
    Some((format!("test  {name}"), outcome))
}
