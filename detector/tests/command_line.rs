//! What goes wrong before the agent can do its work is said in one line that tells what to do, with
//! an exit code that is not 0. The real program, started as an operator would.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn detector(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_detector"));
    command.args(arguments);
    for variable in ["NODE_NAME", "KUBECONFIG", "DETECTOR_CONFIG", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    alone(&mut command);
    command
}

/// Makes it share nothing with whatever agent runs on this machine.
fn alone(command: &mut Command) {
    for variable in ["DETECTOR_LISTEN", "DETECTOR_SOCKET", "DETECTOR_STATE"] {
        command.env(variable, "none");
    }
}

/// Exactly one line on stderr, nothing on stdout, and this exit code.
fn one_line(output: &Output, code: i32) -> String {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A file with this text that is gone when the test is.
fn file(text: &str) -> (std::fs::File, String) {
    let flags = nix::sys::memfd::MFdFlags::empty();
    let memory = nix::sys::memfd::memfd_create(c"configuration", flags).unwrap();
    let mut memory = std::fs::File::from(memory);
    memory.write_all(text.as_bytes()).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    (memory, path)
}

/// Starts the agent and ends it as Kubernetes would when its log says `word`, or never does; gives
/// what it said. Until then it must go on.
fn run_until(word: &str, command: &mut Command) -> String {
    let mut agent = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    let end = Instant::now() + Duration::from_secs(20);
    let mut stderr = agent.stderr.take().unwrap();
    let mut byte = [0];
    while !said.contains(word) && Instant::now() < end && stderr.read(&mut byte).unwrap() == 1 {
        said.push(char::from(byte[0]));
    }
    assert!(agent.try_wait().unwrap().is_none(), "it goes on: {said}");
    let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(agent.wait().unwrap().success());
    said
}

#[test]
fn a_missing_node_name_says_how_to_give_it() {
    let said = one_line(&detector(&["run"]).output().unwrap(), 2);
    assert!(said.contains("NODE_NAME") && said.contains("--node-name"), "{said}");
}

#[test]
fn a_wrong_kubeconfig_says_which_and_what_to_correct() {
    let run = ["run", "--node-name", "a", "--kubeconfig", "/nonexistent"];
    let said = one_line(&detector(&run).output().unwrap(), 1);
    assert!(said.contains("/nonexistent") && said.contains("--kubeconfig"), "{said}");
    let (_file, path) = file("clusters: 7\n");
    let run = ["run", "--node-name", "a", "--kubeconfig", &path];
    let said = one_line(&detector(&run).output().unwrap(), 1);
    assert!(said.contains(&path), "{said}");
}

#[test]
fn outside_of_a_pod_and_without_a_kubeconfig_it_says_what_would_do() {
    let said = one_line(&detector(&["run", "--node-name", "a"]).output().unwrap(), 1);
    assert!(said.contains("--kubeconfig") && said.contains("--no-api"), "{said}");
}

#[test]
fn an_unknown_key_and_a_bad_cidr_are_told_with_their_place() {
    for (text, wanted) in [
        ("nodeNam: a\n", "did you mean nodeName?"),
        (
            "floatingIPs:\n  allow:\n  - {cidr: 10.0.0.1/24, namespace: a, serviceAccount: b}\n",
            "did you mean 10.0.0.0/24?",
        ),
        (
            "floatingIPs:\n  allow:\n  - {cidr: 10.0.0.0/33, namespace: a, serviceAccount: b}\n",
            "10.0.0.0/33",
        ),
    ] {
        let (_file, path) = file(text);
        for command in [
            vec!["config", "check", &path],
            vec!["run", "--node-name", "a", "--no-api", "--config", &path],
        ] {
            let said = one_line(&detector(&command).output().unwrap(), 2);
            assert!(said.contains(wanted) && said.contains(&path), "{said}");
        }
    }
}

#[test]
fn the_example_configuration_is_right() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config.example.yaml");
    let output = detector(&["config", "check", example.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("ok, 1 allow-list entry\n"));
}

#[test]
fn without_rights_it_falls_back_visibly_or_says_what_it_needs() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can show what it is like not to be root");
        return;
    }
    // Others may not read the folder that cargo builds in.
    let folder = std::env::temp_dir().join(format!("detector-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let program = folder.join("detector");
    std::fs::copy(env!("CARGO_BIN_EXE_detector"), &program).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let result = std::panic::catch_unwind(|| {
        let start = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.args(arguments).uid(65_534).gid(65_534).stdin(Stdio::null());
            alone(&mut command);
            command
        };
        let wanted = ["run", "--node-name", "a", "--no-api", "--route-source", "ebpf"];
        let said = one_line(&start(&wanted).output().unwrap(), 1);
        assert!(said.contains("BPF") && said.contains("--route-source netlink"), "{said}");

        let said = run_until("ready", &mut start(&["run", "--node-name", "a", "--no-api"]));
        assert!(said.contains("degraded") && said.contains("plain netlink"), "{said}");
    });
    std::fs::remove_dir_all(&folder).unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn an_api_server_that_is_down_is_a_degraded_state_and_no_end() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: the agent reads routes, which needs root here");
        return;
    }
    // A port that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_file, path) = file(&format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         clusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:{port}'}}}}]\n\
         users: [{{name: a, user: {{}}}}]\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
    ));
    let run = ["run", "--node-name", "a", "--kubeconfig", &path];
    let said = run_until("sense=\"pods\"", &mut detector(&run));
    assert!(said.contains("degraded: blind in this sense"), "{said}");
}
