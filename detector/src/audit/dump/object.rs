//! One object of a dump: what it is, and to the intake with it.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::Resource;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::audit::facts::Kind;
use crate::audit::gather::{Gather, shown};
use crate::source::cluster::cni::PLACES;
use crate::source::cluster::{LeanNode, object as cluster_object};
use crate::text::printable;

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

/// Calico's API server has the group itself, its CustomResourceDefinitions one below.
const CALICO: &str = "projectcalico.org";

/// The kinds that are read: as objects name them, as paths do, their group, and what they are to an
/// audit.
pub(super) const KINDS: [(&str, &str, &str, Kind); 19] = [
    ("Pod", "pods", "", Kind::Pods),
    ("Node", "nodes", "", Kind::Nodes),
    ("Service", "services", "", Kind::Services),
    ("ConfigMap", "configmaps", "", Kind::CniConfig),
    ("Namespace", "namespaces", "", Kind::Namespaces),
    ("DaemonSet", "daemonsets", "apps", Kind::DaemonSets),
    ("ClusterInformation", "clusterinformations", CALICO, Kind::ClusterInformation),
    ("FelixConfiguration", "felixconfigurations", CALICO, Kind::FelixConfigurations),
    ("IPPool", "ippools", CALICO, Kind::IpPools),
    ("IPAMBlock", "ipamblocks", CALICO, Kind::IpamBlocks),
    ("Installation", "installations", "operator.tigera.io", Kind::Installation),
    ("FloatingIPAllowance", "floatingipallowances", cluster_object::GROUP, Kind::Allowances),
    ("ClusterRole", "clusterroles", RBAC, Kind::ClusterRoles),
    ("Role", "roles", RBAC, Kind::Roles),
    ("ClusterRoleBinding", "clusterrolebindings", RBAC, Kind::ClusterRoleBindings),
    ("RoleBinding", "rolebindings", RBAC, Kind::RoleBindings),
    (
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        ADMISSION,
        Kind::AdmissionPolicies,
    ),
    (
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        ADMISSION,
        Kind::AdmissionPolicies,
    ),
    // What OpenShift and `oc adm inspect` call a namespace.
    ("Project", "projects", "project.openshift.io", Kind::Namespaces),
];

/// What a value turned out to be.
pub(super) enum Taken {
    /// An object that an audit reads, and what tells it from others.
    Object(Kind, String),
    /// An object of another kind.
    Foreign,
    /// A piece of an object that is of use all the same; this is what it is of.
    Excerpt(&'static str),
    /// No object.
    Nothing,
}

/// Says what a value is.
pub(super) fn take(gather: &mut Gather, value: &Value) -> Taken {
    let Some(kind) = value["kind"].as_str() else {
        // The bulletin's example is the ConfigMap's text without the ConfigMap.
        for text in [&value["cni_network_config"], &value["data"]["cni_network_config"]] {
            if let Some(text) = text.as_str() {
                gather.cni(0, text);
                return Taken::Excerpt("cni_network_config of ConfigMap kube-system/calico-config");
            }
        }
        return Taken::Nothing;
    };
    match known(kind, value["apiVersion"].as_str()) {
        Some(of) => {
            let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
            Taken::Object(of, format!("{kind} {}/{}", text("namespace"), text("name")))
        }
        None => Taken::Foreign,
    }
}

/// What objects of a kind are to an audit. Others have kinds of the same names, in groups of theirs;
/// must-gather's items may have none.
fn known(kind: &str, version: Option<&str>) -> Option<Kind> {
    let group = version.map(|version| version.split_once('/').map_or("", |(group, _)| group));
    let (_, _, own, of) = KINDS.iter().find(|(name, ..)| *name == kind)?;
    let is = group.is_none_or(|group| {
        let below = group.strip_suffix(CALICO).is_some_and(|rest| rest.ends_with('.'));
        group == *own || (*own == CALICO && below)
    });
    is.then_some(*of)
}

/// What a kind is to an audit, by its name alone.
pub(super) fn named(kind: &str) -> Option<Kind> {
    known(kind, None)
}

/// The kind that a list says it is of, such as `PodList`.
pub(super) fn listed(kind: &str, version: Option<&str>) -> Option<Kind> {
    known(kind.strip_suffix("List")?, version)
}

/// Adds an object to what is known.
pub(super) fn add(
    gather: &mut Gather,
    kind: Kind,
    value: &Value,
    place: &str,
    damaged: &mut Vec<(Kind, Box<str>)>,
) {
    let wrong = match (kind, value["kind"].as_str().unwrap_or_default()) {
        (Kind::Pods, _) => typed::<Pod>(gather, value, Gather::pod),
        (Kind::Nodes, _) => typed::<LeanNode>(gather, value, Gather::node),
        (Kind::Services, _) => typed::<Service>(gather, value, Gather::service),
        (Kind::CniConfig, _) => typed::<ConfigMap>(gather, value, Gather::config_map),
        (Kind::DaemonSets, _) => typed::<DaemonSet>(gather, value, Gather::daemon_set),
        (Kind::Roles, _) => typed::<Role>(gather, value, Gather::role),
        (Kind::ClusterRoles, _) => typed::<ClusterRole>(gather, value, Gather::cluster_role),
        (Kind::RoleBindings, _) => typed::<RoleBinding>(gather, value, Gather::role_binding),
        (Kind::ClusterRoleBindings, _) => {
            typed::<ClusterRoleBinding>(gather, value, Gather::cluster_role_binding)
        }
        (Kind::AdmissionPolicies, "ValidatingAdmissionPolicy") => {
            typed::<ValidatingAdmissionPolicy>(gather, value, Gather::policy)
        }
        (Kind::AdmissionPolicies, _) => {
            typed::<ValidatingAdmissionPolicyBinding>(gather, value, Gather::policy_binding)
        }
        (Kind::ClusterInformation, _) => dynamic(gather, value, Gather::cluster_information),
        (Kind::FelixConfigurations, _) => dynamic(gather, value, Gather::felix),
        (Kind::IpPools, _) => dynamic(gather, value, Gather::pool),
        (Kind::IpamBlocks, _) => dynamic(gather, value, Gather::block),
        (Kind::Installation, _) => dynamic(gather, value, Gather::installation),
        (Kind::Allowances, _) => dynamic(gather, value, Gather::allowance),
        (Kind::Namespaces, _) => {
            let name = value["metadata"]["name"].as_str();
            name.map(|name| gather.namespace(name)).ok_or_else(|| "it has no name".to_owned())
        }
    };
    if let Err(why) = wrong {
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or("-");
        let name = printable(&format!("{}/{}", text("namespace"), text("name")), 320);
        let why =
            format!("{place}: {} {name} cannot be read: {}", kind.as_str(), printable(&why, 200));
        gather.refuse(why.clone());
        damaged.push((kind, why.into()));
    }
}

fn typed<T: DeserializeOwned + Resource>(
    gather: &mut Gather,
    value: &Value,
    take: fn(&mut Gather, &T),
) -> Result<(), String> {
    let object = T::deserialize(value).map_err(|error| error.to_string())?;
    if object.meta().name.is_none() {
        return Err(format!("{} has no name", shown::<T>(&object)));
    }
    take(gather, &object);
    Ok(())
}

fn dynamic(
    gather: &mut Gather,
    value: &Value,
    take: fn(&mut Gather, &DynamicObject),
) -> Result<(), String> {
    let object = <DynamicObject as serde::Deserialize>::deserialize(value)
        .map_err(|error| error.to_string())?;
    take(gather, &object);
    Ok(())
}

/// Each of the places of the CNI plugin's configuration is one that a dump can have.
const _: () = assert!(PLACES.len() == 2);
