//! Who may write what the attack needs (pure).
//!
//! The bulletin names `patch pods`, `patch pods/status` and `update pods/status`; `update pods` writes
//! annotations as well and is counted with them. RBAC only ever adds: a right is there where one rule
//! of one role gives it, and a ClusterRole has the rules of those that it aggregates, whether the
//! controller that copies them has run or not.

mod close;
mod system;

use std::collections::{BTreeSet, HashMap, HashSet};

use super::facts::{Asks, Binding, Bound, Facts, Kind, Role, Rule, Selector, Subject};
use super::report::{Holder, Object, Reach};
use crate::text::printable;

/// Names of other people are cut here.
const NAME: usize = 300;

/// One of the four rights that let somebody write what Felix acts on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Right {
    PatchPods,
    PatchStatus,
    UpdateStatus,
    UpdatePods,
}

// === impl Right ===

impl Right {
    const ALL: [Self; 4] =
        [Self::PatchPods, Self::PatchStatus, Self::UpdateStatus, Self::UpdatePods];

    fn as_str(self) -> &'static str {
        match self {
            Self::PatchPods => "patch pods",
            Self::PatchStatus => "patch pods/status",
            Self::UpdateStatus => "update pods/status",
            Self::UpdatePods => "update pods",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::PatchPods | Self::PatchStatus => "patch",
            Self::UpdateStatus | Self::UpdatePods => "update",
        }
    }

    /// The resource, and the only wildcard but `*` that RBAC knows for it.
    fn resources(self) -> &'static [&'static str] {
        match self {
            Self::PatchPods | Self::UpdatePods => &["pods"],
            Self::PatchStatus | Self::UpdateStatus => &["pods/status", "*/status"],
        }
    }
}

/// Which of the rights a rule gives.
pub(super) fn rights(rule: &Rule) -> BTreeSet<Right> {
    let has = |list: &[Box<str>], wanted: &[&str]| {
        list.iter().any(|entry| **entry == *"*" || wanted.contains(&&**entry))
    };
    let core = has(&rule.groups, &[""]);
    let gives = |right: &Right| {
        core && has(&rule.verbs, &[right.verb()]) && has(&rule.resources, right.resources())
    };
    Right::ALL.into_iter().filter(gives).collect()
}

/// All who have any of the rights, the most dangerous first.
pub(super) fn measure(facts: &Facts) -> Reach {
    let kinds = [Kind::ClusterRoles, Kind::Roles, Kind::ClusterRoleBindings, Kind::RoleBindings];
    let complete = kinds.into_iter().all(|kind| facts.sees(kind));
    let roles: HashMap<(Option<&str>, &str), &Role> =
        facts.roles.iter().map(|role| ((role.namespace.as_deref(), &*role.name), role)).collect();
    let namespaces = facts.sees(Kind::Namespaces).then_some(facts.namespaces.len());
    let bound = facts.bindings.iter().filter_map(|binding| {
        let scope = if binding.to_cluster_role { None } else { binding.namespace.as_deref() };
        let role = roles.get(&(scope, &*binding.role))?;
        let given = Given::by(role, &facts.roles);
        (!given.rights.is_empty()).then_some((binding, given))
    });
    let bound: Vec<(&Binding, Given<'_>)> = bound.collect();
    // What the cluster's own live by, themselves or by aggregation, is not to be changed.
    let mut needed: HashSet<(Option<&str>, &str)> = HashSet::new();
    for (binding, given) in &bound {
        if binding.subjects.iter().any(|subject| given.system(binding, &subject.who).is_some()) {
            needed.insert((given.role.namespace.as_deref(), &given.role.name));
            needed.extend(given.aggregated_from.iter().map(|name| (None, *name)));
        }
    }
    let mut holders = Vec::new();
    for (binding, given) in &bound {
        let tenants = binding.subjects.iter();
        let tenants: Vec<&Bound> =
            tenants.filter(|subject| given.system(binding, &subject.who).is_none()).collect();
        let needed = needed.contains(&(given.role.namespace.as_deref(), &*given.role.name));
        let close = close::command(given.role, given.own && !needed, binding, &tenants);
        for subject in &binding.subjects {
            holders.push(given.to(binding, &subject.who, close.as_deref(), namespaces));
        }
    }
    holders.sort_by(|a, b| {
        let apart = |holder: &Holder| holder.system.is_some();
        (apart(a), std::cmp::Reverse(a.danger), &a.binding, &a.subject).cmp(&(
            apart(b),
            std::cmp::Reverse(b.danger),
            &b.binding,
            &b.subject,
        ))
    });
    Reach { complete, holders }
}

/// What a role gives.
struct Given<'a> {
    role: &'a Role,
    rights: BTreeSet<Right>,
    /// The names that the rights are limited to; none where any rule has no limit.
    only: Vec<Box<str>>,
    /// Whether its own rules give them.
    own: bool,
    aggregated_from: Vec<&'a str>,
    /// Whether it gives everything there is.
    everything: bool,
}

// === impl Given ===

impl<'a> Given<'a> {
    fn by(role: &'a Role, all: &'a [Role]) -> Self {
        let sources = sources(role, all);
        let from = sources.iter().flat_map(|other| &other.rules);
        // What the controller has copied stands in the role's own rules too.
        let copied = |rule: &Rule| {
            let same = |other: &Rule| Rule { index: rule.index, ..other.clone() } == *rule;
            sources.iter().flat_map(|other| &other.rules).any(same)
        };
        let rules: Vec<&Rule> = role.rules.iter().chain(from).collect();
        let given: BTreeSet<Right> = rules.iter().flat_map(|rule| rights(rule)).collect();
        let mut only = BTreeSet::new();
        let limited = rules.iter().all(|rule| !rule.names.is_empty());
        only.extend(rules.iter().flat_map(|rule| rule.names.iter().cloned()).filter(|_| limited));
        let all_of = |list: &[Box<str>]| list.iter().any(|entry| **entry == *"*");
        let everything = rules
            .iter()
            .any(|rule| all_of(&rule.verbs) && all_of(&rule.groups) && all_of(&rule.resources));
        Self {
            role,
            rights: given,
            only: only.into_iter().collect(),
            own: role.rules.iter().any(|rule| !copied(rule)),
            aggregated_from: sources.iter().map(|other| &*other.name).collect(),
            everything,
        }
    }

    /// Why a subject has it, where that is as it should be.
    fn system(&self, binding: &Binding, subject: &Subject) -> Option<&'static str> {
        system::why(subject, self.everything && binding.namespace.is_none())
    }

    fn to(
        &self,
        binding: &Binding,
        subject: &Subject,
        close: Option<&str>,
        namespaces: Option<usize>,
    ) -> Holder {
        let shown = |text: &str| -> Box<str> { printable(text, NAME).into() };
        let place = |kind: &str, namespace: Option<&str>, name: &str| match namespace {
            Some(namespace) => shown(&format!("{kind} {namespace}/{name}")),
            None => shown(&format!("Cluster{kind} {name}")),
        };
        let (kind, name) = match subject {
            Subject::User(name) => ("User", shown(name)),
            Subject::Group(name) => ("Group", shown(name)),
            Subject::ServiceAccount(namespace, name) => {
                ("ServiceAccount", shown(&format!("{namespace}/{name}")))
            }
        };
        let system = self.system(binding, subject);
        let close = close.filter(|_| system.is_none()).map(Into::into);
        Holder {
            kind,
            subject: name,
            rights: self.rights.iter().map(|right| right.as_str()).collect(),
            namespace: binding.namespace.as_deref().map(shown),
            namespaces: if binding.namespace.is_some() { Some(1) } else { namespaces },
            only_pods: self.only.iter().take(16).map(|name| shown(name)).collect(),
            binding: place("RoleBinding", binding.namespace.as_deref(), &binding.name),
            role: place("Role", self.role.namespace.as_deref(), &self.role.name),
            aggregated_from: self.aggregated_from.iter().map(|name| shown(name)).collect(),
            danger: self.danger(binding, subject),
            system: system.map(Into::into),
            close,
            object: Object {
                kind: if binding.namespace.is_some() {
                    "RoleBinding"
                } else {
                    "ClusterRoleBinding"
                },
                namespace: binding.namespace.as_deref().map(shown),
                name: shown(&binding.name),
                node: None,
            },
        }
    }

    /// How dangerous it is, of 100: how many people it is, how far it goes, what it allows.
    fn danger(&self, binding: &Binding, subject: &Subject) -> u8 {
        let who = match system::crowd(subject) {
            Some(crowd) => crowd.danger(),
            None => match subject {
                Subject::Group(_) => 30,
                Subject::User(_) => 20,
                // Whoever runs code in one of its pods.
                Subject::ServiceAccount(..) => 25,
            },
        };
        let far = match binding.namespace.as_deref() {
            None => 30,
            Some(namespace) if system::is_own(namespace) => 20,
            Some(_) => 5,
        };
        // A forged status needs no switch and no annotation.
        let status = [Right::PatchStatus, Right::UpdateStatus];
        let what = if status.iter().any(|right| self.rights.contains(right)) { 10 } else { 5 };
        let limit = if self.only.is_empty() { 0 } else { 10 };
        (who + far + what - limit).min(100)
    }
}

/// The roles whose rules a role takes over, and those whose rules they take over in turn.
fn sources<'a>(role: &'a Role, all: &'a [Role]) -> Vec<&'a Role> {
    let mut seen: HashSet<&str> = HashSet::from([&*role.name]);
    let (mut found, mut next) = (Vec::new(), vec![role]);
    while let Some(role) = next.pop() {
        if role.aggregates.is_empty() {
            continue;
        }
        for other in all.iter().filter(|other| other.namespace.is_none()) {
            let taken = role.aggregates.iter().any(|selector| selects(selector, other));
            if taken && seen.insert(&other.name) {
                found.push(other);
                next.push(other);
            }
        }
    }
    found.retain(|role| !role.rules.is_empty());
    found
}

/// Whether a selector takes a role, by its labels.
fn selects(selector: &Selector, role: &Role) -> bool {
    selector.0.iter().all(|requirement| {
        let value = role.labels.get(&requirement.key);
        match &requirement.asks {
            Asks::In(values) => value.is_some_and(|value| values.contains(value)),
            Asks::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Asks::Exists => value.is_some(),
            Asks::Absent => value.is_none(),
        }
    })
}

#[cfg(test)]
mod tests;
