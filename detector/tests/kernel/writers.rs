//! Who wrote a route: each sort of writer, by each way in which it can be known.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::namespace::{in_namespace, index, ip};

const EXISTS: u32 = 17;
const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const POD: &str = "12345678-1234-1234-1234-123456789abc";

/// How long a routing daemon may take to write its route, where all is emulated.
const PATIENCE: Duration = Duration::from_mins(1);

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// `ip`, which is still there when the record is read.
    Ip,
    /// `ip`, which has ended and was reaped before.
    Gone,
    /// `ip`, in a container by the one hierarchy of version 2.
    Container,
    /// The same, by a hierarchy of version 1.
    OldContainer,
    /// A routing daemon.
    Bird,
    /// This process, by the old system call.
    Ioctl,
    /// This process, by a thread that is not its first.
    Thread,
}

const KINDS: [Kind; 7] = [
    Kind::Ip,
    Kind::Gone,
    Kind::Container,
    Kind::OldContainer,
    Kind::Bird,
    Kind::Ioctl,
    Kind::Thread,
];

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

/// Who wrote, as the test knows.
struct Writer {
    pid: u32,
    thread: u32,
    command: String,
    thread_name: String,
    container: bool,
    /// Whether the kernel's message names its process by the port.
    has_port: bool,
    /// Kept until all was looked at.
    running: Option<Running>,
}

/// A process that is ended, if it has not ended by itself.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ip` that does what it is told, line by line, on one processor.
struct Batch(Running);

impl Batch {
    fn start() -> Self {
        let mut ip = Command::new("ip");
        let mut ip = ip.args(["-force", "-batch", "-"]).stdin(Stdio::piped());
        ip = ip.stdout(Stdio::null()).stderr(Stdio::null());
        let child = ip.spawn().unwrap();
        stay_on_one_processor(Pid::from_raw(child.id().cast_signed()));
        Self(Running(child))
    }

    fn pid(&self) -> u32 {
        self.0.0.id()
    }

    fn line(&mut self, line: &str) {
        let stdin = self.0.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
    }
}

/// Keeps a task on the first processor that this one may use.
fn stay_on_one_processor(task: Pid) {
    let may = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|at| may.is_set(*at).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(task, &one).unwrap();
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

/// It does not serve the routes of others, nor its own when it has moved.
#[test]
fn writers_in_turn_on_one_processor_are_told_apart_and_followed() {
    in_namespace(|| async {
        let mut kernel = open_for(Duration::from_mins(1));
        let Some(hierarchy) = Hierarchy::mount(false) else { return };
        let mut both = [Batch::start(), Batch::start()];
        let moving = both[0].pid().to_string();
        for round in 0..20 {
            let inside = round % 2 == 0;
            let folder = if inside { &hierarchy.leaf } else { &hierarchy.root };
            fs::write(folder.join("cgroup.procs"), &moving).unwrap();
            // The second route of each is soon after its first.
            for (number, who) in [0, 0, 1, 1, 0].into_iter().enumerate() {
                let prefix = format!("10.65.{round}.{number}/32");
                both[who].line(&format!("route add {prefix} dev cali1"));
                let writer = wait_for(&mut kernel, |what| writer_of(what, &prefix)).await;
                let process = writer.process.expect("whoever writes is known");
                assert_eq!(process.pid, both[who].pid(), "{prefix}");
                let contained = inside && who == 0;
                assert_eq!(!process.containers.is_empty(), contained, "{prefix}: {process:?}");
            }
        }
    });
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
        let Some((mut source, _)) = open(RouteSource::Ebpf, WriterSource::Auto, &[], true) else {
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
                    Err(why) => assert!(!is_drill(why) && !must_trace(), "{why}"),
                    Ok(_) => assert!(!refused, "{sight:?}"),
                }
            }
        }
    });
}

/// Routes are made by each sort of writer; each is known for what it is.
fn made(way: Way, source: RouteSource, choice: WriterSource, refused: &'static [Hook]) {
    in_namespace(move || async move {
        let traced = matches!(way, Way::Traced(_));
        let Some((mut kernel, sight)) = open(source, choice, refused, traced) else { return };
        assert_eq!(sight.writers.is_err(), way == Way::Port, "{sight:?}");
        for kind in KINDS {
            for ipv6 in [false, true] {
                if way == Way::Port {
                    // It has to look through all processes, and rests between two such times.
                    let Some((again, _)) = open(source, choice, refused, traced) else { return };
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
        let Some((mut source, sight)) = open(RouteSource::Ebpf, choice, &[], true) else { return };
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

// === the writers ===

fn prefix(kind: Kind, ipv6: bool) -> String {
    let number = 1 + KINDS.iter().position(|one| *one == kind).unwrap();
    if ipv6 { format!("fd00:65::{number}/128") } else { format!("10.65.7.{number}/32") }
}

/// Writes a route by cali1; `None` where this host has no such writer.
fn write(kind: Kind, prefix: &str) -> Option<Writer> {
    let line = format!("route add {prefix} dev cali1");
    let own = std::process::id();
    let none = Writer {
        pid: own,
        thread: own,
        command: own_name("self"),
        thread_name: own_name("thread-self"),
        container: false,
        has_port: false,
        running: None,
    };
    match kind {
        Kind::Ip => {
            let mut ip = Command::new("ip");
            let mut ip = ip.args(["-force", "-batch", "-"]).stdin(Stdio::piped());
            ip = ip.stdout(Stdio::piped()).stderr(Stdio::null());
            let mut child = ip.spawn().unwrap();
            // A second line answers when the first was done, and so the process goes on until then.
            let stdin = child.stdin.as_mut().unwrap();
            stdin.write_all(format!("{line}\nlink show dev lo\n").as_bytes()).unwrap();
            stdin.flush().unwrap();
            let pid = child.id();
            let running = Some(Running(child));
            Some(Writer { running, ..by(pid, "ip") })
        }
        Kind::Gone => {
            let mut child =
                Command::new("ip").args(line.split(' ')).stderr(Stdio::null()).spawn().unwrap();
            let pid = child.id();
            child.wait().unwrap();
            Some(by(pid, "ip"))
        }
        Kind::Container | Kind::OldContainer => {
            let hierarchy = Hierarchy::mount(kind == Kind::OldContainer)?;
            let script =
                format!("echo $$ > {}/cgroup.procs; exec ip {line}", hierarchy.leaf.display());
            let mut shell = Command::new("sh");
            let mut child = shell.args(["-c", &script]).stderr(Stdio::null()).spawn().unwrap();
            let pid = child.id();
            child.wait().unwrap();
            // Its port leads to nobody any more.
            Some(Writer { container: true, has_port: false, ..by(pid, "ip") })
        }
        Kind::Bird => bird(prefix),
        Kind::Ioctl => {
            ioctl(prefix);
            let thread = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
            Some(Writer { thread, ..none })
        }
        Kind::Thread => {
            let prefix = prefix.to_owned();
            let thread_name = "router".to_owned();
            let write = move || {
                netlink(&prefix);
                u32::try_from(nix::unistd::gettid().as_raw()).unwrap()
            };
            let thread =
                std::thread::Builder::new().name(thread_name.clone()).spawn(write).unwrap();
            let thread = thread.join().unwrap();
            assert_ne!(thread, own);
            // The socket is closed, and its port nobody's, when the record is read.
            Some(Writer { thread, thread_name, ..none })
        }
    }
}

/// A writer by netlink that is a process of its own.
fn by(pid: u32, command: &str) -> Writer {
    let (command, thread_name) = (command.to_owned(), command.to_owned());
    let (container, has_port, running) = (false, true, None);
    Writer { pid, thread: pid, command, thread_name, container, has_port, running }
}

/// The name of the command of this process, that of its first thread, or of this thread.
fn own_name(of: &str) -> String {
    fs::read_to_string(format!("/proc/{of}/comm")).unwrap().trim_end().to_owned()
}

/// A control group like a container's.
struct Hierarchy {
    leaf: PathBuf,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Hierarchy {
    /// Mounts a hierarchy where no other process sees it; `None` where this host has none of this
    /// version.
    fn mount(old: bool) -> Option<Self> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let (kind, options) = if old { ("cgroup", Some("pids")) } else { ("cgroup2", None) };
        if let Err(error) = mount(Some(kind), &root, Some(kind), MsFlags::empty(), options) {
            eprintln!("SKIPPED: a writer in a container by {kind}: {error}");
            assert!(!must_trace(), "{kind} can be mounted in our own machines");
            return None;
        }
        let parent = root.join(format!("detector-{}", std::process::id()));
        let (pod, container) = if old {
            (format!("pod{POD}"), CONTAINER.to_owned())
        } else {
            let flat = POD.replace('-', "_");
            (
                format!("kubepods-burstable-pod{flat}.slice"),
                format!("cri-containerd-{CONTAINER}.scope"),
            )
        };
        let leaf = parent.join(pod).join(container);
        fs::create_dir_all(&leaf).unwrap();
        Some(Self { leaf, root, _folder: folder })
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        let mut folder = self.leaf.as_path();
        while folder != self.root {
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("{} stays: {error}", folder.display());
                break;
            }
            folder = folder.parent().unwrap();
        }
        let _ = umount2(&self.root, MntFlags::MNT_DETACH);
    }
}

/// A routing daemon that writes the route by itself, and goes on.
fn bird(prefix: &str) -> Option<Writer> {
    if Command::new("bird").arg("--version").output().is_err() {
        eprintln!("SKIPPED: a route by BIRD: it is not here (bird2)");
        assert!(!must_trace(), "our own machines have it");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let channel = if prefix.contains(':') { "ipv6" } else { "ipv4" };
    let text = format!(
        "log stderr all;\nrouter id 192.0.2.2;\nprotocol device {{ }}\n\
         protocol kernel {{ {channel} {{ import none; export all; }}; }}\n\
         protocol static {{ {channel}; route {prefix} via \"cali1\"; }}\n"
    );
    let path = |name: &str| folder.path().join(name);
    fs::write(path("bird.conf"), text).unwrap();
    let mut bird = Command::new("bird");
    let bird = bird.arg("-f").arg("-c").arg(path("bird.conf")).arg("-s").arg(path("socket"));
    let child = bird.stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let running = Some(Running(child));
    // It has read its file when its route is there, which is waited for.
    let _ = folder.keep();
    Some(Writer { running, ..by(pid, "bird") })
}

/// Writes a route by `ioctl`, as `route` does.
fn ioctl(prefix: &str) {
    let (address, length) = parts(prefix);
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: the call takes no pointer.
    let socket = unsafe { libc::socket(family, libc::SOCK_DGRAM, 0) };
    assert!(socket >= 0);
    let mut device = *b"cali1\0";
    // It may be refused.
    match address {
        IpAddr::V4(address) => {
            let name = |address: u32| {
                // SAFETY: both are plain structures of 16 bytes, and all bytes are set.
                unsafe {
                    std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(libc::sockaddr_in {
                        sin_family: 2,
                        sin_port: 0,
                        sin_addr: libc::in_addr { s_addr: address.to_be() },
                        sin_zero: [0; 8],
                    })
                }
            };
            // SAFETY: zeros are a route that says nothing.
            let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
            route.rt_dst = name(address.into());
            route.rt_genmask = name(u32::MAX);
            route.rt_flags = libc::RTF_UP | libc::RTF_HOST;
            route.rt_dev = device.as_mut_ptr().cast();
            // SAFETY: the structure and the name that it points to live until the call returns.
            unsafe { libc::ioctl(socket, libc::SIOCADDRT, &raw mut route) };
        }
        IpAddr::V6(address) => {
            // `struct in6_rtmsg` of linux/ipv6_route.h, whose fields no crate shows: destination, its
            // length, the metric that `ip` would take, flags, interface.
            let mut route = [0u64; 10];
            // SAFETY: it is as many bytes as ten numbers have, and they are written nowhere else meanwhile.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(route.as_mut_ptr().cast::<u8>(), 80) };
            bytes[..16].copy_from_slice(&address.octets());
            bytes[52..54].copy_from_slice(&u16::from(length).to_ne_bytes());
            bytes[56..60].copy_from_slice(&1024u32.to_ne_bytes());
            bytes[72..76].copy_from_slice(&u32::from(libc::RTF_UP).to_ne_bytes());
            bytes[76..].copy_from_slice(&index("cali1").get().to_ne_bytes());
            // SAFETY: the structure lives until the call returns.
            unsafe { libc::ioctl(socket, libc::SIOCADDRT, route.as_mut_ptr()) };
        }
    }
    // SAFETY: it was opened above, and nobody else has it.
    unsafe { libc::close(socket) };
}

/// Writes a route by a message of our own.
fn netlink(prefix: &str) {
    let (address, length) = parts(prefix);
    let (family, bytes) = match address {
        IpAddr::V4(address) => (2, address.octets().to_vec()),
        IpAddr::V6(address) => (10, address.octets().to_vec()),
    };
    // `struct rtmsg`: static, scope link, unicast, in the main table.
    let mut body = vec![family, length, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0];
    for (kind, value) in [(1u16, bytes), (4, index("cali1").get().to_ne_bytes().to_vec())] {
        let length = u16::try_from(4 + value.len()).unwrap();
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
    }
    // `RTM_NEWROUTE`; request, acknowledge, exclusive, create.
    let mut message = Vec::new();
    message.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
    message.extend(24u16.to_ne_bytes());
    message.extend((1u16 | 4 | 0x200 | 0x400).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.send_to(&message, &SocketAddr::new(0, 0), 0).unwrap();
    socket.recv_from_full().unwrap();
    assert!(socket.as_raw_fd() >= 0);
}

/// Writes a route that is there already by `ip`, which says so and goes on.
fn refuse(prefix: &str, device: &str) {
    let done = Command::new("ip")
        .args(["route", "add", prefix, "dev", device])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!done.success());
}

fn parts(prefix: &str) -> (IpAddr, u8) {
    let (address, length) = prefix.split_once('/').unwrap();
    (address.parse().unwrap(), length.parse().unwrap())
}

// === the source ===

/// Whether it is a failure that functions cannot be traced: in our own machines they can.
fn must_trace() -> bool {
    Path::new("/programs/detector").exists()
}

fn options(source: WriterSource, refused: &[Hook]) -> KernelOptions {
    let refused = Refused::new(refused.to_vec());
    let writers = WriterOptions { source, refused, ..WriterOptions::default() };
    KernelOptions { writers, ..KernelOptions::default() }
}

/// Opens a source; `None` where functions are to be traced, and this host forbids it.
fn open(
    source: RouteSource,
    writers: WriterSource,
    refused: &[Hook],
    traced: bool,
) -> Option<(KernelSource, WriterSight)> {
    let mut opened = KernelSource::open(source, &options(writers, refused)).unwrap();
    assert_eq!(opened.degraded, None);
    let sight = opened.source.await_sight().unwrap();
    let why = sight.refusals.iter().find_map(|family| family.clone().err());
    // Where tasks are not read, nothing is read of routes either.
    if let Some(why) = why.filter(|why| traced && why.contains("cannot be traced")) {
        assert!(!must_trace(), "{why}");
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
    let mut opened = KernelSource::open(RouteSource::Ebpf, &options).unwrap();
    assert_eq!(opened.degraded, None);
    assert_eq!(opened.source.await_sight().unwrap().writers, Ok(()));
    told(&mut opened.source);
    opened.source
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
