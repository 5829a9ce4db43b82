//! Roles and bindings, as far as they let somebody change pods.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt as _;

use crate::audit::facts::{Asks, Binding, Bound, Requirement, Role, Rule, Selector, Subject};
use crate::audit::reach;

/// The label of the roles that the API server makes at each of its starts.
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";

pub(super) fn role(object: &api::Role) -> Option<Role> {
    let rules = rules(object.rules.as_deref());
    let namespace = object.namespace()?.into();
    (!rules.is_empty()).then(|| of(&object.metadata, Some(namespace), rules, Vec::new()))
}

pub(super) fn cluster_role(object: &api::ClusterRole) -> Option<Role> {
    let rules = rules(object.rules.as_deref());
    let aggregation = object.aggregation_rule.as_ref();
    let selectors = aggregation.and_then(|rule| rule.cluster_role_selectors.as_deref());
    let aggregates: Vec<Selector> = selectors.unwrap_or_default().iter().map(selector).collect();
    let matters = !rules.is_empty() || !aggregates.is_empty();
    matters.then(|| of(&object.metadata, None, rules, aggregates))
}

pub(super) fn role_binding(object: &api::RoleBinding) -> Binding {
    let namespace = object.namespace().unwrap_or_default();
    let subjects = object.subjects.as_deref().unwrap_or_default();
    binding(&object.metadata, Some(&namespace), &object.role_ref, subjects)
}

pub(super) fn cluster_role_binding(object: &api::ClusterRoleBinding) -> Binding {
    let subjects = object.subjects.as_deref().unwrap_or_default();
    binding(&object.metadata, None, &object.role_ref, subjects)
}

fn of(
    metadata: &ObjectMeta,
    namespace: Option<Box<str>>,
    rules: Vec<Rule>,
    aggregates: Vec<Selector>,
) -> Role {
    let labels: BTreeMap<Box<str>, Box<str>> = metadata
        .labels
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect();
    let bootstrap = labels.contains_key(BOOTSTRAPPING);
    let name = metadata.name.clone().unwrap_or_default().into();
    Role { namespace, name, rules, labels, aggregates, bootstrap }
}

/// The rules that let somebody change pods; all others are let go of.
fn rules(rules: Option<&[api::PolicyRule]>) -> Vec<Rule> {
    let boxed = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
    let list = |texts: &Option<Vec<String>>| boxed(texts.as_deref().unwrap_or_default());
    let all = rules.unwrap_or_default().iter().enumerate().map(|(index, rule)| Rule {
        index,
        verbs: boxed(&rule.verbs),
        groups: list(&rule.api_groups),
        resources: list(&rule.resources),
        names: list(&rule.resource_names),
    });
    all.filter(|rule| !reach::rights(rule).is_empty()).collect()
}

fn selector(selector: &LabelSelector) -> Selector {
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(key, value)| Requirement {
        key: key.as_str().into(),
        asks: Asks::In(vec![value.as_str().into()]),
    });
    let expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let values = expression.values.iter().flatten().map(|value| value.as_str().into());
        let asks = match expression.operator.as_str() {
            "In" => Asks::In(values.collect()),
            "NotIn" => Asks::NotIn(values.collect()),
            "DoesNotExist" => Asks::Absent,
            // No API server lets another one through.
            _ => Asks::Exists,
        };
        Requirement { key: expression.key.as_str().into(), asks }
    });
    Selector(labels.chain(expressions).collect())
}

fn binding(
    metadata: &ObjectMeta,
    namespace: Option<&str>,
    role: &api::RoleRef,
    subjects: &[api::Subject],
) -> Binding {
    Binding {
        namespace: namespace.map(Into::into),
        name: metadata.name.clone().unwrap_or_default().into(),
        to_cluster_role: role.kind == "ClusterRole",
        role: role.name.as_str().into(),
        subjects: bound(subjects, namespace.unwrap_or_default()),
        all: subjects.len(),
    }
}

/// A service account without a namespace is one of the binding's own (an API server demands it, a dump
/// may lack it).
fn bound(subjects: &[api::Subject], namespace: &str) -> Vec<Bound> {
    let read = subjects.iter().enumerate().filter_map(|(index, subject)| {
        let name = subject.name.as_str().into();
        let who = match subject.kind.as_str() {
            "User" => Subject::User(name),
            "Group" => Subject::Group(name),
            "ServiceAccount" => {
                let own = subject.namespace.as_deref().unwrap_or(namespace);
                Subject::ServiceAccount(own.into(), name)
            }
            _ => return None,
        };
        Some(Bound { who, index, written: serde_json::to_value(subject).ok()? })
    });
    read.collect()
}
