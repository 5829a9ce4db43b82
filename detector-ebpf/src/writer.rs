//! Who writes: what the programs read of the task that is about to change a table, and where in
//! the kernel's memory it lies.
//!
//! The kernel tells of a change within the system call that makes it, so the task that runs is the
//! writer. Where its fields lie differs from kernel to kernel; the kernel says so itself (BTF), and the
//! agent hands it over when it loads the programs.

/// Folders of a control group's path that are kept, from the innermost outwards.
pub const DEPTH: usize = 8;

/// Bytes of a folder's name that are kept, its zero included. Runtimes' longest have 85.
pub const NAME: usize = 96;

/// A task, as far as it can be read; zero is what could not be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct Task {
    /// When its process began: nanoseconds of `CLOCK_BOOTTIME`.
    pub started: u64,
    /// The number of its control group, by which [`Path`]s are kept.
    pub cgroup: u64,
    /// The process, as the first PID namespace counts.
    pub process: u32,
    /// The thread.
    pub thread: u32,
    /// Its network namespace, by the number that `/proc/PID/ns/net` shows.
    pub network: u32,
    /// Its mount namespace, likewise.
    pub mount: u32,
    /// The name of its process's command, which whoever runs it can choose.
    pub command: Command,
}

/// The name of a command: 16 bytes, of which the last is zero (`TASK_COMM_LEN`). They are kept as two
/// words, for the compiler would move bytes one by one, for each route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Command(pub(crate) [u64; 2]);

impl Command {
    /// The name of these bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self([0, 8].map(|at| u64::from_ne_bytes(part(&bytes, at))))
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for (room, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            room.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// The path of a control group, from the innermost folder outwards.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Path {
    /// Whether all of it is written: not 0.
    pub whole: u64,
    /// How many folders there are, the root not counted; more than [`DEPTH`] are not kept.
    pub depth: u64,
    /// Their names, each ended by a zero.
    pub names: [[u8; NAME]; DEPTH],
}

/// A write of a route that the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Refusal {
    /// The prefix's address; the first four bytes of it where the family is IPv4.
    pub address: [u8; 16],
    /// The table.
    pub table: u32,
    /// The interface that it was to lead to; 0 where none was named.
    pub interface: u32,
    /// The netlink port of the writer; 0 where it was no netlink message.
    pub port: u32,
    /// The kernel's answer, such as 17 (`EEXIST`).
    pub error: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// The prefix's length.
    pub length: u8,
    /// `rtm_protocol`.
    pub protocol: u8,
    /// `rtm_type`.
    pub kind: u8,
}

macro_rules! layout {
    ($($(#[$doc:meta])* $field:ident,)*) => {
        /// Where the fields lie, in bytes from the beginning of their structures.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(C)]
        pub struct Layout {
            $($(#[$doc])* pub $field: u32,)*
        }

        impl Layout {
            /// Nothing is known.
            pub const UNKNOWN: Self = Self { $($field: 0,)* };
        }
    };
}

layout! {
    /// Whether the fields of tasks are known at all.
    tasks,
    /// Whether it may be noted who enters a function that writes routes, for where tasks are not read.
    noted,
    /// Whether the filter may ask for the numbers of process and thread: since Linux 6.10.
    numbers,
    /// Whether the fields of routes are known at all.
    routes,
    /// The network namespace that matters, by its number; others' writes are left out.
    here,
    /// `task_struct.pid`
    task_pid,
    /// `task_struct.tgid`
    task_tgid,
    /// `task_struct.group_leader`
    task_leader,
    /// `task_struct.start_boottime`
    task_started,
    /// `task_struct.comm`
    task_command,
    /// `task_struct.cgroups`
    task_cgroups,
    /// `task_struct.nsproxy`
    task_namespaces,
    /// `css_set.dfl_cgrp`
    set_default,
    /// `css_set.subsys[…]` of the controller whose version 1 hierarchy containers are in; 0 for none.
    set_controller,
    /// `cgroup_subsys_state.cgroup`
    state_cgroup,
    /// `cgroup.root`
    cgroup_root,
    /// `cgroup.kn`
    cgroup_node,
    /// `kernfs_node.id`
    node_id,
    /// `kernfs_node.parent`, or `__parent` since Linux 6.15
    node_parent,
    /// `kernfs_node.name`
    node_name,
    /// `nsproxy.net_ns`
    namespaces_network,
    /// `nsproxy.mnt_ns`
    namespaces_mount,
    /// `net.ns.inum`
    network_number,
    /// `mnt_namespace.ns.inum`
    mount_number,
    /// `fib_config.fc_dst_len`
    config_length,
    /// `fib_config.fc_protocol`
    config_protocol,
    /// `fib_config.fc_type`
    config_kind,
    /// `fib_config.fc_table`
    config_table,
    /// `fib_config.fc_dst`
    config_address,
    /// `fib_config.fc_oif`
    config_interface,
    /// `fib_config.fc_nlinfo`
    config_info,
    /// `nl_info.nl_net`
    info_network,
    /// `nl_info.portid`
    info_port,
    /// `fib6_info.fib6_table`
    route_table,
    /// `fib6_info.fib6_dst.addr`
    route_address,
    /// `fib6_info.fib6_dst.plen`
    route_length,
    /// `fib6_info.fib6_protocol`
    route_protocol,
    /// `fib6_info.fib6_type`
    route_kind,
    /// `fib6_info.nh`, a next-hop object
    route_object,
    /// `fib6_info.fib6_nh[0].nh_common.nhc_dev`
    route_device,
    /// `fib6_table.tb6_id`
    table_number,
    /// `net_device.ifindex`
    device_index,
}

// Both sides of the kernel's border write and read these as they lie.
const _: () = {
    assert!(size_of::<Task>() == 48 && align_of::<Task>() == 8);
    assert!(size_of::<Path>() == 16 + DEPTH * NAME);
    assert!(size_of::<Refusal>() == 36);
    assert!(size_of::<Layout>().is_multiple_of(4));
};

impl Task {
    /// Reads a task from its bytes, in the machine's order.
    pub fn parse(bytes: &[u8; size_of::<Self>()]) -> Self {
        let long = |at: usize| u64::from_ne_bytes(part(bytes, at));
        let word = |at: usize| u32::from_ne_bytes(part(bytes, at));
        Self {
            started: long(0),
            cgroup: long(8),
            process: word(16),
            thread: word(20),
            network: word(24),
            mount: word(28),
            command: Command::new(part(bytes, 32)),
        }
    }
}

impl Refusal {
    /// Reads a refusal from its bytes, in the machine's order.
    pub fn parse(bytes: &[u8; size_of::<Self>()]) -> Self {
        let word = |at: usize| u32::from_ne_bytes(part(bytes, at));
        let [family, length, protocol, kind] = part(bytes, 32);
        Self {
            address: part(bytes, 0),
            table: word(16),
            interface: word(20),
            port: word(24),
            error: word(28),
            family,
            length,
            protocol,
            kind,
        }
    }
}

/// The bytes of a field; zeros where they were not all there, which the sizes above rule out.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let task = Task {
            started: 1,
            cgroup: 2,
            process: 3,
            thread: 4,
            network: 5,
            mount: 6,
            command: Command::new(*b"calico-node\0\0\0\0\0"),
        };
        let mut bytes = [0; size_of::<Task>()];
        bytes[..8].copy_from_slice(&1u64.to_ne_bytes());
        bytes[8..16].copy_from_slice(&2u64.to_ne_bytes());
        for (at, value) in [(16, 3u32), (20, 4), (24, 5), (28, 6)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes[32..].copy_from_slice(&task.command.bytes());
        assert_eq!(Task::parse(&bytes), task);

        let refusal = Refusal {
            address: [7; 16],
            table: 254,
            interface: 9,
            port: 10,
            error: 17,
            family: 2,
            length: 32,
            protocol: 3,
            kind: 1,
        };
        let mut bytes = [7; size_of::<Refusal>()];
        for (at, value) in [(16, 254u32), (20, 9), (24, 10), (28, 17)] {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes[32..].copy_from_slice(&[2, 32, 3, 1]);
        assert_eq!(Refusal::parse(&bytes), refusal);
    }
}
