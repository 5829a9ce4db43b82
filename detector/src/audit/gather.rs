//! Objects of the API, one by one, to [`Facts`]: the one intake of servers and of dumps.
//!
//! Whatever is not needed later is let go of at once: of a role that cannot change pods nothing stays,
//! of a pod without marks what [`Pod`](detector_core::workload::Pod) holds.

mod annotations;
mod calico_node;
mod rights;

use std::collections::HashSet;
use std::hash::Hash;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::DynamicObject;
use kube::{Resource, ResourceExt as _};
use serde_json::Value;

use super::facts::{CalicoNode, Facts, Installation, Kind, Member, Resident, Sight};
use super::guard;
use crate::source::cluster::cni::{PLACES, Switch};
use crate::source::cluster::parse::{self, Parsed};
use crate::source::cluster::{LeanNode, Rejection, felix, object, version};
use crate::text::printable;

pub(super) use self::annotations::KEYS;

/// Facts in the making.
#[derive(Default)]
pub(super) struct Gather {
    facts: Facts,
    /// Pods that look like calico-node's, outside of the namespaces where it is at home.
    strangers: Vec<CalicoNode>,
    policy: Option<Value>,
    policy_bindings: Vec<Value>,
}

/// KubeVirt's label for the virtual machine that a pod runs.
const MACHINE: &str = "vm.kubevirt.io/name";

/// More pods than this in other namespaces are no installation of Calico.
const MOST_STRANGERS: usize = 10_000;

// === impl Gather ===

impl Gather {
    /// Notes how far a kind could be seen.
    pub(super) fn saw(&mut self, kind: Kind, sight: Sight) {
        self.facts.saw(kind, sight);
    }

    /// Notes something that was read and not taken.
    pub(super) fn refuse(&mut self, why: impl Into<Box<str>>) {
        self.facts.refused.note(why);
    }

    /// What is known so far, for those who add to it by themselves.
    pub(super) fn facts(&mut self) -> &mut Facts {
        &mut self.facts
    }

    /// All that was gathered.
    pub(super) fn finish(self) -> Facts {
        let Self { mut facts, strangers, policy, policy_bindings } = self;
        // Only where Calico is not where it always is: a tenant can name a container as he likes.
        if facts.agents.is_empty() {
            let home = |agent: &CalicoNode| {
                facts.rollouts.iter().any(|rollout| rollout.namespace == agent.namespace)
            };
            facts.agents = strangers.into_iter().filter(home).collect();
        }
        let at_home = |namespace: &str| calico_node::HOMES.contains(&namespace);
        if facts.rollouts.iter().any(|rollout| at_home(&rollout.namespace)) {
            facts.rollouts.retain(|rollout| at_home(&rollout.namespace));
        }
        latest(&mut facts.pods, |resident| resident.pod.key.clone());
        latest(&mut facts.agents, |agent| (agent.namespace.clone(), agent.name.clone()));
        latest(&mut facts.bindings, |binding| (binding.namespace.clone(), binding.name.clone()));
        facts.guard = guard::judge(policy.as_ref(), &policy_bindings);
        facts
    }

    pub(super) fn pod(&mut self, object: &Pod) {
        if let Some(agent) = calico_node::pod(object) {
            if calico_node::HOMES.contains(&&*agent.namespace) {
                self.facts.agents.push(agent);
            } else if self.strangers.len() < MOST_STRANGERS {
                self.strangers.push(agent);
            }
        }
        let marks = annotations::marks(object);
        let placed = object.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        if !placed && marks.is_none() {
            return;
        }
        if let Some(mut pod) = self.take(Kind::Pods, annotations::read(object)) {
            // Which container it is, nobody asks here.
            pod.sandbox = None;
            let machine = object.labels().get(MACHINE).map(|name| name.as_str().into());
            self.facts.pods.push(Resident { pod, marks: marks.map(Box::new), machine });
        }
    }

    pub(super) fn node(&mut self, object: &LeanNode) {
        let os = object.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
        let windows = os.is_some_and(|os| os == "windows");
        if let Some(node) = self.take(Kind::Nodes, parse::node(object)) {
            self.facts.nodes.push(Member { node, windows });
        }
    }

    pub(super) fn service(&mut self, object: &Service) {
        let service = self.take(Kind::Services, parse::service(object));
        self.facts.services.extend(service);
    }

    pub(super) fn daemon_set(&mut self, object: &DaemonSet) {
        self.facts.rollouts.extend(calico_node::daemon_set(object));
    }

    pub(super) fn config_map(&mut self, object: &ConfigMap) {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let place = PLACES.iter().position(|p| p.namespace == namespace && p.name == name);
        if let Some(place) = place {
            let text = object.data.as_ref().and_then(|data| data.get(PLACES[place].key));
            self.cni(place, text.map_or("", |text| text));
        }
    }

    /// The text of one of the places of the CNI plugin's configuration.
    pub(super) fn cni(&mut self, place: usize, text: &str) {
        let parsed = PLACES[place].switches(text);
        let switches = self.take(Kind::CniConfig, Ok(parsed));
        // A second copy in a dump does not switch off what the first has on.
        let on = |place: &Option<crate::source::cluster::cni::Switches>| {
            place.is_some_and(|switches| switches.floating_ips == Switch::On)
        };
        if !on(&self.facts.cni[place]) {
            self.facts.cni[place] = switches;
        }
    }

    pub(super) fn cluster_information(&mut self, object: &DynamicObject) {
        if object.name_any() == "default"
            && let Some(Some(information)) =
                self.take(Kind::ClusterInformation, Ok(version::information(object)))
        {
            self.facts.information = Some(information);
        }
    }

    pub(super) fn installation(&mut self, object: &DynamicObject) {
        if object.name_any() != "default" {
            return;
        }
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(Box::from);
        let variant = &object.data["status"]["variant"];
        let variant = text(variant).or_else(|| text(&object.data["spec"]["variant"]));
        self.facts.installation = Some(Installation {
            variant: variant.unwrap_or_else(|| "Calico".into()),
            version: text(&object.data["status"]["calicoVersion"]),
        });
    }

    pub(super) fn felix(&mut self, object: &DynamicObject) {
        if let Some(settings) = self.take(Kind::FelixConfigurations, Ok(felix::settings(object))) {
            self.facts.felix.insert(object.name_any().into(), settings);
        }
    }

    pub(super) fn pool(&mut self, object: &DynamicObject) {
        let pool = self.take(Kind::IpPools, parse::pool(object));
        self.facts.pools.extend(pool);
    }

    pub(super) fn block(&mut self, object: &DynamicObject) {
        let block = self.take(Kind::IpamBlocks, parse::any_block(object)).flatten();
        self.facts.blocks.extend(block);
    }

    pub(super) fn allowance(&mut self, object: &DynamicObject) {
        // Whoever deletes it means it, even where something holds the deletion up.
        if object.metadata.deletion_timestamp.is_some() {
            return;
        }
        match object::allowed(object) {
            Ok(allowed) => self.facts.allowed.push(allowed),
            Err(rejection) => self.refuse(rejection.to_string()),
        }
    }

    pub(super) fn namespace(&mut self, name: &str) {
        self.facts.namespaces.insert(name.into());
    }

    pub(super) fn role(&mut self, object: &Role) {
        if object.namespace().is_none() {
            let why = format!("role {} has no namespace", shown(object));
            self.saw(Kind::Roles, Sight::Part(why.into()));
        }
        self.facts.roles.extend(rights::role(object));
    }

    pub(super) fn cluster_role(&mut self, object: &ClusterRole) {
        self.facts.roles.extend(rights::cluster_role(object));
    }

    pub(super) fn role_binding(&mut self, object: &RoleBinding) {
        self.facts.bindings.push(rights::role_binding(object));
    }

    pub(super) fn cluster_role_binding(&mut self, object: &ClusterRoleBinding) {
        self.facts.bindings.push(rights::cluster_role_binding(object));
    }

    pub(super) fn policy(&mut self, object: &ValidatingAdmissionPolicy) {
        if object.name_any() == guard::name() {
            self.policy = serde_json::to_value(object).ok();
        }
    }

    pub(super) fn policy_binding(&mut self, object: &ValidatingAdmissionPolicyBinding) {
        if object.spec.policy_name == guard::name() {
            self.policy_bindings.extend(serde_json::to_value(object).ok());
        }
    }

    /// What could be taken of an object; the rest is noted, and where that is all of it, that its kind
    /// was not seen wholly.
    fn take<T>(&mut self, kind: Kind, parsed: Result<Parsed<T>, Rejection>) -> Option<T> {
        let (value, rejections) = match parsed {
            Ok(Parsed { value, rejections }) => (Some(value), rejections),
            Err(rejection) => {
                self.saw(kind, Sight::Part(rejection.to_string().into()));
                (None, vec![rejection])
            }
        };
        for rejection in rejections {
            self.facts.refused.note(rejection.to_string());
        }
        value
    }
}

/// Leaves of each object what was read of it last: a list that expired goes on with what is there by
/// then, and where pods of all namespaces were refused in the middle, those of each are read again.
fn latest<T, K: Hash + Eq>(objects: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut seen = HashSet::with_capacity(objects.len());
    let mut keep: Vec<bool> = objects.iter().rev().map(|object| seen.insert(key(object))).collect();
    // `retain` goes from the front.
    objects.retain(|_| keep.pop().unwrap_or(true));
}

/// An object's namespace and name, for people.
pub(super) fn shown<T: Resource>(object: &T) -> String {
    let name = object.name_any();
    match object.namespace() {
        Some(namespace) => printable(&format!("{namespace}/{name}"), 400),
        None => printable(&name, 400),
    }
}
