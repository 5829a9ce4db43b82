//! The package and its unit in a real Debian, whose first process is systemd: run by `cargo xtask vm --test
//! systemd`, in the order in which an administrator meets them.
//!
//! Each check begins where the one before it has left the machine, so nothing is checked after the first
//! that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use detector_tests::apiserver::ApiServer;
use detector_tests::machine::{LINE, end};
use detector_tests::scenario::words::interface;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How long anything may take that is certain to come, by emulation.
const LONG: Duration = Duration::from_secs(30);

const PACKAGE: &str = "/programs/detector.deb";
const UNIT: &str = "detector.service";

/// The pod that attacks, and whose address it takes: a node's.
const EVIL: &str = "default/evil";
const VICTIM: &str = "10.99.0.1";

/// What an administrator can add to the unit.
const DROP_INS: &str = "/etc/systemd/system/detector.service.d";

/// The three capabilities, as numbers of bits: NET_ADMIN, PERFMON, BPF.
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// What is missing of what a cluster tells, where none is asked; nothing else may be.
const UNASKED: [&str; 6] = ["allowances", "feature", "nodes", "pods", "pools", "services"];

type Check = fn(&mut Machine) -> Result<()>;

const CHECKS: [(&str, Check); 9] = [
    ("the_package_installs_and_the_unit_is_active", installs),
    ("it_has_three_capabilities_and_a_user_of_its_own", has_little),
    ("the_sandbox_takes_nothing_from_it_and_root_can_ask", sees_all),
    ("a_wrong_configuration_is_one_line_and_no_loop_of_restarts", refuses),
    ("a_hijack_is_in_the_journal_with_its_writer", finds),
    ("a_restart_keeps_what_stands", keeps),
    ("a_hung_agent_is_started_again", restarts),
    ("a_stop_leaves_no_programs", stops),
    ("the_package_goes_without_a_trace", goes),
];

/// What the checks hand on.
struct Machine {
    /// What there was before.
    files: BTreeSet<PathBuf>,
    programs: BTreeSet<(u32, String)>,
    server: ApiServer,
    key: String,
}

fn main() -> Result<()> {
    ensure!(Path::new(PACKAGE).is_file(), "this is run in a virtual machine, and nowhere else");
    let mut line = File::options().write(true).open(LINE).context("no second serial line")?;
    let begun = Instant::now();
    let mut failed = false;
    let mut machine = Machine {
        files: files()?,
        programs: programs()?,
        server: ApiServer::on_loopback()?,
        key: format!("{VICTIM}/32 dev {}", interface(EVIL)?),
    };
    for (name, check) in CHECKS {
        if failed {
            writeln!(line, "test {name} ... ignored")?;
            continue;
        }
        match check(&mut machine) {
            Ok(()) => writeln!(line, "test {name} ... ok")?,
            Err(error) => {
                failed = true;
                writeln!(line, "test {name} ... FAILED")?;
                let journal = output("journalctl", &["--no-pager", "-n", "60"]).unwrap_or_default();
                for said in format!("{error:?}\n{journal}").lines() {
                    writeln!(line, "  {said}")?;
                }
            }
        }
    }
    writeln!(line, "guest: systemd: {} s", begun.elapsed().as_secs())?;
    end(!failed);
    bail!("the machine does not end")
}

/// As `apt` would do it: unpacked, enabled and started. Nothing is added to the unit but that a refused
/// system call kills: what fails in silence would not be seen here.
fn installs(_: &mut Machine) -> Result<()> {
    add("strict", "[Service]\nSystemCallErrorNumber=kill\n")?;
    output("dpkg", &["-i", PACKAGE])?;
    let active = show("ActiveState,SubState,Type,NRestarts,StatusText,UnitFileState")?;
    let is = |name: &str, value: &str| active[name] == value;
    ensure!(is("ActiveState", "active") && is("SubState", "running"), "{active:?}");
    ensure!(is("Type", "notify") && is("UnitFileState", "enabled"), "{active:?}");
    ensure!(is("NRestarts", "0"), "{active:?}");
    ensure!(active["StatusText"].starts_with("watching routes by ebpf, 0 findings"), "{active:?}");
    ensure!(active["StatusText"].contains("degraded: "), "no API server is asked: {active:?}");
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no", UNIT]).output()?;
    let said = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && said.is_empty(), "{said}");
    for page in ["detector.1.gz", "detector-run.1.gz"] {
        ensure!(Path::new("/usr/share/man/man1").join(page).is_file(), "no {page}");
    }
    Ok(())
}

fn has_little(_: &mut Machine) -> Result<()> {
    let pid = main_pid()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| format!("no {name}"))
    };
    let uid: u32 = value("Uid:")?.split_whitespace().next().context("no user")?.parse()?;
    ensure!((61_184..=65_519).contains(&uid), "it is {uid}, no user of the moment");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let has = u64::from_str_radix(value(set)?, 16)?;
        ensure!(has == CAPABILITIES, "{set} {has:x}");
    }
    ensure!(value("NoNewPrivs:")? == "1" && value("Seccomp:")? == "2", "{status}");
    Ok(())
}

fn sees_all(_: &mut Machine) -> Result<()> {
    // What the kernel gives in its own time, such as tracing.
    let status = wait("all that needs no cluster is seen", || {
        let status = ask("status")?;
        let degraded = degraded(&status);
        let done = degraded.iter().all(|name| UNASKED.contains(&name.as_str()));
        if done && status["ready"] == true { Ok(status) } else { bail!("{status}") }
    })?;
    ensure!(status["routesSeenBy"] == "ebpf" && status["packetsSeenBy"].is_string(), "{status}");
    ensure!(status["node"] == "guarded", "the unit names the host: {status}");
    let mut nobody = Command::new("detector");
    let nobody = nobody.arg("status").uid(65_534).gid(65_534).output()?;
    ensure!(nobody.status.code() == Some(2), "somebody else may ask: {nobody:?}");
    Ok(())
}

/// With an API server that is enabled and not known, and with a key that is none.
fn refuses(_: &mut Machine) -> Result<()> {
    let path = Path::new("/etc/detector/config.yaml");
    let good = fs::read_to_string(path)?;
    fs::write(path, "ruoteSource: auto\n")?;
    let restarted = output("systemctl", &["restart", UNIT]);
    ensure!(restarted.is_err(), "it starts with a key that is none");
    let failed = show("ActiveState,NRestarts,ExecMainStatus,Result")?;
    ensure!(failed["ActiveState"] == "failed" && failed["ExecMainStatus"] == "2", "{failed:?}");
    let said = journal(&[
        "_TRANSPORT=stdout",
        "SYSLOG_IDENTIFIER=detector",
        "_SYSTEMD_UNIT=detector.service",
    ])?;
    let last = said.last().context("the journal has nothing of it")?;
    let message = last["MESSAGE"].as_str().unwrap_or_default();
    ensure!(message.contains("ruoteSource"), "{last}");
    fs::write(path, good.replace("enabled: false", "enabled: true"))?;
    output("systemctl", &["start", "--no-block", UNIT])?;
    wait("the unit says what it lacks", || {
        let said = journal(&["_SYSTEMD_UNIT=detector.service"])?;
        let names = |entry: &Value| {
            let message = entry["MESSAGE"].as_str().unwrap_or_default();
            message.contains("kubeconfig") && message.contains("is of no use")
        };
        ensure!(said.iter().any(names), "{:?}", said.last());
        Ok(())
    })
}

/// With a kubeconfig that only root may read.
fn finds(machine: &mut Machine) -> Result<()> {
    let dev = interface(EVIL)?;
    ip(&format!("link add {dev} type veth peer name pod0"))?;
    ip(&format!("link set {dev} up"))?;
    ip("link set pod0 up")?;
    ip(&format!("route add 10.244.1.66/32 dev {dev} scope link proto 3"))?;
    machine.server.apply(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-b"},
        "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": VICTIM}]},
    }))?;
    machine.server.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": "evil"},
        "spec": {"nodeName": "guarded", "serviceAccountName": "default",
                 "containers": [{"name": "main", "image": "example"}]},
        "status": {"phase": "Running", "podIP": "10.244.1.66", "podIPs": [{"ip": "10.244.1.66"}]},
    }))?;
    let kubeconfig = Path::new("/etc/detector/kubeconfig");
    fs::write(kubeconfig, machine.server.kubeconfig())?;
    fs::set_permissions(kubeconfig, fs::Permissions::from_mode(0o600))?;
    output("systemctl", &["restart", UNIT])?;
    wait("the cluster is seen", || {
        let status = ask("status")?;
        let all = status["ready"] == true && degraded(&status).is_empty();
        if all { Ok(()) } else { bail!("{status}") }
    })?;
    ip(&format!("route add {VICTIM}/32 dev {dev}"))?;
    let entry = wait("the finding is in the journal", || {
        let entries = opened()?;
        entries.into_iter().next().context("the journal has no finding")
    })?;
    let field = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    ensure!(field("DETECTOR_KEY") == machine.key, "{entry}");
    ensure!(field("DETECTOR_ATTACKER_POD") == "evil" && field("PRIORITY") == "2", "{entry}");
    ensure!(field("_SYSTEMD_UNIT") == UNIT && field("_UID") != "0", "{entry}");
    ensure!(field("DETECTOR_WRITER").contains("ip"), "who wrote it is not known: {entry}");
    let findings = ask("findings")?;
    let writer = &findings[0]["writer"];
    ensure!(writer["by"] == "record" && writer["command"] == "ip", "{findings}");
    wait("the manager is told", || {
        let told = show("StatusText")?;
        ensure!(told["StatusText"] == "watching routes by ebpf, 1 finding stands", "{told:?}");
        Ok(())
    })
}

fn keeps(machine: &mut Machine) -> Result<()> {
    let before = main_pid()?;
    output("systemctl", &["restart", UNIT])?;
    ensure!(main_pid()? != before, "it has not been restarted");
    stands(machine)
}

/// Stopped as a process, so that no thread of it can speak; it is given four seconds.
fn restarts(machine: &mut Machine) -> Result<()> {
    add("watchdog", "[Service]\nWatchdogSec=4s\n")?;
    output("systemctl", &["daemon-reload"])?;
    output("systemctl", &["restart", UNIT])?;
    // Alive for longer than it may be silent.
    std::thread::sleep(Duration::from_secs(9));
    let pid = main_pid()?;
    ensure!(show("NRestarts")?["NRestarts"] == "0", "it is ended although it lives");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP)?;
    wait("the watchdog starts it again", || {
        let again = show("NRestarts,ActiveState,MainPID")?;
        let up = again["ActiveState"] == "active" && again["NRestarts"] == "1";
        ensure!(up && again["MainPID"] != pid.to_string(), "{again:?}");
        Ok(())
    })?;
    let said = output("journalctl", &["--no-pager", "-u", UNIT, "-o", "cat"])?;
    ensure!(said.contains("Watchdog timeout"), "{said}");
    fs::remove_file(Path::new(DROP_INS).join("watchdog.conf"))?;
    output("systemctl", &["daemon-reload"])?;
    stands(machine)
}

fn stops(machine: &mut Machine) -> Result<()> {
    let during = programs()?;
    ensure!(during.len() > machine.programs.len(), "it has no programs: {during:?}");
    output("systemctl", &["stop", UNIT])?;
    let stopped = show("ActiveState,Result,ExecMainStatus")?;
    ensure!(stopped["ActiveState"] == "inactive" && stopped["Result"] == "success", "{stopped:?}");
    // The kernel frees them in its own time.
    wait("no program is left", || {
        let left: Vec<_> = programs()?.difference(&machine.programs).cloned().collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    for side in ["ingress", "egress"] {
        let filters = output("tc", &["filter", "show", "dev", &interface(EVIL)?, side])?;
        ensure!(filters.trim().is_empty(), "{filters}");
    }
    ensure!(!Path::new("/run/detector").exists(), "/run/detector is left");
    Ok(())
}

fn goes(machine: &mut Machine) -> Result<()> {
    output("systemctl", &["start", UNIT])?;
    // What the administrator has put there is his.
    fs::remove_file("/etc/detector/kubeconfig")?;
    fs::remove_dir_all(DROP_INS)?;
    output("dpkg", &["-r", "detector"])?;
    let removed = show("ActiveState")?;
    ensure!(removed["ActiveState"] == "inactive", "it runs without its package: {removed:?}");
    ensure!(Path::new("/etc/detector/config.yaml").is_file(), "its configuration is gone");
    ensure!(Path::new("/var/lib/private/detector/state").is_file(), "what stands is forgotten");
    output("dpkg", &["-P", "detector"])?;
    let known = show("LoadState")?;
    ensure!(known["LoadState"] == "not-found", "{known:?}");
    let left: Vec<PathBuf> = files()?.difference(&machine.files).cloned().collect();
    ensure!(left.is_empty(), "left: {left:?}");
    Ok(())
}

// What the checks are made of.

/// The finding stands, and was told once.
fn stands(machine: &Machine) -> Result<()> {
    wait("the finding stands", || {
        let findings = ask("findings")?;
        ensure!(findings[0]["key"] == machine.key, "{findings}");
        let status = ask("status")?;
        ensure!(status["ready"] == true, "{status}");
        Ok(())
    })?;
    let told = opened()?.len();
    ensure!(told == 1, "it was opened {told} times");
    Ok(())
}

/// Findings that the journal has as opened.
fn opened() -> Result<Vec<Value>> {
    journal(&["MESSAGE_ID=df38e1c21bcb4843a92bf867dc6044f7", "DETECTOR_STATE=opened"])
}

fn journal(matches: &[&str]) -> Result<Vec<Value>> {
    let said = output("journalctl", &[&["--no-pager", "-o", "json"], matches].concat())?;
    said.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Adds a file to the unit.
fn add(name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(DROP_INS)?;
    Ok(fs::write(Path::new(DROP_INS).join(format!("{name}.conf")), text)?)
}

fn ask(what: &str) -> Result<Value> {
    Ok(serde_json::from_str(&output("detector", &[what, "-o", "json"])?)?)
}

fn degraded(status: &Value) -> Vec<String> {
    let all = status["degraded"].as_array().into_iter().flatten();
    all.filter_map(|one| one["capability"].as_str().map(str::to_owned)).collect()
}

fn main_pid() -> Result<u32> {
    show("MainPID")?["MainPID"].parse().context("the unit has no process")
}

/// Properties of the unit.
fn show(names: &str) -> Result<BTreeMap<String, String>> {
    let shown = output("systemctl", &["show", UNIT, "--property", names])?;
    let pairs = shown.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn ip(arguments: &str) -> Result<()> {
    output("ip", &arguments.split_whitespace().collect::<Vec<_>>()).map(drop)
}

/// The eBPF programs that the kernel has, by their numbers and names, but those of systemd, which come and
/// go with every unit.
fn programs() -> Result<BTreeSet<(u32, String)>> {
    let mut all = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        let program = program?;
        let name = String::from_utf8_lossy(program.name()).into_owned();
        if !name.starts_with("sd_") {
            all.insert((program.id(), name));
        }
    }
    Ok(all)
}

/// The files of the system, but those of the kernel, of logs, and what dpkg keeps for itself.
fn files() -> Result<BTreeSet<PathBuf>> {
    const NOT: [&str; 8] =
        ["/proc", "/sys", "/dev", "/tmp", "/var/tmp", "/run", "/var/log", "/var/lib/dpkg"];
    let mut all = BTreeSet::new();
    let mut folders = vec![PathBuf::from("/")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let path = entry.path();
            if NOT.iter().any(|not| Path::new(not) == path) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
            }
            all.insert(path);
        }
    }
    Ok(all)
}

/// Runs a program to its good end; gives what it wrote.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.env("NO_COLOR", "1").env("DEBIAN_FRONTEND", "noninteractive");
    let ended = command.output().with_context(|| format!("cannot start {program}"))?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    if !ended.status.success() {
        let complained = String::from_utf8_lossy(&ended.stderr);
        bail!("{program} {} ended with {}: {said}{complained}", arguments.join(" "), ended.status);
    }
    Ok(said)
}

/// Tries again until it is so; where it never is, the last try says why.
fn wait<T>(what: &str, mut tried: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + LONG;
    loop {
        match tried() {
            Ok(is) => return Ok(is),
            Err(why) if Instant::now() >= until => {
                return Err(why.context(format!("never: {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}
