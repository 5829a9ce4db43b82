//! What an audit of a large cluster costs: time, memory, and requests to the API server.
//!
//! A real kube-apiserver has as many pods, roles and bindings as it is told; the audit runs with the
//! role that the docs give. A few pods claim what is others', and must be found among all.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::agent::{MemoryFile, program};
use crate::cluster::crowd::{Crowd, Write};
use crate::cluster::programs::Programs;
use crate::cluster::{Cluster, User};
use crate::pretend::{self, BLOCK, Block};
use crate::process::{cpu, memory};

/// Pods of a node, in two blocks of addresses.
const OF_NODE: u32 = 100;
/// Pods of a namespace.
const OF_NAMESPACE: u32 = 1_000;
/// Pods that claim others' addresses.
const CLAIMS: u32 = 20;
/// How long the audit may take, and what it may hold.
const LONGEST: Duration = Duration::from_mins(1);
const RESIDENT: u64 = 200 << 10;
const RBAC: &str = "rbac.authorization.k8s.io";

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Pods.
    pub pods: u32,
    /// Roles, and as many bindings.
    pub roles: u32,
}

/// Measures, and prints what it measures; an error where a bound is broken or a claim is not found.
pub fn run(plan: Plan) -> Result<()> {
    let cluster = Cluster::start_audited(Programs::find()?)?;
    let started = Instant::now();
    found(&cluster, plan)?;
    println!(
        "{} pods, {} roles and {} bindings stand after {:.1?}",
        plan.pods,
        plan.roles,
        plan.roles,
        started.elapsed()
    );
    let kubeconfig = MemoryFile::new(&cluster.kubeconfig(User::Auditor, cluster.addr()))?;
    let path = kubeconfig.path();
    for round in 1..=3 {
        audit(&path, plan).with_context(|| format!("round {round}"))?;
    }
    let requests = cluster.audit_log("auditor")?;
    let writes = requests.iter().filter(|(verb, _)| verb != "get" && verb != "list").count();
    println!("{} requests in three rounds, {writes} of them not get or list", requests.len());
    ensure!(writes == 0, "it did more than read");
    progress(&path)
}

/// One audit.
fn audit(kubeconfig: &str, plan: Plan) -> Result<()> {
    let started = Instant::now();
    let mut child = Command::new(program()?)
        .args(["audit", "--kubeconfig", kubeconfig, "--output", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut stdout = child.stdout.take().context("it is piped")?;
    // The report is longer than a pipe, so that the audit is still there when its first byte has come.
    let mut text = vec![0];
    stdout.read_exact(&mut text).context("it wrote nothing")?;
    let took = started.elapsed();
    let (peak, used) = (memory(pid, "VmHWM")?, cpu(pid)?);
    stdout.read_to_end(&mut text)?;
    let status = child.wait()?;
    let report: Value = serde_json::from_slice(&text)?;
    let findings = report["findings"].as_array().context("findings")?;
    let claims = findings.iter().filter(|finding| finding["rule"] == "floating-ips").count();
    println!(
        "{} after {took:.1?}: {claims} claims, {} holders; {used:.2} s of CPU, {peak} KiB at its peak, \
         report {} KiB",
        report["verdict"].as_str().unwrap_or_default(),
        report["reach"]["holders"].as_array().map_or(0, Vec::len),
        text.len() >> 10
    );
    ensure!(status.code() == Some(1), "it ended with {status}");
    ensure!(report["counts"]["pods"] == plan.pods, "not all pods: {}", report["counts"]);
    ensure!(report["missing"].as_array().is_some_and(Vec::is_empty), "{}", report["missing"]);
    ensure!(claims == CLAIMS as usize, "{claims} of {CLAIMS} claims were found");
    ensure!(
        report["reach"]["holders"].as_array().is_some_and(|all| all.len() > plan.roles as usize)
    );
    ensure!(took < LONGEST, "it took more than {LONGEST:?}");
    ensure!(peak <= RESIDENT, "it held more than {} MiB", RESIDENT >> 10);
    Ok(())
}

/// What somebody at a terminal sees meanwhile.
fn progress(kubeconfig: &str) -> Result<()> {
    let audit = format!("{} audit --kubeconfig {kubeconfig}", program()?.display());
    let seen = Command::new("script")
        .args(["--quiet", "--return", "--command", &format!("{audit} > /dev/null"), "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .context("cannot start script, which makes a terminal")?;
    let seen = String::from_utf8_lossy(&seen.stdout);
    let last = seen.split(['\r', '\n']).rfind(|line| line.contains("pods "));
    let last = last.context("no progress was shown")?;
    let plain = last.replace("\u{1b}[2K", "").replace("\u{1b}[1B", "");
    println!("at a terminal, last of pods: {:?}", plain.trim());
    Ok(())
}

fn found(cluster: &Cluster, plan: Plan) -> Result<()> {
    let crowd = Crowd::connect(&cluster.kubeconfig(User::Admin, cluster.addr()))?;
    let nodes = plan.pods.div_ceil(OF_NODE);
    ensure!(nodes <= 512, "at most 51,200 pods");
    for n in 0..=plan.pods / OF_NAMESPACE {
        cluster.objects().make_namespace(&namespace(n * OF_NAMESPACE))?;
    }
    let [pool, felix, mut information] = pretend::calico("10.128.0.0/16");
    // Half of an upgrade.
    information["spec"]["calicoVersion"] = json!("v3.22.1");
    for object in [pool, felix, information] {
        cluster.objects().apply(object)?;
    }
    crowd.write((0..nodes).map(node).collect::<Result<Vec<_>>>()?)?;
    crowd.write((0..nodes).map(|n| blocks(n, plan.pods)).collect::<Result<Vec<_>>>()?)?;
    crowd.write((0..plan.pods).map(|n| pod(n, plan.pods)).collect::<Result<Vec<_>>>()?)?;
    crowd.write((0..plan.roles).map(|n| role(n, plan.pods)))
}

fn namespace(pod: u32) -> String {
    format!("team-{:02}", pod / OF_NAMESPACE)
}

fn node_name(n: u32) -> String {
    format!("node-{n:03}")
}

fn first(node: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + node * 2 * 64)
}

fn address(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first(pod / OF_NODE)) + pod % OF_NODE)
}

fn node(n: u32) -> Result<Vec<Write>> {
    let name = node_name(n);
    let own = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 18, 0, 0)) + n + 1);
    let object = pretend::node(&name, own, &format!("{}/25", first(n)));
    let status = Write::status("nodes", "", &name, &object["status"])?;
    Ok(vec![Write::create(object)?, status])
}

fn blocks(node: u32, pods: u32) -> Result<Vec<Write>> {
    let size = u32::try_from(BLOCK)?;
    let block = |half: u32| {
        let base = Ipv4Addr::from(u32::from(first(node)) + half * size);
        let mut block = Block::new(base, &node_name(node));
        for place in 0..size {
            let (at, pod) = (half * size + place, node * OF_NODE + half * size + place);
            if at < OF_NODE && pod < pods {
                block.owners[place as usize] = Some(format!("{}/{}", namespace(pod), name(pod)));
            }
        }
        Write::create(block.object())
    };
    Ok(vec![block(0)?, block(1)?])
}

fn name(pod: u32) -> String {
    format!("deployment-{pod:05}-7c9d8f6b5-x{pod:05}")
}

/// A pod, as long as pods are; the first claim addresses of the last.
fn pod(n: u32, pods: u32) -> Result<Vec<Write>> {
    let (namespace, name, address) = (namespace(n), name(n), address(n));
    let mut object = pretend::pod(&namespace, &name, &node_name(n / OF_NODE));
    let mut annotations = pretend::annotations(Some(address));
    if n < CLAIMS {
        annotations["cni.projectcalico.org/floatingIPs"] =
            json!(format!("[\"{}\"]", self::address(pods - 1 - n)));
    }
    object["metadata"]["annotations"] = annotations;
    let variables: Vec<Value> = (0..20)
        .map(|n| json!({ "name": format!("SETTING_{n}"), "value": "a value of usual length" }))
        .collect();
    object["spec"]["containers"][0]["env"] = json!(variables);
    let status = Write::status("pods", &namespace, &name, &pretend::running(address))?;
    Ok(vec![Write::create(object)?, status])
}

/// A role that may patch pods, bound to two accounts.
fn role(n: u32, pods: u32) -> Vec<Write> {
    let namespace = namespace(n % (pods / OF_NAMESPACE).max(1) * OF_NAMESPACE);
    let name = format!("role-{n}");
    let path = |plural: &str| format!("/apis/{RBAC}/v1/namespaces/{namespace}/{plural}");
    let metadata = json!({ "namespace": namespace, "name": name });
    let role = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata,
        "rules": [
            { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list", "patch"] },
            { "apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list", "patch"] },
        ],
    });
    let binding = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": metadata,
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": name },
        "subjects": [
            { "apiGroup": RBAC, "kind": "User", "name": format!("user-{n}") },
            { "kind": "ServiceAccount", "namespace": namespace, "name": format!("robot-{n}") },
        ],
    });
    vec![Write::create_at(path("roles"), role), Write::create_at(path("rolebindings"), binding)]
}
