//! The kinds that are served: a table, so that one more kind is one more row.

use serde_json::Value;

use super::refusal::Refusal;

/// A kind of object, and how a real server treats it.
#[derive(Debug)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version within the group.
    pub version: &'static str,
    /// The name in `kind:`, such as `Pod`.
    pub name: &'static str,
    /// The name in paths, such as `pods`: unique in [`KINDS`].
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has a `status` subresource, so that its status and the rest are written apart.
    pub status: bool,
    /// Whether a CustomResourceDefinition made it: such objects carry their kind even within a
    /// list, and an update of one must say which version it replaces.
    pub custom: bool,
}

const CALICO: &str = "crd.projectcalico.org";

/// All kinds. Calico's definitions of these four declare no status subresource.
pub static KINDS: [Kind; 11] = [
    builtin("", "Pod", "pods", true, true),
    builtin("", "Node", "nodes", false, true),
    builtin("", "Service", "services", true, true),
    builtin("", "ConfigMap", "configmaps", true, false),
    builtin("apps", "DaemonSet", "daemonsets", true, true),
    builtin("events.k8s.io", "Event", "events", true, false),
    calico("FelixConfiguration", "felixconfigurations"),
    calico("ClusterInformation", "clusterinformations"),
    calico("IPPool", "ippools"),
    calico("IPAMBlock", "ipamblocks"),
    // Our own, by deploy/base/crd.yaml.
    Kind {
        group: "route-hijack-detector.io",
        version: "v1",
        name: "FloatingIPAllowance",
        plural: "floatingipallowances",
        namespaced: false,
        status: true,
        custom: true,
    },
];

const fn builtin(
    group: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
    status: bool,
) -> Kind {
    Kind { group, version: "v1", name, plural, namespaced, status, custom: false }
}

const fn calico(name: &'static str, plural: &'static str) -> Kind {
    Kind {
        group: CALICO,
        version: "v1",
        name,
        plural,
        namespaced: false,
        status: false,
        custom: true,
    }
}

// === impl Kind ===

impl Kind {
    /// The kind with this plural.
    pub fn of_plural(plural: &str) -> Result<&'static Self, Refusal> {
        KINDS.iter().find(|kind| kind.plural == plural).ok_or_else(Refusal::unknown_path)
    }

    /// The kind that a path names.
    pub fn of_path(group: &str, version: &str, plural: &str) -> Result<&'static Self, Refusal> {
        Self::of_plural(plural).and_then(|kind| {
            let same = kind.group == group && kind.version == version;
            same.then_some(kind).ok_or_else(Refusal::unknown_path)
        })
    }

    /// The kind that an object says it is.
    pub fn of_object(object: &Value) -> Result<&'static Self, Refusal> {
        let (version, name) = (&object["apiVersion"], &object["kind"]);
        KINDS
            .iter()
            .find(|kind| *version == kind.api_version().as_str() && *name == kind.name)
            .ok_or_else(|| Refusal::bad_request(format!("no kind {name} of {version} is served")))
    }

    /// What its objects have in `apiVersion:`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// The path of one of its objects, or of all in a namespace where `name` is empty, or of all
    /// where both are.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let mut path = match self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if !namespace.is_empty() {
            path = format!("{path}/namespaces/{namespace}");
        }
        path = format!("{path}/{}", self.plural);
        if name.is_empty() { path } else { format!("{path}/{name}") }
    }

    /// Whether a deletion answers with the object, and not with a `Status` (`ReturnDeletedObject` of
    /// its registry).
    pub(super) fn told_when_deleted(&self) -> bool {
        matches!(self.plural, "pods" | "services")
    }

    /// Its name as errors spell it: `pods`, `ippools.crd.projectcalico.org`.
    pub fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }
}
