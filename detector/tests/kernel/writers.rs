//! Who wrote a route: each sort of writer, by each way in which it can be known.

mod kinds;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use detector::clock;
use detector::config::{Hook, Refused, RouteSource, WriterSource};
use detector::source::kernel::{KernelOptions, KernelSource, Opened};
use detector::source::writer::{WriterOptions, WriterSight};
use detector_core::observation::{KernelChange, Observation, What};
use detector_core::route::Prefix;
use detector_core::time::BootTime;
use detector_core::writer::{Known, Process};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

use self::kinds::{
    Batch, CONTAINER, Hierarchy, KINDS, Kind, PATIENCE, POD, Writer, netlink, prefix, refuse,
    stay_on_one_processor, write,
};
use crate::namespace::{in_namespace, in_own_machine, ip};

const EXISTS: u32 = 17;

/// By what it is known who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// The filter reads the task.
    Records,
    /// The function is traced; nobody reads tasks.
    Traced(WriterSource),
    /// By the netlink port.
    Port,
}

// === the tests ===

#[test]
fn a_writer_is_read_while_it_writes() {
    made(Way::Records, RouteSource::Ebpf, WriterSource::Records, &[]);
}

/// What was read of a task serves its next routes until it is too old.
#[test]
fn a_writer_is_read_anew_only_now_and_then() {
    for (fresh, anew) in [(Duration::from_mins(1), false), (Duration::ZERO, true)] {
        in_namespace(move || async move {
            let mut kernel = open_for(fresh);
            stay_on_one_processor(Pid::from_raw(0));
            let mut mounts = Vec::new();
            for prefix in ["10.65.8.1/32", "10.65.8.2/32"] {
                netlink(prefix);
                let writer = wait_for(&mut kernel, |what| writer_of(what, prefix)).await;
                mounts.push(writer.process.expect("whoever writes is known").mount);
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            }
            assert_eq!(mounts[0] != mounts[1], anew, "{mounts:?}");
        });
    }
}

/// It does not serve the routes of others.
#[test]
fn writers_in_turn_on_one_processor_are_told_apart() {
    in_namespace(|| async {
        let mut kernel = open_for(Duration::from_mins(1));
        let mut both = [Batch::start(), Batch::start()];
        for round in 0..20 {
            in_turn(&mut kernel, &mut both, round, |_, process, prefix| {
                assert!(process.containers.is_empty(), "{prefix}: {process:?}");
            })
            .await;
        }
    });
}

/// Nor its own for longer than that when it was moved.
#[test]
fn a_writer_that_is_moved_is_followed() {
    in_namespace(|| async {
        let fresh = WriterOptions::default().fresh;
        let mut kernel = open_for(fresh);
        let Some(hierarchy) = Hierarchy::mount(false) else { return };
        let mut both = [Batch::start(), Batch::start()];
        let moving = both[0].pid().to_string();
        for round in 0..20 {
            let inside = round % 2 == 0;
            let folder = if inside { &hierarchy.leaf } else { &hierarchy.root };
            fs::write(folder.join("cgroup.procs"), &moving).unwrap();
            // It takes time, and nothing but time, until what was read is too old.
            std::thread::sleep(fresh);
            in_turn(&mut kernel, &mut both, round, |who, process, prefix| {
                let contained = inside && who == 0;
                assert_eq!(!process.containers.is_empty(), contained, "{prefix}: {process:?}");
            })
            .await;
        }
    });
}

/// Two write in turn, the second route of each soon after its first; each is told by its number, and `check`
/// gets who it was and what is told.
async fn in_turn(
    kernel: &mut KernelSource,
    both: &mut [Batch; 2],
    round: usize,
    check: impl Fn(usize, &Process, &str),
) {
    for (number, who) in [0, 0, 1, 1, 0].into_iter().enumerate() {
        let prefix = format!("10.65.{round}.{number}/32");
        both[who].line(&format!("route add {prefix} dev cali1"));
        let writer = wait_for(kernel, |what| writer_of(what, &prefix)).await;
        let process = writer.process.expect("whoever writes is known");
        assert_eq!(process.pid, both[who].pid(), "{prefix}");
        check(who, &process, &prefix);
    }
}

#[test]
fn where_tasks_cannot_be_read_a_trampoline_tells_who_writes() {
    made(Way::Traced(WriterSource::Fexit), RouteSource::Ebpf, WriterSource::Fexit, &[Hook::Tasks]);
}

#[test]
fn where_tasks_cannot_be_read_a_probe_tells_who_writes() {
    made(
        Way::Traced(WriterSource::Kprobe),
        RouteSource::Ebpf,
        WriterSource::Kprobe,
        &[Hook::Tasks],
    );
}

#[test]
fn where_nothing_else_is_allowed_the_port_tells_who_writes() {
    made(Way::Port, RouteSource::Ebpf, WriterSource::Port, &[]);
    made(Way::Port, RouteSource::Netlink, WriterSource::Auto, &[]);
}

#[test]
fn a_refused_write_is_seen_by_a_trampoline() {
    refused(WriterSource::Fexit);
}

#[test]
fn a_refused_write_is_seen_by_a_probe() {
    refused(WriterSource::Kprobe);
}

/// Writes elsewhere are none of our business, and what the kernel makes is nobody's.
#[test]
fn only_this_namespaces_refusals_are_told() {
    in_namespace(|| async {
        let Some((mut source, _)) =
            open(RouteSource::Ebpf, &options(WriterSource::Auto, &[]), true)
        else {
            return;
        };
        ip("route add 10.65.9.9 dev cali1");
        let elsewhere = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link set lo up");
            ip("route add 10.65.9.9 dev lo");
            refuse("10.65.9.9/32", "lo");
        };
        std::thread::spawn(elsewhere).join().unwrap();
        // The kernel finds its own local route there already.
        ip("address add 10.65.9.1/24 dev cali1");
        refuse("10.65.9.9/32", "cali1");
        let told = told(&mut source);
        let all: Vec<_> = told.into_iter().filter_map(refusal).collect();
        let [(prefix, error, process)] = &*all else { panic!("{all:?}") };
        assert_eq!((prefix.to_string().as_str(), *error), ("10.65.9.9/32", EXISTS));
        assert_eq!(&*process.command, "ip");
    });
}

/// Each single hook may be refused: the rest works, and it is said what does not.
#[test]
fn a_hook_that_is_refused_degrades_what_it_is_for() {
    in_namespace(|| async {
        let hooks = [
            (vec![Hook::Tasks, Hook::FexitIpv4, Hook::KprobeIpv4], [true, true, false]),
            (vec![Hook::FexitIpv4, Hook::KprobeIpv4], [false, true, false]),
            (vec![Hook::FexitIpv6, Hook::KprobeIpv6], [false, false, true]),
        ];
        for (hooks, [writers, ipv4, ipv6]) in hooks {
            let Opened { mut source, degraded } =
                KernelSource::open(RouteSource::Auto, &options(WriterSource::Auto, &hooks))
                    .unwrap();
            assert_eq!((source.as_str(), degraded), ("ebpf", None));
            let sight = source.await_sight().unwrap();
            assert_eq!(sight.writers.is_err(), writers, "{sight:?}");
            let is_drill = |why: &str| why.contains("--refuse");
            for (family, refused) in sight.refusals.iter().zip([ipv4, ipv6]) {
                match family {
                    Err(why) if refused => assert!(is_drill(why), "{why}"),
                    Err(why) => assert!(!is_drill(why) && !in_own_machine(), "{why}"),
                    Ok(_) => assert!(!refused, "{sight:?}"),
                }
            }
        }
    });
}

/// Routes are made by each sort of writer; each is known for what it is.
fn made(way: Way, source: RouteSource, choice: WriterSource, refused: &'static [Hook]) {
    in_namespace(move || async move {
        let (options, traced) = (options(choice, refused), matches!(way, Way::Traced(_)));
        let Some((mut kernel, sight)) = open(source, &options, traced) else { return };
        assert_eq!(sight.writers.is_err(), way == Way::Port, "{sight:?}");
        for kind in KINDS {
            for ipv6 in [false, true] {
                if way == Way::Port {
                    // It has to look through all processes, and rests between two such times.
                    let Some((again, _)) = open(source, &options, traced) else { return };
                    kernel = again;
                }
                let before = clock::now();
                let prefix = prefix(kind, ipv6);
                let Some(writer) = write(kind, &prefix) else { continue };
                let found = wait_for(&mut kernel, |what| writer_of(what, &prefix)).await.process;
                check(way, kind, &writer, found.as_deref(), before);
                drop(writer.running);
            }
        }
    });
}

/// Routes that are there already are written again by each sort of writer, and each is known.
fn refused(choice: WriterSource) {
    in_namespace(move || async move {
        let Some((mut source, sight)) = open(RouteSource::Ebpf, &options(choice, &[]), true) else {
            return;
        };
        assert!(sight.refusals.iter().all(Result::is_ok), "{sight:?}");
        for kind in KINDS {
            for ipv6 in [false, true] {
                let prefix = prefix(kind, ipv6);
                let metric = if kind == Kind::Bird { " metric 32" } else { "" };
                ip(&format!("route add {prefix} dev cali1{metric}"));
                told(&mut source);
                let before = clock::now();
                let Some(writer) = write(kind, &prefix) else { continue };
                let (error, process) = wait_for(&mut source, |what| {
                    let (refused, error, process) = refusal(what)?;
                    (refused.to_string() == prefix).then_some((error, process))
                })
                .await;
                assert_eq!(error, EXISTS, "{kind:?} {prefix}");
                check(Way::Records, kind, &writer, Some(&process), before);
                drop(writer.running);
            }
        }
    });
}

/// Holds what was found against who it was.
fn check(way: Way, kind: Kind, writer: &Writer, found: Option<&Process>, before: BootTime) {
    let at = format!("{kind:?} by {way:?}: {found:?}");
    let Some(found) = found else {
        // Without a port nobody can be found by it, nor who has gone.
        let hidden = !writer.has_port || kind == Kind::Gone;
        assert!(way == Way::Port && hidden, "{at}");
        return;
    };
    // The kernel's helpers tell the name of the thread.
    let by_helpers = matches!(way, Way::Traced(_));
    let command = if by_helpers { &writer.thread_name } else { &writer.command };
    assert_eq!((found.pid, &*found.command), (writer.pid, command.as_str()), "{at}");
    if way == Way::Port {
        assert_eq!(found.known, Known::Port, "{at}");
    } else {
        assert_eq!((found.known, found.thread), (Known::Record, writer.thread), "{at}");
    }
    let started = found.started.map(|started| started.after(Duration::from_millis(20)));
    let own = writer.pid == std::process::id();
    match (way, started) {
        // The kernel's helpers say nothing of it.
        (Way::Traced(_), None) => {}
        (_, started) => assert!(own || started.unwrap() >= before, "{at}"),
    }
    if !matches!(way, Way::Traced(_)) {
        let here = |name| fs::metadata(format!("/proc/thread-self/ns/{name}")).unwrap().ino();
        assert_eq!(found.network.map(u64::from), Some(here("net")), "{at}");
        assert!(found.mount.is_some(), "{at}");
    }
    // By helpers there is the number of a control group only, and who has gone cannot be asked.
    let shown = !matches!(way, Way::Traced(_)) && (way != Way::Port || kind == Kind::Container);
    match found.containers.first() {
        Some(container) => {
            assert!(writer.container, "{at}");
            assert_eq!(&*container.id, CONTAINER, "{at}");
            assert_eq!(container.pod.as_ref().map(|uid| &*uid.0), Some(POD), "{at}");
        }
        None => assert!(!writer.container || !shown, "{at}"),
    }
}

// === the source ===

fn options(source: WriterSource, refused: &[Hook]) -> KernelOptions {
    let refused = Refused::new(refused.to_vec());
    let writers = WriterOptions { source, refused, ..WriterOptions::default() };
    KernelOptions { writers, ..KernelOptions::default() }
}

/// Opens a source; `None` where functions are to be traced, and this host forbids it.
fn open(
    source: RouteSource,
    options: &KernelOptions,
    traced: bool,
) -> Option<(KernelSource, WriterSight)> {
    let mut opened = KernelSource::open(source, options).unwrap();
    assert_eq!(opened.degraded, None);
    let sight = opened.source.await_sight().unwrap();
    let why = sight.refusals.iter().find_map(|family| family.clone().err());
    // Where tasks are not read, nothing is read of routes either.
    if let Some(why) = why.filter(|why| traced && why.contains("cannot be traced")) {
        assert!(!in_own_machine(), "{why}");
        eprintln!("SKIPPED: {why}");
        return None;
    }
    told(&mut opened.source);
    Some((opened.source, sight))
}

/// Opens the best source, for which what was read of a task serves so long.
fn open_for(fresh: Duration) -> KernelSource {
    let mut options = options(WriterSource::Records, &[]);
    options.writers.fresh = fresh;
    let (source, sight) = open(RouteSource::Ebpf, &options, false).unwrap();
    assert_eq!(sight.writers, Ok(()));
    source
}

/// All that a source has been told by now.
fn told(source: &mut KernelSource) -> Vec<What> {
    let mut all = Vec::new();
    source.catch_up(clock::now(), &mut |Observation { what, .. }| all.push(what));
    all
}

/// Waits until the source is told what is wanted.
async fn wait_for<T>(source: &mut KernelSource, mut wanted: impl FnMut(What) -> Option<T>) -> T {
    let wait = async {
        loop {
            let mut found = None;
            source.drain(1_024, &mut |Observation { what, .. }| {
                if found.is_none() {
                    found = wanted(what);
                }
            });
            match found {
                Some(found) => return found,
                None => source.ready().await.unwrap(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it is told in time")
}

/// Who wrote the route to this prefix, where that is what is told.
fn writer_of(what: What, prefix: &str) -> Option<detector_core::writer::Writer> {
    match what {
        What::Kernel(KernelChange::Route { route, writer, .. }) => {
            (route.prefix.to_string() == prefix).then_some(writer)
        }
        _ => None,
    }
}

fn refusal(what: What) -> Option<(Prefix, u32, Arc<Process>)> {
    match what {
        What::Refused(refusal) => {
            let process = refusal.writer.process.expect("whoever was refused is known");
            Some((refusal.prefix, refusal.error, process))
        }
        _ => None,
    }
}
