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
        subjects,
    }
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
    ];
    let others = [
        Subject::Group("system:authenticated".into()),
        Subject::User("system:anonymous".into()),
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
        close::command(role, true, &binding(None, "r", subjects), 0)
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
    assert!(close(&role, two).unwrap().contains(r#"{"op":"remove","path":"/subjects/0"}"#));
    // A name that no terminal should be shown is in no command.
    let mut odd = binding(None, "r", one());
    odd.name = "a\u{1b}[2J".into();
    assert_eq!(close::command(&role, true, &odd, 0), None);
}
