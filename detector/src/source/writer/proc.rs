//! Processes by their numbers, as /proc shows them while they live.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use detector_core::time::BootTime;
use detector_core::writer::{Known, Process};
use nix::unistd::{SysconfVar, sysconf};

use super::{containers_of, path_of, shown};

/// The number of the first PID namespace (`PROC_PID_INIT_INO` in the kernel's linux/proc_ns.h).
const FIRST: u64 = 0xEFFF_FFFC;

/// Whether the numbers that the kernel speaks of are those of /proc here. In a container without
/// `hostPID` they are other processes', if anybody's.
pub(super) fn counts_like_the_kernel() -> bool {
    fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.ino() == FIRST)
}

/// Whose a netlink port is.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// The process that has a socket, by the socket's inode.
    owners: HashMap<u64, u32>,
    /// Until when processes are not looked through again.
    rests: Option<Instant>,
}

/// How many times as long as it takes to look through all processes is waited until that is done again.
/// On a busy node it takes tens of milliseconds.
const REST: u32 = 20;

// === impl Ports ===

impl Ports {
    /// The process that has the socket of this port, while it has it. The kernel gives the first socket of
    /// a process its number for a port, but as its own PID namespace counts, and other sockets ports
    /// beyond all numbers (`netlink_autobind` in net/netlink/af_netlink.c); and whoever likes chooses
    /// one. So whose it is, the socket tells, or nobody.
    pub(super) fn process(&mut self, port: u32) -> Option<Process> {
        let table = fs::read_to_string("/proc/thread-self/net/netlink").ok()?;
        let inode = inode_of(&table, port)?;
        let has = |pid: u32| has_socket(&Path::new("/proc").join(pid.to_string()), inode);
        let likely = [self.owners.get(&inode).copied(), Some(port)];
        if let Some(owner) = likely.into_iter().flatten().find(|owner| has(*owner)) {
            return process(owner);
        }
        let begun = Instant::now();
        if self.rests.is_some_and(|until| begun < until) {
            return None;
        }
        self.owners.clear();
        let numbers = fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let owner = numbers.into_iter().find(|pid| has(*pid));
        self.rests = Some(Instant::now() + begun.elapsed() * REST);
        self.owners.extend(owner.map(|owner| (inode, owner)));
        process(owner?)
    }
}

/// The inode of the routing socket with this port, by the table of netlink sockets.
fn inode_of(table: &str, port: u32) -> Option<u64> {
    const ROUTE: &str = "0";
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, protocol, owner, .., inode] = fields.as_slice() else { return None };
        (*protocol == ROUTE && owner.parse() == Ok(port)).then(|| inode.parse().ok())?
    })
}

/// Whether a process has a socket among its descriptors.
fn has_socket(process: &Path, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|to| to.as_os_str() == wanted.as_str())
}

/// The process of this number.
pub(super) fn process(pid: u32) -> Option<Process> {
    let folder = Path::new("/proc").join(pid.to_string());
    let line = fs::read_to_string(folder.join("stat")).ok()?;
    let (command, started) = stat(&line)?;
    let number = |name: &str| {
        let file = fs::metadata(folder.join("ns").join(name)).ok()?;
        u32::try_from(file.ino()).ok()
    };
    let cgroup = fs::read_to_string(folder.join("cgroup")).ok();
    let folders = cgroup.as_deref().map(folders).unwrap_or_default();
    Some(Process {
        pid,
        thread: pid,
        started,
        command: shown(command),
        network: number("net"),
        mount: number("mnt"),
        cgroup: cgroup.is_some().then(|| path_of(&folders, true)),
        containers: containers_of(&folders),
        known: Known::Port,
    })
}

/// The command, and when the process began (proc(5), `/proc/pid/stat`).
fn stat(text: &str) -> Option<(&str, Option<BootTime>)> {
    // The command is in parentheses, and may have some itself.
    let (before, rest) = text.rsplit_once(')')?;
    let (_, command) = before.split_once('(')?;
    // The 22nd field of all; the third is the first of these.
    let ticks: Option<u64> = rest.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok());
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let a_second = a_second.and_then(|number| u64::try_from(number).ok()).filter(|n| *n > 0);
    let started = ticks.zip(a_second).map(|(ticks, a_second)| {
        let part = Duration::from_secs(ticks % a_second) / u32::try_from(a_second).unwrap_or(1);
        BootTime::ZERO.after(Duration::from_secs(ticks / a_second) + part)
    });
    Some((command, started))
}

/// The folders of the control group that says most of where the process runs, the innermost first: that
/// of version 2, or of a version 1 hierarchy where that names a container and the other does not.
fn folders(text: &str) -> Vec<&str> {
    let mut best: Vec<&str> = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(_), Some(path)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let unified = number == "0";
        let folders: Vec<&str> = path.rsplit('/').filter(|folder| !folder.is_empty()).collect();
        let names_more = !containers_of(&folders).is_empty() && containers_of(&best).is_empty();
        if names_more || (unified && containers_of(&best).is_empty()) {
            best = folders;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_look_like_the_rest_of_the_line() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 250 20";
        let line = format!("42 (a) b (c)) {rest}\n");
        let (command, started) = stat(&line).unwrap();
        assert_eq!(command, "a) b (c)");
        let a_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
        let wanted = Duration::from_millis(250 * 1_000 / u64::try_from(a_second).unwrap());
        assert_eq!(started, Some(BootTime::ZERO.after(wanted)));
        assert!(stat("").is_none() && stat("42 a").is_none());
        assert_eq!(stat("42 (a) S"), Some(("a", None)));
    }

    #[test]
    fn the_hierarchy_that_names_a_container_is_taken() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let mixed = format!("12:pids:/kubepods/pod1/{id}\n1:name=systemd:/x\n0::/init.scope\n");
        assert_eq!(folders(&mixed), [id, "pod1", "kubepods"]);
        assert_eq!(folders("3:cpu:/a/b\n0::/user.slice/s.scope\n"), ["s.scope", "user.slice"]);
        assert_eq!(folders("0::/\n"), Vec::<&str>::new());
        assert_eq!(folders("nonsense\n"), Vec::<&str>::new());
    }

    #[test]
    fn a_socket_is_found_by_its_port() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            0000000000000000 15  2147483900 00000000 0        0        0     2        0        11\n\
            0000000000000000 0   2147483900 00000440 0        0        0     2        0        12\n";
        assert_eq!(inode_of(table, 2_147_483_900), Some(12));
        assert_eq!(inode_of(table, 7), None);
        assert_eq!(inode_of("nonsense", 7), None);
    }

    #[test]
    fn ports_beyond_numbers_lead_to_their_process() {
        let open = || {
            let mut socket =
                netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
            (socket.bind_auto().unwrap().port_number(), socket)
        };
        // One of the two at least is not the first of this process.
        let both = [open(), open()];
        for (port, _socket) in &both {
            let found = Ports::default().process(*port).unwrap();
            assert_eq!(found.pid, std::process::id(), "port {port}");
        }
        let gone = open().0;
        assert!(Ports::default().process(gone).is_none(), "nobody has the socket any more");
    }

    #[test]
    fn one_is_what_one_is() {
        let own = process(std::process::id()).unwrap();
        assert_eq!(own.pid, std::process::id());
        assert!(own.started.unwrap() <= crate::clock::now());
        assert!(own.network.is_some() && own.mount.is_some() && !own.command.is_empty());
        assert_eq!(own.known, Known::Port);
        assert!(process(u32::MAX).is_none());
    }
}
