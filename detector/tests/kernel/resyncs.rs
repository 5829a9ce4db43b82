//! Dumps and notifications together.

use std::time::Duration;

use detector::config::RouteSource;
use detector::source::kernel::{
    DumpOptions, DumpTotals, KernelSource, Reason, Resync, ResyncOptions, ResyncStep,
};
use detector_core::observation::KernelState;
use tokio::time::timeout;

use crate::namespace::{in_namespace, ip, open, settings, told, whole};
use crate::tables::Tables;

fn resync() -> Resync {
    let (interval, timeout) = (Duration::from_hours(1), Duration::from_secs(30));
    Resync::new(ResyncOptions { settings: settings(), interval, timeout })
}

/// Takes the steps of one dump after its beginning.
async fn take(resync: &mut Resync) -> (Vec<KernelState>, DumpTotals) {
    let mut states = Vec::new();
    loop {
        match resync.next().await {
            ResyncStep::Part(part) => states.extend(part),
            ResyncStep::End(totals) => return (states, totals),
            other => panic!("{other:?} within a dump"),
        }
    }
}

async fn begin(resync: &mut Resync) -> Reason {
    match resync.next().await {
        ResyncStep::Begin(reason) => reason,
        other => panic!("{other:?} before a beginning"),
    }
}

#[test]
fn the_kernel_is_asked_after_the_beginning_was_told() {
    in_namespace(|| async {
        let mut resync = resync();
        assert!(resync.is_wanted());
        assert_eq!(begin(&mut resync).await, Reason::Start);
        // It could not be in the dump if that had been asked for before.
        ip("route add 10.65.0.1 dev cali1");
        let (states, totals) = take(&mut resync).await;
        let has = |text: &str| {
            let named = |state: &KernelState| matches!(state, KernelState::Route(route) if route.prefix.to_string() == text);
            states.iter().any(named)
        };
        assert!(has("10.65.0.1/32"));
        assert_eq!(totals.states, states.len() as u64);
        assert!(!resync.is_wanted());
        // The next is an hour away.
        assert!(timeout(Duration::from_millis(50), resync.next()).await.is_err());
    });
}

#[test]
fn requests_during_a_dump_make_one_more() {
    in_namespace(|| async {
        let mut resync = resync();
        begin(&mut resync).await;
        resync.request(Reason::Loss);
        resync.request(Reason::Loss);
        take(&mut resync).await;
        assert!(resync.is_wanted());
        assert_eq!(begin(&mut resync).await, Reason::Loss);
        take(&mut resync).await;
        assert!(!resync.is_wanted());
        assert!(timeout(Duration::from_millis(50), resync.next()).await.is_err());
    });
}

/// A step that was waited for in vain is not lost.
#[test]
fn waiting_can_be_broken_off_anywhere() {
    in_namespace(|| async {
        let (all, _) = Tables::dump(DumpOptions { settings: settings(), ..whole() }).await;
        let mut broken_off = 0;
        // With one processor the reader may come first each time, and nobody has to wait for it.
        for _ in 0..100 {
            let (tables, times) = dump_with_breaks().await;
            assert_eq!(tables.sorted(), all);
            broken_off += times;
            if broken_off > 0 {
                return;
            }
        }
        panic!("in a hundred dumps nothing was ever waited for");
    });
}

/// Takes a dump, and waits for no step of it; also how often it turned away.
async fn dump_with_breaks() -> (Tables, u32) {
    let mut resync = resync();
    let mut tables = Tables::default();
    let mut broken_off = 0;
    loop {
        let step = tokio::select! {
            biased;
            step = resync.next() => step,
            () = tokio::task::yield_now() => {
                broken_off += 1;
                continue;
            }
        };
        match step {
            ResyncStep::Begin(_) => {}
            ResyncStep::Part(part) => part.into_iter().for_each(|state| tables.add(state)),
            ResyncStep::End(_) => return (tables, broken_off),
            ResyncStep::Aborted(error) => panic!("{error}"),
        }
    }
}

/// Changes all the time, and yet: a dump and the changes since its beginning are what is there.
#[test]
fn a_dump_among_changes_comes_out_true() {
    for choice in [RouteSource::Ebpf, RouteSource::Netlink] {
        in_namespace(move || async move {
            let mut source: KernelSource = open(choice);
            told(&mut source);
            let mut resync = resync();
            begin(&mut resync).await;
            let churn = tokio::task::spawn_blocking(|| {
                let line = |n: usize| {
                    let verb = if n % 3 == 2 { "del" } else { "replace" };
                    format!("route {verb} 10.65.{}.{} dev cali1", n / 3 / 200, n / 3 % 200 + n % 2)
                };
                // Some deletes are of what is not there, which ip says and goes on.
                let lines: String = (0..12_000).map(|n| line(n) + "\n").collect();
                run_batch(&lines);
            });
            let (states, totals) = take(&mut resync).await;
            let mut tables = Tables::default();
            for state in states {
                tables.add(state);
            }
            churn.await.unwrap();
            assert!(totals.ended <= detector::clock::now());
            let changes = told(&mut source);
            assert_eq!(source.take_loss(), None);
            for change in changes {
                tables.replay(change);
            }
            let (now, _) = Tables::dump(DumpOptions { settings: settings(), ..whole() }).await;
            assert_eq!(tables.sorted().routes, now.routes);
        });
    }
}

fn run_batch(lines: &str) {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    let mut ip = Command::new("ip")
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    ip.wait().unwrap();
}
