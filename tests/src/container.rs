//! The agent as a DaemonSet's manifest would have it run: from an image, by a container runtime, with
//! the manifest's own capabilities, seccomp profile, mounts and arguments, and as its service account.
//!
//! What the kubelet does with a pod's specification is done here, field by field, and no more: what a
//! field says that is not known here is an error, so that nothing in a manifest goes untested in
//! silence.
//!
//! Reading order: [`manifest`] (what is asked for), [`rootfs`] (what is in the image), `bundle` (what
//! the runtime is told), and [`Pod`], whose containers end with the test.

mod bundle;
pub mod manifest;
pub mod rootfs;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use self::manifest::{ContainerSpec, PodSpec, Volume};
use self::rootfs::Rootfs;
use crate::agent::Agent;
use crate::cluster::Cluster;
use crate::netns::Namespace;

/// Where the kubelet puts what a service account needs.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A container runtime of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// crun, in C.
    Crun,
    /// runc, in Go, which calls more before the program is there.
    Runc,
}

/// A pod on a node: a folder with all that its containers have of the host.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    namespace: String,
    rootfs: Rootfs,
    runtime: Runtime,
    folder: TempDir,
    env: BTreeMap<String, String>,
    /// Whether what the seccomp profile refuses ends the container, so that it cannot pass unnoticed.
    unforgiving: bool,
}

// === impl Runtime ===

impl Runtime {
    /// The program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Crun => "crun",
            Self::Runc => "runc",
        }
    }
}

// === impl Pod ===

impl Pod {
    /// The pod of a DaemonSet on a node, or one that stands by itself, whose service account is the
    /// cluster's: what it is allowed is what stands there.
    pub fn new(
        (objects, kind): (&[serde_json::Value], &str),
        rootfs: Rootfs,
        runtime: Runtime,
        node: &str,
        cluster: &Cluster,
        api: SocketAddr,
    ) -> Result<Self> {
        let (namespace, spec) = manifest::pod(objects, kind)?;
        let folder = tempfile::Builder::new()
            .prefix("detector-pod-")
            .tempdir()
            .context("cannot make a folder")?;
        let env = BTreeMap::from([
            ("KUBERNETES_SERVICE_HOST".to_owned(), api.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), api.port().to_string()),
            ("spec.nodeName".to_owned(), node.to_owned()),
            ("status.hostIP".to_owned(), "127.0.0.1".to_owned()),
        ]);
        let pod = Self { spec, namespace, rootfs, runtime, folder, env, unforgiving: false };
        pod.make_volumes(objects)?;
        pod.identify(cluster)?;
        Ok(pod)
    }

    /// What is asked for. Changes count for containers that are started later.
    pub fn spec(&mut self) -> &mut PodSpec {
        &mut self.spec
    }

    /// From now on, what the seccomp profile refuses ends the container.
    pub fn forgive_nothing(&mut self) {
        self.unforgiving = true;
    }

    /// The folder that a volume is on the host.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.folder.path().join("volumes").join(name)
    }

    /// Puts another configuration in the ConfigMap's place.
    pub fn configure(&self, text: &str) -> Result<()> {
        fs::write(self.volume("config").join("config.yaml"), text).context("the configuration")
    }

    /// Runs the init containers, one after the other, as they are; gives what they printed.
    pub fn initialise(&self, network: &Namespace) -> Result<Vec<Output>> {
        let mut printed = Vec::new();
        for container in &self.spec.init_containers {
            let mut command = self.command(container, &[])?;
            network.hold(&mut command);
            let output = command.output().context("cannot start the container")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}: {}", container.name, said.trim());
            printed.push(output);
        }
        Ok(printed)
    }

    /// Starts the agent in a network namespace that stands for the node's. Its log is JSON, so that it
    /// can be read; else it is as the manifest says.
    pub fn start(&self, network: &Namespace) -> Result<Agent> {
        let [container] = &self.spec.containers[..] else { bail!("one container is known here") };
        let log = [("DETECTOR_LOG_FORMAT".to_owned(), "json".to_owned())];
        Agent::launch(network, self.command(container, &log)?)
    }

    /// Runs the one container until it ends; gives what it printed.
    pub fn run(&self, network: &Namespace) -> Result<Output> {
        let [container] = &self.spec.containers[..] else { bail!("one container is known here") };
        let mut command = self.command(container, &[])?;
        network.hold(&mut command);
        command.output().context("cannot start the container")
    }

    /// The command that runs a container until it ends. All of it ends with whoever started it: the
    /// container is in a process namespace whose first process is killed with its parent.
    fn command(&self, container: &ContainerSpec, more_env: &[(String, String)]) -> Result<Command> {
        let bundle = self.folder.path().join(format!("bundle-{}", container.name));
        fs::create_dir_all(&bundle)?;
        let mounts = self.mounts(container)?;
        let mut env = self.environment(container)?;
        env.extend(more_env.iter().cloned());
        let profile = self.profile(container)?;
        let config = bundle::config(container, &self.rootfs.path(), &env, &mounts, profile)?;
        fs::write(bundle.join("config.json"), config.to_string())?;
        let state = self.folder.path().join("state");
        let run = match self.runtime {
            Runtime::Crun => "crun --root \"$2\" --cgroup-manager=disabled run --bundle \"$1\" pod",
            Runtime::Runc => "runc --root \"$2\" run --no-pivot --bundle \"$1\" pod",
        };
        // Both runtimes refuse the control groups of machines that still have version 1 beside 2.
        let script = format!(
            "umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup && exec {run}"
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"])
            .args(["sh", "-c", &script, "sh"])
            .arg(&bundle)
            .arg(&state)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// What is mounted where, and whether it can be written to.
    fn mounts(&self, container: &ContainerSpec) -> Result<Vec<bundle::Mount>> {
        let mut mounts = Vec::new();
        for mount in &container.volume_mounts {
            ensure!(mount.sub_path.is_none(), "{}: files by subPath never change", mount.name);
            ensure!(
                self.spec.volumes.iter().any(|volume| volume.name == mount.name),
                "there is no volume {}",
                mount.name
            );
            mounts.push(bundle::Mount {
                from: self.volume(&mount.name),
                to: mount.mount_path.clone(),
                writable: !mount.read_only,
            });
        }
        if self.spec.automount_service_account_token {
            mounts.push(bundle::Mount {
                from: self.folder.path().join("account"),
                to: SERVICE_ACCOUNT.to_owned(),
                writable: false,
            });
        }
        Ok(mounts)
    }

    fn environment(&self, container: &ContainerSpec) -> Result<BTreeMap<String, String>> {
        let of_the_server = |name: &&String| name.starts_with("KUBERNETES_");
        let mut env: BTreeMap<String, String> = self
            .env
            .keys()
            .filter(of_the_server)
            .map(|name| (name.clone(), self.env[name].clone()))
            .collect();
        for variable in &container.env {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), None) => expand(value, &env),
                (None, Some(from)) => {
                    let field = &from.field_ref.field_path;
                    self.env.get(field).with_context(|| format!("{field} is not known"))?.clone()
                }
                _ => bail!("{}: either a value or a field", variable.name),
            };
            env.insert(variable.name.clone(), value);
        }
        Ok(env)
    }

    /// The seccomp profile that a container asks for, read where the kubelet would.
    fn profile(&self, container: &ContainerSpec) -> Result<Option<serde_json::Value>> {
        let Some(asked) = &container.security_context.seccomp_profile else { return Ok(None) };
        match (&*asked.kind, &asked.localhost_profile) {
            // What a runtime's default is differs from one to the other.
            ("RuntimeDefault", None) => Ok(None),
            ("Localhost", Some(name)) => {
                let host = self.spec.volumes.iter().find_map(|volume| match volume {
                    Volume { name: volume, host_path: Some(host), .. } => {
                        let below = Path::new("/var/lib/kubelet/seccomp").join(name);
                        let rest = below.strip_prefix(&host.path).ok()?.to_owned();
                        Some(self.volume(volume).join(rest))
                    }
                    _ => None,
                });
                let path = host.with_context(|| format!("nobody puts {name} on the node"))?;
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("{name} is not there when the kubelet looks"))?;
                let mut profile: serde_json::Value = serde_json::from_str(&text)?;
                if self.unforgiving {
                    profile["defaultAction"] = "SCMP_ACT_KILL_PROCESS".into();
                    if let Some(profile) = profile.as_object_mut() {
                        profile.remove("defaultErrnoRet");
                    }
                }
                Ok(Some(profile))
            }
            (kind, _) => bail!("{kind} is no profile that is known here"),
        }
    }

    /// Makes what volumes are on the host.
    fn make_volumes(&self, objects: &[serde_json::Value]) -> Result<()> {
        for volume in &self.spec.volumes {
            let folder = self.volume(&volume.name);
            fs::create_dir_all(&folder)?;
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            match volume {
                Volume { config_map: Some(map), .. } => {
                    for (name, text) in manifest::config_map(objects, &map.name)? {
                        fs::write(folder.join(name), text)?;
                    }
                }
                Volume { host_path: Some(host), .. } => ensure!(
                    host.kind == "DirectoryOrCreate",
                    "{}: only folders that are made are known here",
                    volume.name
                ),
                Volume { empty_dir: Some(_), .. } => {}
                _ => bail!("{}: this kind of volume is not known here", volume.name),
            }
        }
        Ok(())
    }

    /// A token of the pod's service account, as the kubelet asks for it.
    fn identify(&self, cluster: &Cluster) -> Result<()> {
        let folder = self.folder.path().join("account");
        fs::create_dir_all(&folder)?;
        let account = &self.spec.service_account_name;
        let token =
            cluster.kubectl(&["create", "token", account, "--namespace", &self.namespace])?;
        fs::write(folder.join("token"), token.trim())?;
        fs::write(folder.join("namespace"), &self.namespace)?;
        fs::copy(cluster.authority_path(), folder.join("ca.crt"))?;
        Ok(())
    }
}

/// `$(NAME)` in a value, as the kubelet replaces it.
fn expand(value: &str, env: &BTreeMap<String, String>) -> String {
    env.iter()
        .fold(value.to_owned(), |value, (name, known)| value.replace(&format!("$({name})"), known))
}
