//! A selftest by the real program, what it says, and the network namespace of a pod.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use detector_tests::netns::Namespace;
use detector_tests::process::end_with_thread;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

/// How long anything may take that is certain to come.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// The node that a selftest is of, and its address.
pub(crate) const NODE: &str = "node-a";
pub(crate) const ADDRESS: &str = "172.18.0.2";

/// What a host does not offer that lets no functions be traced.
const UNTRACED: [&str; 2] = ["refused-ipv4-routes", "refused-ipv6-routes"];

/// A selftest to be made.
pub(crate) struct Selftest<'a> {
    namespace: Option<&'a Namespace>,
    flags: Vec<String>,
    /// What goes before the program on the command line.
    before: Vec<String>,
    files: Vec<NamedTempFile>,
}

/// What a selftest has said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    /// The report; null where there is none.
    pub(crate) report: Value,
    /// Findings on standard output.
    pub(crate) findings: Vec<Value>,
    pub(crate) err: String,
}

// === impl Selftest ===

impl<'a> Selftest<'a> {
    /// Of a node with this in its configuration file.
    pub(crate) fn new(config: &Value) -> Self {
        let file = file(&config.to_string());
        let flags = ["--node-name", NODE, "--config", path(&file)].map(str::to_owned);
        Self { namespace: None, flags: flags.to_vec(), before: Vec::new(), files: vec![file] }
    }

    /// With an API server.
    pub(crate) fn with(mut self, kubeconfig: &str) -> Self {
        let file = file(kubeconfig);
        self.flags.extend(["--kubeconfig", path(&file)].map(str::to_owned));
        self.files.push(file);
        self
    }

    /// With more on its command line.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Started in a network namespace.
    pub(crate) fn inside(self, namespace: &'a Namespace) -> Self {
        Self { namespace: Some(namespace), ..self }
    }

    /// Started in a network namespace, and made with it.
    pub(crate) fn here(self, namespace: &'a Namespace) -> Self {
        self.inside(namespace).flags(&["--here"])
    }

    /// With these capabilities and no others, as in a container, as setpriv writes them.
    pub(crate) fn capabilities(mut self, names: &[&str]) -> Self {
        let all = names.iter().map(|name| format!(",+{name}"));
        let bounding = format!("--bounding-set=-all{}", all.collect::<String>());
        self.before = ["setpriv", "--no-new-privs", &bounding].map(str::to_owned).to_vec();
        self
    }

    /// Makes it.
    pub(crate) fn run(self) -> Said {
        Said::new(self.flags(&["--output", "json"]).spawn().wait_with_output().unwrap())
    }

    /// Makes it; gives what it writes for people.
    pub(crate) fn text(self) -> String {
        let output = self.flags(&["--output", "text"]).spawn().wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Begins with it. It ends with the test's thread.
    pub(crate) fn spawn(&self) -> Child {
        let program = detector_tests::agent::program().unwrap();
        let mut words = self.before.clone();
        words.push(program.to_str().unwrap().to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("selftest").args(&self.flags);
        command.env_remove("KUBECONFIG").env_remove("NODE_NAME");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match self.namespace {
            Some(namespace) => namespace.hold(&mut command),
            None => end_with_thread(&mut command),
        }
        command.spawn().unwrap()
    }
}

// === impl Said ===

impl Said {
    pub(crate) fn new(output: std::process::Output) -> Self {
        let out = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let schema = include_str!("../../../docs/schema/selftest.v1.json");
        let schema = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
        let is_report = |line: &&Value| line["schema"] == "detector.selftest/v1";
        for report in lines.iter().filter(is_report) {
            let wrong: Vec<String> =
                schema.iter_errors(report).map(|error| error.to_string()).collect();
            assert!(wrong.is_empty(), "{wrong:#?} in {report:#}");
        }
        Self {
            code: output.status.code(),
            report: lines.iter().find(is_report).cloned().unwrap_or_default(),
            findings: lines.iter().filter(|line| !is_report(line)).cloned().collect(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What became of a stage, and what is said of it.
    pub(crate) fn stage(&self, name: &str) -> (&str, &str) {
        let stages = self.report["stages"].as_array().unwrap_or_else(|| panic!("{self:#?}"));
        let stage = stages.iter().find(|stage| stage["stage"] == name);
        let stage = stage.unwrap_or_else(|| panic!("no stage {name}: {self:#?}"));
        (stage["outcome"].as_str().unwrap(), stage["text"].as_str().unwrap())
    }

    /// Stages that became this, but for what the host does not offer.
    pub(crate) fn stages(&self, outcome: &str) -> Vec<&str> {
        let stages = self.report["stages"].as_array().unwrap_or_else(|| panic!("{self:#?}"));
        let such = stages.iter().filter(|stage| stage["outcome"] == outcome);
        let names = such.map(|stage| stage["stage"].as_str().unwrap());
        names.filter(|name| !UNTRACED.contains(name)).collect()
    }

    /// A stage has failed, and says why, in these words among others.
    pub(crate) fn failed(&self, name: &str, why: &str) {
        let (outcome, text) = self.stage(name);
        assert_eq!(outcome, "failed", "{self:#?}");
        assert!(text.contains(why), "{text}");
        assert_eq!((self.code, &self.report["passed"]), (Some(1), &json!(false)), "{self:#?}");
    }

    /// It was refused, in these words among others, and nothing was done.
    pub(crate) fn refused(&self, why: &str) {
        assert_eq!(self.code, Some(2), "{self:#?}");
        assert_eq!(self.err.lines().count(), 1, "{self:#?}");
        assert!(self.err.contains(why), "{}", self.err);
        assert!(self.findings.is_empty() && self.report.is_null(), "{self:#?}");
    }
}

/// A file of the disk: one of this process's could only be read by whoever may look into processes.
fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// The network namespace of a pod, as the CNI plugin makes it.
pub(crate) fn pod() -> Namespace {
    let namespace = Namespace::new().unwrap();
    for arguments in [
        "link add eth0 type veth peer name far",
        // IPv6 would make addresses a while later.
        "link set far addrgenmode none",
        "link set eth0 addrgenmode none",
        "link set far up",
        "link set eth0 up",
        "address add 10.244.9.9/32 dev eth0",
        "route add 169.254.1.1 dev eth0 scope link",
        "route add default via 169.254.1.1 dev eth0",
    ] {
        namespace.ip(arguments).unwrap();
    }
    namespace
}

/// All that a selftest could leave in a network namespace: interfaces, routes, rules, qdiscs.
pub(crate) fn all_there_is(namespace: Option<&Namespace>) -> String {
    let commands = [
        "ip -o link show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip rule show",
        "tc qdisc show",
    ];
    let shown = commands.map(|text| {
        let mut words = text.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        match namespace {
            Some(namespace) => namespace.hold(&mut command),
            None => end_with_thread(&mut command),
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{text}: {output:?}");
        let shown = String::from_utf8(output.stdout).unwrap();
        if !text.contains("link") {
            return shown;
        }
        // Of an interface its number and name: whether it has a carrier is found out a while later.
        let link = |line: &str| line.splitn(3, ':').take(2).collect::<String>() + "\n";
        shown.lines().map(link).collect()
    });
    shown.concat()
}

/// Waits until something is so in what there is.
pub(crate) fn wait_until(namespace: &Namespace, so: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + LONG;
    loop {
        let all = all_there_is(Some(namespace));
        if so(&all) {
            return all;
        }
        assert!(Instant::now() < end, "it never is as it should be: {all}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The node as its kubelet writes it.
pub(crate) fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
        "status": { "addresses": [{ "type": "InternalIP", "address": ADDRESS }] },
    })
}
