//! The audit, run as people run it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use detector_tests::agent::{MemoryFile, program};
use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use serde_json::Value;

/// A cluster, and what was put into it.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
}

/// What an audit came to.
#[derive(Debug)]
pub(crate) struct Audited {
    pub(crate) code: i32,
    pub(crate) report: Value,
    pub(crate) said: String,
}

/// The program, as whoever has no kubeconfig of his own would run it.
pub(crate) fn audit(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program().unwrap());
    command.arg("audit").args(arguments).stdin(Stdio::null());
    for variable in ["NODE_NAME", "KUBECONFIG", "HOME", "KUBERNETES_SERVICE_HOST"] {
        command.env_remove(variable);
    }
    command
}

// === impl Stage ===

impl Stage {
    /// A cluster with nothing in it; `None`, and a word why, where none can be had.
    pub(crate) fn new(what: &str) -> Option<Self> {
        let cluster = Cluster::start_audited(Programs::find_or_skip(what)?).unwrap();
        for namespace in ["shop", "edge", "calico-system"] {
            cluster.objects().make_namespace(namespace).unwrap();
        }
        Some(Self { cluster })
    }

    /// Takes away what was there, and puts these in its place.
    pub(crate) fn set(&self, objects: &[Value]) -> Result<()> {
        self.cluster.objects().clear()?;
        let kinds = "roles,rolebindings,clusterroles,clusterrolebindings,installations,\
                     validatingadmissionpolicies,validatingadmissionpolicybindings";
        self.cluster.kubectl(&["delete", kinds, "--all-namespaces", "--selector=test=audit"])?;
        self.add(objects)
    }

    /// Adds objects. Kinds that the quick client does not know go by kubectl.
    pub(crate) fn add(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            if self.cluster.objects().apply(object.clone()).is_err() {
                let text = object.to_string();
                let apply = ["apply", "--filename=-"];
                self.cluster.kubectl_fed(&apply, &text).with_context(|| text)?;
            }
        }
        Ok(())
    }

    /// A kubeconfig for a user.
    pub(crate) fn kubeconfig(&self, user: User) -> MemoryFile {
        MemoryFile::new(&self.cluster.kubeconfig(user, self.cluster.addr())).unwrap()
    }

    /// Audits as a user, and reads the report.
    #[track_caller]
    pub(crate) fn audit(&self, user: User, arguments: &[&str]) -> Audited {
        let kubeconfig = self.kubeconfig(user);
        let path = kubeconfig.path();
        let mut all = vec!["--kubeconfig", &path, "--output", "json"];
        all.extend(arguments);
        Audited::of(&audit(&all))
    }

    /// What an audit prints.
    #[track_caller]
    pub(crate) fn print(&self, user: User, arguments: &[&str]) -> String {
        let kubeconfig = self.kubeconfig(user);
        let path = kubeconfig.path();
        let output = audit(&[&["--kubeconfig", &path], arguments].concat());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8(output.stdout).unwrap()
    }
}

// === impl Audited ===

impl Audited {
    /// Audits files.
    #[track_caller]
    pub(crate) fn from(path: &Path) -> Self {
        Self::of(&audit(&["--from", &path.to_string_lossy(), "--output", "json"]))
    }

    #[track_caller]
    fn of(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = serde_json::from_slice(&output.stdout);
        let report = report.unwrap_or_else(|error| panic!("{error}: {said}"));
        let code = output.status.code().unwrap_or_else(|| panic!("{said}"));
        let audited = Self { code, report, said };
        crate::shapes::holds(&audited.report);
        audited
    }

    pub(crate) fn verdict(&self) -> &str {
        self.report["verdict"].as_str().unwrap()
    }

    /// Findings of a rule, as `level object field: message`.
    pub(crate) fn of_rule(&self, rule: &str) -> Vec<String> {
        let findings = self.report["findings"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        findings
            .filter(|finding| finding["rule"] == rule)
            .map(|finding| {
                let object = &finding["object"];
                let name = match object["namespace"].as_str() {
                    Some(namespace) => format!("{namespace}/{}", text(&object["name"])),
                    None => text(&object["name"]),
                };
                format!(
                    "{} {} {name} {}: {}",
                    text(&finding["level"]),
                    text(&object["kind"]),
                    text(&finding["field"]),
                    text(&finding["message"])
                )
            })
            .collect()
    }

    /// The kinds that could not be seen.
    pub(crate) fn missing(&self) -> Vec<&str> {
        let missing = self.report["missing"].as_array().unwrap().iter();
        missing.map(|missing| missing["what"].as_str().unwrap()).collect()
    }

    /// Asserts verdict and exit code, and shows all where they are others.
    #[track_caller]
    pub(crate) fn is(&self, verdict: &str, code: i32) {
        assert_eq!((self.verdict(), self.code), (verdict, code), "{:#}", self.report);
    }
}
