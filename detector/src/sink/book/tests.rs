//! Whatever moment the agent is killed at, the file can be read, and says what was so.

use std::sync::Arc;

use detector_core::finding::{Certainty, Severity, State};
use tempfile::TempDir;

use super::super::report::{How, Origin, Report};
use super::*;
use crate::clock;

const NODE: &str = "node-a";

fn kept(n: u64, address: u8, state: State, awaits: &[&str]) -> Kept {
    let origin = Arc::new(Origin { node: NODE.into(), runbooks: None });
    let mut finding = super::super::test::report(&origin).finding;
    let prefix = detector_core::route::Prefix::host(std::net::IpAddr::from([192, 0, 2, address]));
    finding.key.subject = detector_core::finding::Subject::Prefix(prefix);
    finding.state = state;
    let report = Report::new(&origin, BootWall::now(), clock::now(), finding);
    assert_eq!(report.how, How::from(state));
    Kept {
        n,
        finding: report.finding,
        told: awaits.iter().map(|sink| (*sink).into()).collect(),
        summed: BTreeSet::new(),
        awaits: awaits.iter().map(|sink| ((*sink).into(), n)).collect(),
        last: Timestamp::now(),
        boot: Boot { id: boot_id(), wall: BootWall::now() },
        acknowledged: None,
    }
}

fn accepted() -> Accepted {
    let by = Acknowledgement { by: "alice".into(), until: Timestamp::MAX, reason: None };
    Accepted { by, severity: Severity::High, certainty: Certainty::Hijack }
}

fn open(folder: &TempDir) -> (Book, Read) {
    let (book, read) = Book::open(&folder.path().join("state"), NODE, Duration::ZERO);
    (book.unwrap(), read)
}

/// What is kept, in short.
fn says(read: &Read) -> Vec<(u64, State, Vec<String>, bool)> {
    let of = |kept: &Kept| {
        let awaits = kept.awaits.keys().map(ToString::to_string).collect();
        (kept.n, kept.finding.state, awaits, kept.acknowledged.is_some())
    };
    read.kept.iter().map(of).collect()
}

#[test]
fn what_was_told_and_not_confirmed_is_known_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut book, read) = open(&folder);
    assert!(read.kept.is_empty() && read.set_aside.is_none());
    book.tell(kept(1, 1, State::Opened, &["a", "b"])).unwrap();
    book.tell(kept(2, 2, State::Opened, &["a"])).unwrap();
    book.done(1, "a").unwrap();
    book.done(2, "a").unwrap();
    // An older number says nothing of a newer word.
    book.tell(kept(3, 1, State::Updated, &["a", "b"])).unwrap();
    book.done(1, "b").unwrap();
    let key = kept(2, 2, State::Opened, &[]).finding.key;
    book.acknowledge(&key, Some(&accepted())).unwrap();
    // Over, and everybody knows.
    book.tell(kept(4, 3, State::Closed, &["a"])).unwrap();
    book.done(4, "a").unwrap();
    drop(book);
    let (mut book, read) = open(&folder);
    let (a, b) = ("a".to_owned(), "b".to_owned());
    let expected = [(2, State::Opened, vec![], true), (3, State::Updated, vec![a, b], false)];
    assert_eq!(says(&read), expected);
    // An acknowledgement ends with the finding that it was of.
    book.tell(kept(5, 2, State::Closed, &["a"])).unwrap();
    book.tell(kept(6, 2, State::Opened, &[])).unwrap();
    drop(book);
    let (_, read) = open(&folder);
    assert_eq!(says(&read)[1], (6, State::Opened, vec![], false));
}

#[test]
fn a_file_that_was_cut_anywhere_says_what_was_told_before() {
    let folder = tempfile::tempdir().unwrap();
    let (mut book, _) = open(&folder);
    for n in 1..=4 {
        book.tell(kept(n, u8::try_from(n).unwrap(), State::Opened, &["a"])).unwrap();
        book.done(n, "a").unwrap();
    }
    drop(book);
    let path = folder.path().join("state");
    let whole = fs::read(&path).unwrap();
    let header = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let whole_lines = |cut: usize| whole[header..cut].split(|byte| *byte == b'\n').count() - 1;
    for cut in header..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let (book, read) = open(&folder);
        assert!(read.set_aside.is_none(), "cut at {cut}: {:?}", read.set_aside);
        // A finding and its confirmation are two lines.
        assert_eq!(read.kept.len(), whole_lines(cut).div_ceil(2), "cut at {cut}");
        let awaited = read.kept.iter().filter(|kept| !kept.awaits.is_empty()).count();
        assert_eq!(awaited, whole_lines(cut) % 2, "cut at {cut}");
        drop(book);
    }
}

#[test]
fn what_makes_no_sense_is_set_aside_and_what_cannot_be_read_is_left_alone() {
    for text in ["", "x\n", "{}\n", "{\"book\":{\"schema\":\"other\",\"node\":\"node-a\"}}\n"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, text).unwrap();
        let (_, read) = open(&folder);
        assert!(read.set_aside.is_some(), "{text:?}");
        assert_eq!(fs::read_to_string(beside(&path, "corrupt")).unwrap(), text);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    // A folder cannot be read as a file.
    fs::create_dir(&path).unwrap();
    let (book, read) = Book::open(&path, NODE, Duration::ZERO);
    assert!(matches!(book, Err(BookError::Io { .. })) && read.set_aside.is_none());
    assert!(path.is_dir());
}

#[test]
fn two_agents_do_not_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, _) = open(&folder);
    first.tell(kept(1, 1, State::Opened, &[])).unwrap();
    let path = folder.path().join("state");
    let before = fs::read(&path).unwrap();
    let (second, _) = Book::open(&path, NODE, Duration::ZERO);
    assert!(matches!(second, Err(BookError::Taken(_))));
    assert_eq!(fs::read(&path).unwrap(), before);
    drop(first);
    assert_eq!(open(&folder).1.kept.len(), 1);
}

#[test]
fn the_file_is_written_anew_without_what_is_over_and_is_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let (mut book, _) = open(&folder);
    let mut n = 0;
    while !book.is_stale(1) {
        n += 1;
        book.tell(kept(n, 1, State::Updated, &["a"])).unwrap();
        book.done(n, "a").unwrap();
    }
    book.rewrite(std::iter::once(kept(n, 1, State::Updated, &[]))).unwrap();
    let path = folder.path().join("state");
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    book.done(n, "a").unwrap();
    drop(book);
    assert_eq!(open(&folder).1.kept.len(), 1);
}
