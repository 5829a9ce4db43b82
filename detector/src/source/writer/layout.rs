//! Where the programs find what they read of the kernel's memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use detector_ebpf::writer::Layout;

use super::btf::Btf;

/// Controllers whose version 1 hierarchies container runtimes make folders in, the surest first
/// (`enum cgroup_subsys_id`; which there are depends on how the kernel was built).
const CONTROLLERS: [&str; 3] = ["pids_cgrp_id", "memory_cgrp_id", "cpu_cgrp_id"];

/// What is asked of the kernel's description.
pub(super) const NAMES: [&str; 16] = [
    "task_struct",
    "css_set",
    "cgroup_subsys_state",
    "cgroup_subsys_id",
    "cgroup",
    "kernfs_node",
    "nsproxy",
    "net",
    "mnt_namespace",
    "fib_config",
    "nl_info",
    "fib6_info",
    "fib6_table",
    "net_device",
    // The functions that are traced.
    "fib_table_insert",
    "fib6_add",
];

/// Bytes of a pointer in the kernels that programs are built for.
const POINTER: u32 = 8;

/// The layout of this kernel, and what of it is not to be had.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) layout: Layout,
    /// The first field that tasks lack.
    pub(super) tasks: Result<(), String>,
    /// The first field that routes lack.
    pub(super) routes: Result<(), String>,
}

/// Looks all fields up.
pub(super) fn find(btf: &Btf) -> Found {
    let mut layout = Layout { here: here(), ..Layout::UNKNOWN };
    let tasks = find_tasks(btf, &mut layout);
    let routes = find_routes(btf, &mut layout);
    layout.tasks = tasks.is_ok().into();
    // A route's writer is read as well.
    layout.routes = (tasks.is_ok() && routes.is_ok()).into();
    Found { layout, tasks, routes }
}

fn find_tasks(btf: &Btf, layout: &mut Layout) -> Result<(), String> {
    let field = |path| field(btf, path);
    layout.task_pid = field("task_struct.pid")?;
    layout.task_tgid = field("task_struct.tgid")?;
    layout.task_leader = field("task_struct.group_leader")?;
    layout.task_started = field("task_struct.start_boottime")?;
    layout.task_command = field("task_struct.comm")?;
    layout.task_cgroups = field("task_struct.cgroups")?;
    layout.task_namespaces = field("task_struct.nsproxy")?;
    layout.set_default = field("css_set.dfl_cgrp")?;
    layout.state_cgroup = field("cgroup_subsys_state.cgroup")?;
    layout.cgroup_root = field("cgroup.root")?;
    layout.cgroup_node = field("cgroup.kn")?;
    layout.node_id = field("kernfs_node.id")?;
    layout.node_parent = field("kernfs_node.__parent").or_else(|_| field("kernfs_node.parent"))?;
    layout.node_name = field("kernfs_node.name")?;
    layout.namespaces_network = field("nsproxy.net_ns")?;
    layout.namespaces_mount = field("nsproxy.mnt_ns")?;
    layout.network_number = field("net.ns.inum")?;
    layout.mount_number = field("mnt_namespace.ns.inum")?;
    let mut controllers = CONTROLLERS.iter();
    let controller = controllers.find_map(|name| btf.value("cgroup_subsys_id", name));
    // Without one all containers are in the one hierarchy of version 2.
    if let Some(number) = controller {
        layout.set_controller = field("css_set.subsys")? + POINTER * number;
    }
    Ok(())
}

fn find_routes(btf: &Btf, layout: &mut Layout) -> Result<(), String> {
    let field = |path| field(btf, path);
    layout.config_length = field("fib_config.fc_dst_len")?;
    layout.config_protocol = field("fib_config.fc_protocol")?;
    layout.config_kind = field("fib_config.fc_type")?;
    layout.config_table = field("fib_config.fc_table")?;
    layout.config_address = field("fib_config.fc_dst")?;
    layout.config_interface = field("fib_config.fc_oif")?;
    layout.config_info = field("fib_config.fc_nlinfo")?;
    layout.info_network = field("nl_info.nl_net")?;
    layout.info_port = field("nl_info.portid")?;
    layout.route_table = field("fib6_info.fib6_table")?;
    layout.route_address = field("fib6_info.fib6_dst.addr")?;
    layout.route_length = field("fib6_info.fib6_dst.plen")?;
    layout.route_protocol = field("fib6_info.fib6_protocol")?;
    layout.route_kind = field("fib6_info.fib6_type")?;
    layout.route_object = field("fib6_info.nh")?;
    layout.route_device = field("fib6_info.fib6_nh.nh_common.nhc_dev")?;
    layout.table_number = field("fib6_table.tb6_id")?;
    layout.device_index = field("net_device.ifindex")?;
    Ok(())
}

fn field(btf: &Btf, path: &str) -> Result<u32, String> {
    btf.offset(path).ok_or_else(|| format!("this kernel has no {path}"))
}

/// The network namespace of the calling thread, by its number; 0, which is none's, where it cannot be
/// told.
fn here() -> u32 {
    let number = fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino());
    number.ok().and_then(|number| number.try_into().ok()).unwrap_or(0)
}
