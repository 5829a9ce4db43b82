use std::sync::atomic::{AtomicU32, Ordering};

use detector_core::engine::Holdings;
use jiff::Timestamp;

use super::*;

/// A manager's socket, and a supervisor that speaks to it.
fn pair(every: Option<Duration>) -> (UnixDatagram, Supervisor) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("detector-test-{}-{number}", std::process::id());
    let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    manager.set_nonblocking(true).unwrap();
    let line = Line::to(OsStr::new(&format!("@{name}")), every).unwrap();
    (manager, Supervisor(Some(line)))
}

fn heard(manager: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 1_024];
    let length = manager.recv(&mut buffer).ok()?;
    Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
}

fn watching(dumps: u64, standing: usize) -> Watching {
    Watching {
        routes: "ebpf",
        packets: None,
        holdings: Holdings { standing, ..Holdings::default() },
        interfaces: (0, 0, 0),
        addresses: 0,
        told: 0,
        dumps,
    }
}

fn degraded(names: &[&str]) -> Vec<Degraded> {
    let degraded = |name: &&str| Degraded {
        capability: (*name).to_owned(),
        why: "it is a test".to_owned(),
        since: Timestamp::UNIX_EPOCH,
    };
    names.iter().map(degraded).collect()
}

#[test]
fn it_is_told_once_that_the_agent_is_ready_and_only_what_is_news() {
    let (manager, mut supervisor) = pair(None);
    supervisor.show(false, || "reading".to_owned());
    supervisor.show(false, || "reading".to_owned());
    assert_eq!(heard(&manager).as_deref(), Some("STATUS=reading"));
    assert_eq!(heard(&manager), None);
    supervisor.show(true, || "watching".to_owned());
    supervisor.show(true, || "watching".to_owned());
    supervisor.show(true, || "degraded".to_owned());
    supervisor.show(true, || "watching".to_owned());
    assert_eq!(heard(&manager).as_deref(), Some("READY=1\nSTATUS=watching"));
    assert_eq!(heard(&manager).as_deref(), Some("STATUS=degraded"));
    assert_eq!(heard(&manager).as_deref(), Some("STATUS=watching"));
    supervisor.beat();
    assert_eq!(heard(&manager), None, "nobody asked for signs of life");
    supervisor.stopping(Some(&anyhow::anyhow!("no\nmore records")));
    assert_eq!(heard(&manager).as_deref(), Some("STOPPING=1\nSTATUS=no more records"));
}

#[test]
fn a_sign_of_life_is_given_when_it_is_due_and_not_before() {
    let (manager, mut supervisor) = pair(Some(Duration::from_hours(1)));
    supervisor.beat();
    supervisor.beat();
    assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
    assert_eq!(heard(&manager), None);
    let due = supervisor.due().unwrap();
    assert!(due > Instant::now() + Duration::from_mins(59));
    supervisor.0.as_mut().unwrap().watchdog.as_mut().unwrap().due = Instant::now();
    supervisor.beat();
    assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
}

#[test]
fn a_manager_that_is_busy_holds_nobody_up_and_is_told_again() {
    let (manager, mut supervisor) = pair(None);
    let mut said = 0;
    while supervisor.0.as_mut().unwrap().say("STATUS=crowd") {
        said += 1;
    }
    supervisor.show(true, || "watching".to_owned());
    for _ in 0..said {
        assert_eq!(heard(&manager).as_deref(), Some("STATUS=crowd"));
    }
    assert_eq!(heard(&manager), None);
    supervisor.show(true, || "watching".to_owned());
    assert_eq!(heard(&manager).as_deref(), Some("READY=1\nSTATUS=watching"));
    drop(manager);
    supervisor.show(true, || "nobody hears this".to_owned());
    assert!(supervisor.0.unwrap().failed);
}

#[test]
fn the_name_of_a_socket_is_a_path_or_follows_an_at() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut line = Line::to(path.as_os_str(), None).unwrap();
    assert!(line.say("STATUS=here"));
    assert_eq!(heard(&manager).as_deref(), Some("STATUS=here"));
    assert!(Line::to(OsStr::new("relative"), None).is_err());
    assert!(Line::to(OsStr::new(&format!("/{}", "x".repeat(200))), None).is_err());
}

#[test]
fn signs_of_life_are_for_this_process_and_at_half_the_time() {
    assert_eq!(half_of(None, None, 7), Ok(None));
    assert_eq!(half_of(Some(""), Some("7"), 7), Ok(None));
    assert_eq!(half_of(Some("30000000"), None, 7), Ok(Some(Duration::from_secs(15))));
    assert_eq!(half_of(Some("30000000"), Some("7"), 7), Ok(Some(Duration::from_secs(15))));
    assert_eq!(half_of(Some("30000000"), Some("8"), 7), Ok(None));
    for (allowed, whose) in [("0", None), ("-1", None), ("a minute", None), ("1", Some("me"))] {
        assert!(half_of(Some(allowed), whose, 7).is_err(), "{allowed} {whose:?}");
    }
}

#[test]
fn a_status_is_one_short_line() {
    assert_eq!(status(&watching(0, 0), &[], &[]), "reading the kernel's tables, routes by ebpf");
    assert_eq!(
        status(&watching(1, 1), &["pods", "nodes"], &degraded(&["writers"])),
        "watching routes by ebpf, 1 finding stands; not yet told of pods, nodes; degraded: writers \
         (`detector status` says why)"
    );
    let names: Vec<String> = (0..40).map(|number| format!("sink:\n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let line = status(&watching(3, 2), &[], &degraded(&names));
    assert!(line.starts_with("watching routes by ebpf, 2 findings stand; degraded: "), "{line}");
    assert!(line.contains("sink: 7 and 32 more"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}
