//! Which rules give the rights, and to whom.

use std::collections::BTreeMap;

use super::*;
use crate::audit::facts::{Requirement, Sight};

fn boxed(texts: &[&str]) -> Vec<Box<str>> {
    texts.iter().map(|text| Box::from(*text)).collect()
}

fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Rule {
    Rule {
        index: 0,
        verbs: boxed(verbs),
        groups: boxed(groups),
        resources: boxed(resources),
        names: Vec::new(),
    }
}

#[test]
fn a_rule_gives_what_rbac_takes_it_to_give() {
    use Right::{PatchPods, PatchStatus, UpdatePods, UpdateStatus};
    type Row = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);
    let all = [PatchPods, PatchStatus, UpdateStatus, UpdatePods];
    let table: [(Row, &[Right]); 14] = [
        ((&["patch"], &[""], &["pods"]), &[PatchPods]),
        ((&["update"], &[""], &["pods"]), &[UpdatePods]),
        ((&["patch"], &[""], &["pods/status"]), &[PatchStatus]),
        ((&["update"], &[""], &["pods/status"]), &[UpdateStatus]),
        ((&["*"], &["*"], &["*"]), &all),
        ((&["*"], &[""], &["pods", "pods/status"]), &all),
        ((&["patch", "update"], &[""], &["*/status"]), &[PatchStatus, UpdateStatus]),
        ((&["get", "list", "watch", "create", "delete"], &[""], &["pods"]), &[]),
        // Another group's pods are no pods, and subresources go by their own names.
        ((&["patch"], &["metrics.k8s.io"], &["pods"]), &[]),
        ((&["patch"], &[], &["pods"]), &[]),
        ((&["patch"], &[""], &["pods/exec", "pods/*"]), &[]),
        ((&["Patch"], &[""], &["pods"]), &[]),
        ((&["patch"], &["apps", ""], &["deployments", "pods"]), &[PatchPods]),
        ((&["patch"], &[""], &[]), &[]),
    ];
    for ((verbs, groups, resources), given) in table {
        let rule = rule(verbs, groups, resources);
        let expected: BTreeSet<Right> = given.iter().copied().collect();
        assert_eq!(rights(&rule), expected, "{rule:?}");
    }
}

fn cluster_role(name: &str, rules: Vec<Rule>) -> Role {
    Role {
        namespace: None,
        name: name.into(),
        rules,
        labels: BTreeMap::new(),
        aggregates: Vec::new(),
        bootstrap: false,
    }
}

fn binding(namespace: Option<&str>, role: &str, subjects: Vec<Subject>) -> Binding {
    Binding {
        namespace: namespace.map(Into::into),
        name: "b".into(),
        to_cluster_role: true,
        role: role.into(),
        all: subjects.len(),
        subjects: bound(subjects),
    }
}

fn bound(subjects: Vec<Subject>) -> Vec<Bound> {
    let bound = |(index, who): (usize, Subject)| {
        let written = serde_json::json!({ "name": format!("{who:?}") });
        Bound { who, index, written }
    };
    subjects.into_iter().enumerate().map(bound).collect()
}

fn facts(roles: Vec<Role>, bindings: Vec<Binding>) -> Facts {
    let mut facts = Facts { roles, bindings, ..Facts::default() };
    for kind in Kind::ALL {
        facts.saw(kind, Sight::All);
    }
    facts
}

fn patch_pods() -> Rule {
    rule(&["patch"], &[""], &["pods"])
}

#[test]
fn danger_grows_with_the_crowd_and_the_reach() {
    let group = |name: &str| Subject::Group(name.into());
    let robot = Subject::ServiceAccount("shop".into(), "robot".into());
    let ranked = [
        (None, group("system:unauthenticated")),
        (None, group("system:authenticated")),
        (None, group("system:authenticated:oauth")),
        (None, group("system:serviceaccounts")),
        (None, group("system:serviceaccounts:shop")),
        (None, group("devs")),
        (None, robot.clone()),
        (None, Subject::User("dev".into())),
        (Some("kube-system"), Subject::User("dev".into())),
        (Some("shop"), Subject::User("dev".into())),
    ];
    let danger = |(namespace, subject): &(Option<&str>, Subject)| {
        let facts = facts(
            vec![cluster_role("r", vec![patch_pods()])],
            vec![binding(*namespace, "r", vec![subject.clone()])],
        );
        let holders = measure(&facts).holders;
        assert_eq!(holders.len(), 1);
        assert_eq!(holders[0].system, None, "{subject:?}");
        holders[0].danger
    };
    let dangers: Vec<u8> = ranked.iter().map(danger).collect();
    assert!(dangers.windows(2).all(|pair| pair[0] >= pair[1]), "{dangers:?}");
    assert!(dangers.first() > dangers.last());
    // A name that the right is limited to takes some of it away.
    let limited = Rule { names: boxed(&["one"]), ..patch_pods() };
    let facts = facts(
        vec![cluster_role("r", vec![limited])],
        vec![binding(Some("shop"), "r", vec![Subject::User("dev".into())])],
    );
    let holder = measure(&facts).holders.remove(0);
    assert_eq!(&*holder.only_pods, boxed(&["one"]));
    assert!(Some(&holder.danger) < dangers.last());
}

#[test]
fn the_clusters_own_are_told_apart_by_what_they_are() {
    let own = [
        Subject::Group("system:masters".into()),
        Subject::Group("system:nodes".into()),
        Subject::User("system:kube-scheduler".into()),
        Subject::User("system:node:worker-1".into()),
        Subject::User("system:serviceaccount:calico-system:calico-cni-plugin".into()),
        Subject::ServiceAccount("kube-system".into(), "calico-node".into()),
        Subject::ServiceAccount("tigera-operator".into(), "tigera-operator".into()),
        Subject::Group("system:serviceaccounts:kube-system".into()),
        Subject::Group("system:bootstrappers:kubeadm:default-node-token".into()),
        Subject::Group("system:monitoring".into()),
        Subject::User("system:kube-proxy".into()),
    ];
    let others = [
        Subject::Group("system:authenticated".into()),
        Subject::User("system:anonymous".into()),
        // OpenShift's people, and names that Kubernetes does not know.
        Subject::Group("system:authenticated:oauth".into()),
        Subject::Group("system:developers".into()),
        Subject::User("system:ci".into()),
        // A name is no office: this account is the tenant's own.
        Subject::ServiceAccount("shop".into(), "calico-node".into()),
        Subject::User("system:serviceaccount:shop:calico-node".into()),
        Subject::User("calico-node".into()),
    ];
    for subject in own {
        assert!(system::why(&subject, false).is_some(), "{subject:?}");
    }
    for subject in others {
        assert_eq!(system::why(&subject, false), None, "{subject:?}");
    }
    // Whoever may do anything anyway gains nothing; a pod's account does.
    assert!(system::why(&Subject::User("boss".into()), true).is_some());
    assert_eq!(system::why(&Subject::ServiceAccount("shop".into(), "ci".into()), true), None);
    assert_eq!(system::why(&Subject::Group("system:authenticated".into()), true), None);
}

#[test]
fn an_aggregated_role_has_its_parts_whether_copied_or_not() {
    let mut part = cluster_role("part", vec![patch_pods()]);
    part.labels.insert("to".into(), "edit".into());
    let mut whole = cluster_role("whole", Vec::new());
    whole.aggregates =
        vec![Selector(vec![Requirement { key: "to".into(), asks: Asks::In(boxed(&["edit"])) }])];
    let given = |whole: &Role| {
        let subjects = vec![Subject::User("dev".into())];
        let roles = vec![
            Role {
                rules: whole.rules.clone(),
                aggregates: whole.aggregates.clone(),
                ..cluster_role("whole", vec![])
            },
            Role { labels: part.labels.clone(), ..cluster_role("part", vec![patch_pods()]) },
        ];
        measure(&facts(roles, vec![binding(None, "whole", subjects)])).holders.remove(0)
    };
    let holder = given(&whole);
    assert_eq!(holder.rights, ["patch pods"]);
    assert_eq!(&*holder.aggregated_from, boxed(&["part"]));
    // The controller would write the copied rule again, so the binding is what goes.
    assert_eq!(holder.close.as_deref(), Some("kubectl delete clusterrolebinding/b"));
    whole.rules = vec![Rule { index: 3, ..patch_pods() }];
    assert_eq!(given(&whole).close.as_deref(), Some("kubectl delete clusterrolebinding/b"));
    // A selector that takes another label takes nothing.
    whole.rules.clear();
    whole.aggregates[0].0[0].asks = Asks::NotIn(boxed(&["edit"]));
    assert!(
        measure(&facts(
            vec![whole],
            vec![binding(None, "whole", vec![Subject::User("dev".into())])]
        ))
        .holders
        .is_empty()
    );
}

#[test]
fn a_patch_strikes_out_only_what_it_must() {
    let mut role = cluster_role(
        "r",
        vec![
            Rule { index: 1, ..rule(&["get", "patch"], &[""], &["pods", "services"]) },
            Rule { index: 4, ..rule(&["patch", "update"], &[""], &["pods/status"]) },
        ],
    );
    let close = |role: &Role, subjects: Vec<Subject>| {
        let binding = binding(None, "r", subjects);
        close::command(role, true, &binding, &binding.subjects.iter().collect::<Vec<_>>())
    };
    let one = || vec![Subject::User("dev".into())];
    let command = close(&role, one()).unwrap();
    let patch = command.split('\'').nth(1).unwrap();
    let operations: Vec<(String, String)> = serde_json::from_str::<Vec<serde_json::Value>>(patch)
        .unwrap()
        .iter()
        .map(|op| {
            let text = |field: &str| op[field].as_str().unwrap().to_owned();
            (text("op"), text("path"))
        })
        .collect();
    let expected = [
        ("test", "/rules/1/verbs"),
        ("test", "/rules/1/resources"),
        ("replace", "/rules/1"),
        ("test", "/rules/4/verbs"),
        ("test", "/rules/4/resources"),
        ("add", "/rules/-"),
        ("remove", "/rules/4"),
    ];
    let expected: Vec<(String, String)> =
        expected.iter().map(|(op, path)| ((*op).to_owned(), (*path).to_owned())).collect();
    assert_eq!(operations, expected);
    // What cannot be struck out, or comes back by itself, is taken away from the subject.
    let delete = Some("kubectl delete clusterrolebinding/b".to_owned());
    role.bootstrap = true;
    assert_eq!(close(&role, one()), delete);
    role.bootstrap = false;
    role.rules = vec![rule(&["*"], &[""], &["pods"])];
    assert_eq!(close(&role, one()), delete);
    let two = vec![Subject::User("dev".into()), Subject::User("other".into())];
    assert_eq!(close(&role, two), delete);
    // A name that no terminal should be shown is in no command.
    let mut odd = binding(None, "r", one());
    odd.name = "a\u{1b}[2J".into();
    assert_eq!(close::command(&role, true, &odd, &odd.subjects.iter().collect::<Vec<_>>()), None);
}

/// One patch takes all tenants out of a binding, from the end, and only those that are still there.
#[test]
fn a_binding_loses_its_tenants_in_one_patch() {
    let subjects = vec![
        Subject::User("dev".into()),
        Subject::ServiceAccount("kube-system".into(), "calico-node".into()),
        Subject::User("other".into()),
    ];
    let facts =
        facts(vec![cluster_role("r", vec![patch_pods()])], vec![binding(None, "r", subjects)]);
    let holders = measure(&facts).holders;
    let closes: BTreeSet<&str> = holders.iter().filter_map(|h| h.close.as_deref()).collect();
    // The role is what the cluster's own lives by, so it stays as it is.
    let patch = concat!(
        r#"[{"op":"test","path":"/subjects/0","value":{"name":"User(\"dev\")"}},"#,
        r#"{"op":"test","path":"/subjects/2","value":{"name":"User(\"other\")"}},"#,
        r#"{"op":"remove","path":"/subjects/2"},{"op":"remove","path":"/subjects/0"}]"#
    );
    let expected = format!("kubectl patch clusterrolebinding/b --type json --patch '{patch}'");
    assert_eq!(closes.into_iter().collect::<Vec<_>>(), [expected]);
}

#[test]
fn a_role_that_the_clusters_own_need_is_not_tightened() {
    let own = || Subject::ServiceAccount("kube-system".into(), "calico-node".into());
    let dev = || Subject::User("dev".into());
    let close = |also: Vec<Binding>, roles: Vec<Role>| {
        let mut bindings = vec![binding(None, "r", vec![dev()])];
        bindings.extend(also);
        let holders = measure(&facts(roles, bindings)).holders;
        holders.iter().find_map(|holder| holder.close.as_ref()).unwrap().clone()
    };
    let role = || cluster_role("r", vec![patch_pods()]);
    assert!(close(Vec::new(), vec![role()]).starts_with("kubectl patch clusterrole/r "));
    let bound = close(vec![binding(None, "r", vec![own()])], vec![role()]);
    assert_eq!(bound, "kubectl delete clusterrolebinding/b");
    // By aggregation, too.
    let mut whole = cluster_role("whole", Vec::new());
    whole.aggregates = vec![Selector::default()];
    let bound = close(vec![binding(None, "whole", vec![own()])], vec![role(), whole]);
    assert_eq!(bound, "kubectl delete clusterrolebinding/b");
}

#[test]
fn aggregation_is_followed_to_its_end() {
    let aggregate = |name: &str, own: &str, of: &str| {
        let mut role = cluster_role(name, Vec::new());
        role.labels.insert(own.into(), "true".into());
        let asks = Asks::Exists;
        role.aggregates = vec![Selector(vec![Requirement { key: of.into(), asks }])];
        role
    };
    let mut part = cluster_role("part", vec![patch_pods()]);
    part.labels.insert("c".into(), "true".into());
    // The last takes over the first, too: a circle has an end.
    part.aggregates = vec![Selector(vec![Requirement { key: "a".into(), asks: Asks::Exists }])];
    let roles = vec![aggregate("one", "a", "b"), aggregate("two", "b", "c"), part];
    let dev = vec![Subject::User("dev".into())];
    let holders = measure(&facts(roles, vec![binding(None, "one", dev)])).holders;
    assert_eq!(holders.len(), 1);
    assert_eq!(&*holders[0].aggregated_from, boxed(&["part"]));
}
