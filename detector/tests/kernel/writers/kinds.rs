//! Those who write routes, of each sort, as the tests know them.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::namespace::{in_own_machine, index};

pub(super) const CONTAINER: &str =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub(super) const POD: &str = "12345678-1234-1234-1234-123456789abc";

/// How long a routing daemon may take to write its route, where all is emulated.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
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

pub(super) const KINDS: [Kind; 7] = [
    Kind::Ip,
    Kind::Gone,
    Kind::Container,
    Kind::OldContainer,
    Kind::Bird,
    Kind::Ioctl,
    Kind::Thread,
];

/// Who wrote, as the test knows.
pub(super) struct Writer {
    pub(super) pid: u32,
    pub(super) thread: u32,
    pub(super) command: String,
    pub(super) thread_name: String,
    pub(super) container: bool,
    /// Whether the kernel's message names its process by the port.
    pub(super) has_port: bool,
    /// Kept until all was looked at.
    pub(super) running: Option<Running>,
}

/// A process that is ended, if it has not ended by itself.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `ip` that does what it is told, line by line, on one processor.
pub(super) struct Batch(Running);

impl Batch {
    pub(super) fn start() -> Self {
        let mut ip = Command::new("ip");
        let mut ip = ip.args(["-force", "-batch", "-"]).stdin(Stdio::piped());
        ip = ip.stdout(Stdio::null()).stderr(Stdio::null());
        let child = ip.spawn().unwrap();
        stay_on_one_processor(Pid::from_raw(child.id().cast_signed()));
        Self(Running(child))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.0.id()
    }

    pub(super) fn line(&mut self, line: &str) {
        let stdin = self.0.0.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
    }
}

/// Keeps a task on the first processor that this one may use.
pub(super) fn stay_on_one_processor(task: Pid) {
    let may = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|at| may.is_set(*at).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    sched_setaffinity(task, &one).unwrap();
}

pub(super) fn prefix(kind: Kind, ipv6: bool) -> String {
    let number = 1 + KINDS.iter().position(|one| *one == kind).unwrap();
    if ipv6 { format!("fd00:65::{number}/128") } else { format!("10.65.7.{number}/32") }
}

/// Writes a route by cali1; `None` where this host has no such writer.
pub(super) fn write(kind: Kind, prefix: &str) -> Option<Writer> {
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
pub(super) fn by(pid: u32, command: &str) -> Writer {
    let (command, thread_name) = (command.to_owned(), command.to_owned());
    let (container, has_port, running) = (false, true, None);
    Writer { pid, thread: pid, command, thread_name, container, has_port, running }
}

/// The name of the command of this process, that of its first thread, or of this thread.
pub(super) fn own_name(of: &str) -> String {
    fs::read_to_string(format!("/proc/{of}/comm")).unwrap().trim_end().to_owned()
}

/// A control group like a container's.
pub(super) struct Hierarchy {
    pub(super) leaf: PathBuf,
    pub(super) root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Hierarchy {
    /// Mounts a hierarchy where no other process sees it; `None` where this host has none of this
    /// version.
    pub(super) fn mount(old: bool) -> Option<Self> {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let (kind, options) = if old { ("cgroup", Some("pids")) } else { ("cgroup2", None) };
        if let Err(error) = mount(Some(kind), &root, Some(kind), MsFlags::empty(), options) {
            eprintln!("SKIPPED: a writer in a container by {kind}: {error}");
            assert!(!in_own_machine(), "{kind} can be mounted in our own machines");
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
pub(super) fn bird(prefix: &str) -> Option<Writer> {
    if Command::new("bird").arg("--version").output().is_err() {
        eprintln!("SKIPPED: a route by BIRD: it is not here (bird2)");
        assert!(!in_own_machine(), "our own machines have it");
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
pub(super) fn ioctl(prefix: &str) {
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
pub(super) fn netlink(prefix: &str) {
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
}

/// Writes a route that is there already by `ip`, which says so and goes on.
pub(super) fn refuse(prefix: &str, device: &str) {
    let done = Command::new("ip")
        .args(["route", "add", prefix, "dev", device])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!done.success());
}

pub(super) fn parts(prefix: &str) -> (IpAddr, u8) {
    let (address, length) = prefix.split_once('/').unwrap();
    (address.parse().unwrap(), length.parse().unwrap())
}
