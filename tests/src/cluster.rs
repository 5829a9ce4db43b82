//! A real API server for tests: kube-apiserver and etcd on loopback, and kubectl to drive them.
//!
//! Nothing but the API runs: no controller, no scheduler, no kubelet. Pods stay as a test writes
//! them, and a namespace that is deleted never goes. Calico's kinds are there, from `tests/crds`,
//! and the agent's rights, from `deploy/base/rbac.yaml`: an agent that uses [`User::Agent`] has those
//! and no others. The same goes for [`User::Auditor`] and `deploy/audit-rbac.yaml`.
//!
//! To be reached from another network namespace, put a [`Relay`](crate::relay::Relay) between.
//!
//! Reading order: [`programs`] (where the binaries come from), `identity` (certificates, tokens,
//! kubeconfigs), `etcd`, [`objects`] (the quick way to write), and [`crowd`] (the way to write many).

pub mod crowd;
mod etcd;
mod identity;
pub mod objects;
pub mod programs;

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};
use tempfile::TempDir;

use self::etcd::Etcd;
use self::identity::Identity;
pub use self::identity::User;
use self::objects::Objects;
use self::programs::Programs;
use crate::process::{Keeper, Process};

/// How long the server may take to be ready, on a machine that is busy with other tests.
const READY: Duration = Duration::from_mins(2);

/// How often it is asked whether it is.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The lines of a log that an error shows.
const LAST_LINES: usize = 15;

/// A running API server. It ends, and its folder vanishes, when it is dropped.
pub struct Cluster {
    // Dropped in this order: the server before its store, the folder last.
    apiserver: Mutex<Option<Process>>,
    objects: Objects,
    etcd: Etcd,
    keeper: Keeper,
    programs: Programs,
    identity: Identity,
    port: Port,
    /// Whether the server writes down who asks what.
    audited: bool,
    folder: TempDir,
}

/// What the server writes down where it is audited: who asks what, each once it is answered.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules: [{level: Metadata}]
";

/// A port of loopback that nobody else gets as long as this lives, while our own server may listen
/// on it: it is bound and does not listen.
#[derive(Debug)]
struct Port {
    addr: SocketAddr,
    _socket: OwnedFd,
}

// === impl Cluster ===

impl Cluster {
    /// Starts etcd and kube-apiserver on 127.0.0.1, and waits until they serve Calico's kinds.
    pub fn start(programs: Programs) -> Result<Self> {
        Self::start_with(programs, false)
    }

    /// The same with a server that writes down who asks what.
    pub fn start_audited(programs: Programs) -> Result<Self> {
        Self::start_with(programs, true)
    }

    fn start_with(programs: Programs, audited: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("detector-cluster-")
            .tempdir()
            .context("cannot make a folder")?;
        let port = Port::reserve()?;
        let identity = Identity::new(folder.path())?;
        fs::write(folder.path().join("kubeconfig"), identity.kubeconfig(User::Admin, port.addr))?;
        let keeper = Keeper::new()?;
        let etcd = Etcd::start(&keeper, &programs, folder.path())?;
        let objects = Objects::connect(&identity.kubeconfig(User::Admin, port.addr))?;
        let apiserver = Mutex::new(None);
        let cluster =
            Self { apiserver, objects, etcd, keeper, programs, identity, port, audited, folder };
        fs::write(cluster.audit_file("policy"), AUDIT_POLICY)?;
        cluster.restart()?;
        cluster.define(&[&project("tests/crds"), &project("deploy/base/crd.yaml")])?;
        for roles in ["deploy/base/rbac.yaml", "deploy/audit-rbac.yaml"] {
            cluster.kubectl(&["apply", "--filename", &project(roles).to_string_lossy()])?;
        }
        cluster.kubectl_fed(&["apply", "--filename=-"], identity::BINDINGS)?;
        cluster.objects.remember()?;
        Ok(cluster)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.port.addr
    }

    /// A kubeconfig for a user who reaches the server at this address: its own, or a relay's.
    pub fn kubeconfig(&self, user: User, addr: SocketAddr) -> String {
        self.identity.kubeconfig(user, addr)
    }

    /// The path of the certificate by which the server is known.
    pub fn authority_path(&self) -> &Path {
        self.identity.authority()
    }

    /// Where the programs are.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The path of the administrator's kubeconfig.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// What a server that is audited has written down: of each request of a user the verb, and what it
    /// was about.
    pub fn audit_log(&self, user: &str) -> Result<Vec<(String, String)>> {
        let text =
            fs::read_to_string(self.audit_file("log")).context("the server is not audited")?;
        let mut requests = Vec::new();
        for line in text.lines() {
            let event: serde_json::Value = serde_json::from_str(line)?;
            if event["user"]["username"] == user {
                let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
                requests.push((text("verb"), text("requestURI")));
            }
        }
        Ok(requests)
    }

    fn audit_file(&self, what: &str) -> PathBuf {
        self.folder.path().join(format!("audit.{what}"))
    }

    /// The quick way to read and write objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The process id of the kube-apiserver, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.apiserver().as_ref().map(Process::id)
    }

    /// Runs kubectl as the administrator; gives what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_fed(arguments, "")
    }

    /// Runs kubectl as the administrator with this on its standard input.
    pub fn kubectl_fed(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(&self.programs.kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig_path())
            .env("KUBECACHEDIR", self.folder.path().join("cache"))
            .env("HOME", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        crate::process::end_with_thread(&mut command);
        let mut child = command.spawn().context("cannot start kubectl")?;
        let mut stdin = child.stdin.take().context("its input is piped")?;
        // It may have refused its arguments and ended without reading; its exit code tells.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().context("cannot hear kubectl out")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("kubectl {}: {}", arguments.join(" "), said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Adds the kinds that files, or folders of files, define, and waits until they are served.
    pub fn define(&self, paths: &[&Path]) -> Result<()> {
        for path in paths {
            let path = path.to_string_lossy();
            self.define_one(&path).with_context(|| format!("cannot define the kinds of {path}"))?;
        }
        Ok(())
    }

    fn define_one(&self, path: &str) -> Result<()> {
        let file = format!("--filename={path}");
        // What kubectl's own apply notes of an object has no room for the longest definitions.
        self.kubectl(&["apply", "--server-side", &file])?;
        let path = "--output=jsonpath={.metadata.name},{range .items[*]}{.metadata.name},{end}";
        let kinds = self.kubectl(&["get", &file, path])?;
        // Not by `kubectl wait`, which gives up on definitions that have no conditions at all yet,
        // as they are when they are new. A kind that can be asked for is established and served.
        let end = Instant::now() + READY;
        while let Err(why) = self.kubectl(&["get", kinds.trim_matches(',')]) {
            ensure!(Instant::now() < end, "they are not served after {READY:?}: {why:#}");
            std::thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    /// Kills the kube-apiserver: connections break off, and nothing listens any more.
    pub fn stop(&self) {
        drop(self.apiserver().take());
    }

    /// Starts the kube-apiserver, killing the one that runs, and waits until it is ready. All
    /// objects are as they were; what the old one had in its caches, it no longer has.
    pub fn restart(&self) -> Result<()> {
        self.stop();
        let log = self.folder.path().join("kube-apiserver.log");
        let mut process = self.keeper.start(self.command(&log)?)?;
        let end = Instant::now() + READY;
        loop {
            let Err(unready) = self.objects.ready() else { break };
            if let Some(status) = process.ended()? {
                bail!("kube-apiserver ended with {status}; it said last:\n{}", last_lines(&log));
            }
            ensure!(
                Instant::now() < end,
                "kube-apiserver is not ready after {READY:?} ({unready:#}); it said last:\n{}",
                last_lines(&log)
            );
            std::thread::sleep(ASK_EVERY);
        }
        *self.apiserver() = Some(process);
        Ok(())
    }

    /// Forgets all history: every version that was handed out so far is too old to watch or to
    /// continue from. Connections break off, since the server is started anew: its cache would
    /// still know what its store does not.
    pub fn compact(&self) -> Result<()> {
        self.stop();
        self.etcd.compact()?;
        self.restart()
    }

    fn apiserver(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, log: &Path) -> Result<Command> {
        let log = File::create(log).context("cannot make a log file")?;
        let mut command = Command::new(&self.programs.apiserver);
        command
            .arg(format!("--etcd-servers={}", self.etcd.url()))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.port.addr.port()))
            // The port is reserved by a socket of ours.
            .arg("--permit-port-sharing")
            .arg("--advertise-address=127.0.0.1")
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112")
            .arg("--authorization-mode=RBAC")
            .arg("--allow-privileged")
            // Without a controller manager nobody makes service accounts, or nodes ready.
            .arg("--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
            .args(self.identity.arguments())
            .args(
                self.audited.then(|| {
                    format!("--audit-policy-file={}", self.audit_file("policy").display())
                }),
            )
            .args(
                self.audited
                    .then(|| format!("--audit-log-path={}", self.audit_file("log").display())),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Port ===

impl Port {
    fn reserve() -> Result<Self> {
        let reserve = || -> nix::Result<(OwnedFd, SockaddrIn)> {
            let kind = (AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC);
            let socket = socket(kind.0, kind.1, kind.2, None)?;
            setsockopt(&socket, sockopt::ReusePort, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
            let addr = getsockname(socket.as_raw_fd())?;
            Ok((socket, addr))
        };
        let (socket, addr) = reserve().context("cannot reserve a port of loopback")?;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port()));
        Ok(Self { addr, _socket: socket })
    }
}

/// A path of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The end of a log, where there is one.
fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}
