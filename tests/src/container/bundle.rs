//! What the runtime is told, in the words of the OCI.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::manifest::ContainerSpec;

/// A folder of the host in a container.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) from: PathBuf,
    pub(super) to: String,
    pub(super) writable: bool,
}

/// The runtime's configuration of a container in the network namespace of whoever starts it.
pub(super) fn config(
    container: &ContainerSpec,
    rootfs: &Path,
    env: &BTreeMap<String, String>,
    mounts: &[Mount],
    profile: Option<Value>,
) -> Result<Value> {
    let context = &container.security_context;
    ensure!(!context.privileged, "a privileged container is none that is to be tested");
    ensure!(context.capabilities.drop == ["ALL"], "all capabilities are dropped first");
    let capabilities: Vec<String> =
        context.capabilities.add.iter().map(|name| format!("CAP_{name}")).collect();
    let mut arguments = vec!["/detector".to_owned()];
    arguments.extend(container.args.iter().cloned());
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut all = given();
    all.extend(mounts.iter().map(|Mount { from, to, writable }| {
        let mode = if *writable { "rw" } else { "ro" };
        json!({
            "destination": to, "source": from, "type": "bind",
            "options": ["rbind", "rprivate", "nosuid", "nodev", mode],
        })
    }));
    let mut linux = json!({
        "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}],
        "maskedPaths": [
            "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
            "/sys/firmware", "/sys/devices/virtual/powercap",
        ],
        "readonlyPaths":
            ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if let Some(profile) = profile {
        linux["seccomp"] = profile;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": context.run_as_user, "gid": context.run_as_group},
            "args": arguments,
            "env": env,
            "cwd": "/",
            // As containerd and CRI-O give them: none is inheritable, none ambient.
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": !context.allow_privilege_escalation,
        },
        "root": {"path": rootfs, "readonly": context.read_only_root_filesystem},
        "mounts": all,
        "linux": linux,
    }))
}

/// What every container has.
fn given() -> Vec<Value> {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ]
}
