//! The service manager that starts the agent: played here, on the socket by which systemd is told.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use detector_tests::netns::Namespace;
use detector_tests::real::found_or_skip;
use detector_tests::real::http::{Request, over_tcp, over_unix};
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::stage::{LONG, text};

/// So many routes that it takes a while to read them.
const ROUTES: u64 = 20_000;

/// Between two signs of life the manager allows so much.
const ALLOWED: Duration = Duration::from_secs(1);

/// Where probes are, within the namespace.
const LISTEN: &str = "127.0.0.1:9465";

/// A manager with one unit, the agent.
struct Manager {
    socket: UnixDatagram,
    agent: Child,
    namespace: Namespace,
    folder: TempDir,
}

impl Manager {
    /// Starts the agent in a namespace with many routes, with these arguments.
    fn start(namespace: Namespace, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = Command::new(detector_tests::agent::program().unwrap());
        command.args(["run", "--node-name", "node-a", "--state", "none", "--listen", LISTEN]);
        command.arg("--socket").arg(folder.path().join("socket")).args(arguments);
        command.env("NOTIFY_SOCKET", &path).env_remove("KUBECONFIG");
        command.env("WATCHDOG_USEC", ALLOWED.as_micros().to_string()).env_remove("WATCHDOG_PID");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        namespace.hold(&mut command);
        Self { socket, agent: command.spawn().unwrap(), namespace, folder }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.agent.id().cast_signed())
    }

    /// What it is told next; nothing where nothing comes in time.
    fn told(&self, patience: Duration) -> Option<String> {
        let mut buffer = [0; 4_096];
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// Waits for such words; gives them, and those that came before.
    fn told_until(&self, good: impl Fn(&str) -> bool) -> (String, Vec<String>) {
        let mut before = Vec::new();
        let end = Instant::now() + LONG;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.told(left.max(Duration::from_millis(1))) {
                Some(words) if good(&words) => return (words, before),
                Some(words) => before.push(words),
                None => panic!("it is never told; it was told {before:#?}"),
            }
        }
    }

    /// The agent's status, by its socket, which it makes about then.
    fn status(&self) -> Value {
        let socket = self.folder.path().join("socket");
        let end = Instant::now() + LONG;
        loop {
            match over_unix(&socket, &Request::get("/v1/status")) {
                Ok(answer) => return answer.json().unwrap(),
                Err(error) => assert!(Instant::now() < end, "{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // It has ended already where it was stopped.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// A namespace with many routes.
fn busy_node() -> Namespace {
    let namespace = Namespace::new().unwrap();
    for command in ["add cali0 type veth peer name pod0", "set cali0 up", "set pod0 up"] {
        namespace.ip(&format!("link {command}")).unwrap();
    }
    let routes =
        (0..ROUTES).map(|n| format!("route add 10.{}.{}.0/24 dev cali0", n / 200, n % 200));
    namespace.ip_batch(false, &routes.collect::<Vec<_>>()).unwrap();
    namespace
}

#[test]
fn the_unit_is_active_when_routes_are_watched_whatever_the_api_server_does() {
    if !found_or_skip("the agent under a service manager", &["ip"]) {
        return;
    }
    let namespace = busy_node();
    // An API server that takes connections and never says a word.
    let server = namespace.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("http://{}", server.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let settings = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: \
         c, user: u}}}}], clusters: [{{name: c, cluster: {{server: '{url}'}}}}], users: [{{name: u, \
         user: {{}}}}]}}"
    );
    std::fs::write(&kubeconfig, settings).unwrap();
    let manager = Manager::start(namespace, &["--kubeconfig", text(&kubeconfig)]);

    let (ready, before) = manager.told_until(|words| words.contains("READY=1"));
    let status = manager.status();
    let known = |name: &str| {
        let known = status["known"].as_array().unwrap().iter();
        known.clone().find(|pair| pair[0] == name).and_then(|pair| pair[1].as_u64()).unwrap()
    };
    assert!(known("dumps") >= 1 && known("routes") >= ROUTES, "{status:#}");
    assert!(ready.starts_with("READY=1\nSTATUS=watching routes by "), "{ready}");
    assert!(ready.contains("; not yet told of ") && ready.contains("pods"), "{ready}");
    assert!(before.iter().all(|words| !words.contains("watching")), "{before:#?}");
    // The pod of a DaemonSet would not be ready yet.
    assert_eq!(status["ready"], false, "{status:#}");
    // What is missing is said once it is declared, and nobody is told again that it is ready.
    let (degraded, between) = manager.told_until(|words| words.contains("degraded: "));
    assert!(degraded.contains("pods") && degraded.contains("nodes"), "{degraded}");
    assert!(between.iter().all(|words| !words.contains("READY")), "{between:#?}");
}

/// Holds a thread that is traced, as soon as it waits: amid something else it might have a lock of the
/// allocator, and with it all others.
fn hold_while_it_waits(thread: Pid) {
    let end = Instant::now() + Duration::from_secs(20);
    let waits = [libc::SYS_futex, libc::SYS_epoll_wait].map(|number| format!("{number} "));
    loop {
        let call = std::fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap();
        if waits.iter().any(|wait| call.starts_with(wait)) {
            break;
        }
        assert!(Instant::now() < end, "it never waits: {call}");
    }
    ptrace::interrupt(thread).unwrap();
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
}

#[test]
fn only_the_loop_gives_signs_of_life() {
    if !found_or_skip("a watchdog for the agent's loop", &["ip"]) {
        return;
    }
    let mut manager = Manager::start(busy_node(), &["--no-api"]);
    let alive = |words: &str| words == "WATCHDOG=1";
    manager.told_until(|words| words.contains("READY=1"));
    for _ in 0..5 {
        manager.told_until(alive);
    }

    // The loop's thread is held, and no other: the process is not stopped.
    ptrace::seize(manager.pid(), ptrace::Options::empty()).unwrap();
    hold_while_it_waits(manager.pid());
    let pending = std::iter::from_fn(|| manager.told(Duration::from_millis(1))).count();
    assert!(pending <= 2, "{pending} words were on their way");
    assert_eq!(manager.told(4 * ALLOWED), None, "somebody else speaks for the loop");
    let namespace = Some(&manager.namespace);
    let alone = over_tcp(namespace, LISTEN.parse::<SocketAddr>().unwrap(), &Request::get("/livez"));
    assert_eq!(alone.unwrap().text(), "ok\n", "the other threads go on");
    ptrace::detach(manager.pid(), None).unwrap();
    manager.told_until(alive);

    kill(manager.pid(), Signal::SIGTERM).unwrap();
    let (last, _) = manager.told_until(|words| words.contains("STOPPING=1"));
    assert_eq!(last, "STOPPING=1\nSTATUS=stopping");
    assert!(manager.agent.wait().unwrap().success());
    assert_eq!(manager.told(Duration::from_millis(1)), None, "that was the last word");
}
