//! How objects are told apart, and what becomes of what is none.

use super::*;
use crate::audit::facts::Facts;

/// Reads one file of this text.
fn read_text(name: &str, text: &str) -> (Facts, Vec<Torn>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    let mut gather = Gather::default();
    let torn = read(&[path], &mut gather, &Progress::new()).unwrap();
    (gather.finish(), torn)
}

fn names(facts: &Facts) -> Vec<String> {
    facts.pods.iter().map(|resident| resident.pod.key.to_string()).collect()
}

/// A pod in one line of YAML, which JSON is.
fn pod(name: &str, kind: bool) -> String {
    let kind = if kind { r#""apiVersion": "v1", "kind": "Pod", "# } else { "" };
    format!(
        r#"{{{kind}"metadata": {{"namespace": "a", "name": "{name}", "uid": "{name}"}}, "spec": {{"nodeName": "n", "containers": []}}}}"#
    )
}

#[test]
fn lists_are_read_however_they_are_indented_and_named() {
    let (one, two) = (pod("one", true), pod("two", true));
    let (bare_one, bare_two) = (pod("one", false), pod("two", false));
    let files = [
        (
            "a.yaml",
            format!("apiVersion: v1\nitems:\n- {one}\n- {two}\nkind: List\nmetadata: {{}}\n"),
        ),
        ("a.yaml", format!("apiVersion: v1\nkind: List\nitems:\n  - {one}\n  - {two}\n")),
        ("a.yaml", format!("---\n{one}\n---\n{two}\n...\n")),
        ("a.yaml", format!("# a comment\n\n- {one}\n\n# another\n- {two}\n")),
        ("a.yaml", format!("apiVersion: v1\nitems:\n- {bare_one}\n- {bare_two}\nkind: PodList\n")),
        (
            "pods.yaml",
            format!(
                "apiVersion: v1\nitems:\n- {bare_one}\n- {bare_two}\nmetadata: {{}}\nkind: List\n"
            ),
        ),
        ("a.yaml", format!("items:\r\n- {one}\r\n- {two}\r\nkind: List\r\n")),
        ("a.json", format!("[{one}, {two}]")),
        ("a.json", format!("{one}\n{two}\n")),
        ("a.json", format!(r#"{{"items": [{bare_one}, {bare_two}], "kind": "PodList"}}"#)),
        ("a.json", format!(r#"  {{"kind": "PodList", "items": [{bare_one}, {bare_two}]}}"#)),
        ("pods.json", format!(r#"{{"items": [{bare_one}, {bare_two}]}}"#)),
        (
            "a.json",
            format!("\u{feff}{{\"items\": [{bare_one}, {bare_two}], \"kind\": \"PodList\"}}"),
        ),
        ("a.yaml", format!("\u{feff}- {one}\n- {two}\n")),
    ];
    for (name, text) in files {
        let (facts, torn) = read_text(name, &text);
        assert_eq!(names(&facts), ["a/one", "a/two"], "{name}: {text}");
        assert!(torn.is_empty(), "{name}: {text}");
        assert_eq!(facts.refused.count, 0, "{:?}", facts.refused.first);
        assert!(facts.sees(Kind::Pods));
    }
}

#[test]
fn text_within_an_object_does_not_look_like_one() {
    let text = "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata:\n    name: notes\n    \
                namespace: a\n  data:\n    notes: |\n      - apiVersion: v1\n      kind: Pod\n\n      items:\n      \
                - no\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    namespace: a\n    name: one\n    uid: x\n  \
                spec:\n    nodeName: n\n    containers:\n    - name: c\n      image: i\nkind: List\n";
    let (facts, torn) = read_text("a.yaml", text);
    assert_eq!(names(&facts), ["a/one"]);
    assert!(torn.is_empty());
    assert_eq!(facts.refused.count, 0, "{:?}", facts.refused.first);
}

#[test]
fn an_empty_list_was_looked_at_all_the_same() {
    for (name, text) in [
        ("a.json", r#"{"kind": "RoleList", "items": []}"#),
        ("a.json", r#"{"kind": "RoleList", "items": null}"#),
        ("a.yaml", "kind: RoleList\nitems: []\n"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), text).unwrap();
        fs::write(folder.path().join("pod.yaml"), pod("one", true)).unwrap();
        let mut gather = Gather::default();
        read(&[folder.path().to_owned()], &mut gather, &Progress::new()).unwrap();
        let facts = gather.finish();
        assert!(facts.sees(Kind::Roles) && !facts.sees(Kind::RoleBindings), "{text}");
    }
}

#[test]
fn a_kind_of_somebody_elses_with_a_known_name_is_not_taken() {
    let pool = |group: &str| {
        format!(
            r#"{{"apiVersion": "{group}/v1", "kind": "IPPool", "metadata": {{"name": "p"}}, "spec": {{"cidr": "10.0.0.0/16"}}}}"#
        )
    };
    for (group, taken) in
        [("crd.projectcalico.org", 1), ("projectcalico.org", 1), ("whereabouts.cni.cncf.io", 0)]
    {
        assert_eq!(read_text("a.json", &pool(group)).0.pools.len(), taken, "{group}");
    }
}

/// Crossplane, Knative, Longhorn and Rancher name their kinds like others.
#[test]
fn a_kind_is_one_of_its_group() {
    let object = |version: &str, kind: &str| {
        format!(r#"{{"apiVersion": "{version}", "kind": "{kind}", "metadata": {{"name": "a"}}}}"#)
    };
    for (version, kind, taken) in [
        ("iam.aws.crossplane.io/v1", "Role", None),
        ("iam.aws.crossplane.io/v1", "RoleList", None),
        ("serving.knative.dev/v1", "Service", None),
        ("longhorn.io/v1beta2", "Node", None),
        ("management.cattle.io/v3", "Project", None),
        ("project.openshift.io/v1", "Project", Some(Kind::Namespaces)),
        ("rbac.authorization.k8s.io/v1", "RoleList", Some(Kind::Roles)),
        ("v1", "Node", Some(Kind::Nodes)),
    ] {
        let text = object(version, kind).replace("}}", r#"}, "items": []}"#);
        let list = kind.ends_with("List");
        let text = if list { text } else { object(version, kind) };
        let (facts, _) = read_text("a.json", &format!("{text}{}", pod("one", true)));
        let seen: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| facts.sees(*kind)).collect();
        let mut expected: Vec<Kind> = [Some(Kind::Pods), taken].into_iter().flatten().collect();
        expected.sort_unstable();
        assert_eq!(seen, expected, "{version} {kind}");
    }
}

/// What stands behind a byte that is no JSON is not read, so nothing counts as seen wholly.
#[test]
fn json_that_is_damaged_in_the_middle_is_torn() {
    let (one, two) = (pod("one", true), pod("two", true));
    let role = r#"{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleList", "items": []}"#;
    for damage in ["\u{1}", "}", ":", "\"\u{1}\""] {
        for text in [format!("{role}[{one}, {damage} {two}]"), format!("{role}{one}{damage}{two}")]
        {
            let (facts, torn) = read_text("a.json", &text);
            assert_eq!(torn.len(), 1, "{text}");
            assert!(!facts.sees(Kind::Pods) && !facts.sees(Kind::Roles), "{text}");
        }
    }
}

/// A dump that was cleaned up has no uids; what cannot be placed at all costs its kind.
#[test]
fn a_pod_without_a_uid_is_a_pod() {
    let text = |pod: &str| pod.replace(r#", "uid": "one""#, "");
    let annotated = pod("one", true).replace(
        r#""uid""#,
        r#""annotations": {"cni.projectcalico.org/floatingIPs": "[]"}, "uid""#,
    );
    let (facts, _) = read_text("a.json", &text(&annotated));
    assert_eq!((names(&facts), facts.refused.count), (vec!["a/one".to_owned()], 0));
    assert!(facts.sees(Kind::Pods) && facts.pods[0].marks.is_some());
    let nowhere = pod("one", true).replace(r#""namespace": "a", "#, "");
    let (facts, _) = read_text("a.json", &format!("{nowhere}{}", pod("two", true)));
    assert_eq!(names(&facts), ["a/two"]);
    assert!(!facts.sees(Kind::Pods));
}

/// What is said in front of the items ends no list.
#[test]
fn a_list_that_says_first_what_it_is_is_cut_all_the_same() {
    let head = "apiVersion: v1\nkind: List\nitems:\n";
    let item = "- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: one\n    namespace: a\n    uid: x\n  \
                spec:\n    containers:\n    - image: i\n      name: c\n    nodeName: n\n  status:\n    \
                podIP: 10.0.0.1\n    qosClass: Burstable\n";
    let text = format!("{head}{item}");
    assert!(read_text("a.yaml", &text).1.is_empty());
    for (end, _) in text.match_indices('\n').filter(|(at, _)| *at > head.len()) {
        let cut = &text[..=end];
        assert_eq!(read_text("a.yaml", cut).1.is_empty(), cut == text, "{cut}");
    }
}

/// In YAML an object that is damaged costs its kind.
#[test]
fn a_damaged_binding_is_not_taken_for_none() {
    let text = "apiVersion: v1\nitems:\n- apiVersion: rbac.authorization.k8s.io/v1\n  kind: \
                ClusterRoleBinding\n  metadata: {\n    name: a\n- apiVersion: \
                rbac.authorization.k8s.io/v1\n  kind: ClusterRoleBinding\n  metadata:\n    name: b\n  \
                roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: c}\nkind: List\n";
    let (facts, torn) = read_text("a.yaml", text);
    assert_eq!((facts.bindings.len(), torn.len()), (1, 0));
    assert!(!facts.sees(Kind::ClusterRoleBindings));
}

/// Wherever a list is cut, it is told; only what it is a list of can be missing without a loss.
#[test]
fn a_list_that_is_cut_anywhere_is_torn() {
    let (one, two) = (pod("one", true), pod("two", true));
    let json = format!(r#"{{"apiVersion": "v1", "items": [{one}, {two}], "kind": "List"}}"#);
    for end in 1..json.len() {
        let (_, torn) = read_text("a.json", &json[..end]);
        assert_eq!(torn.len(), 1, "{}", &json[..end]);
    }
    let yaml = format!("apiVersion: v1\nitems:\n- {one}\n- {two}\nkind: List\n");
    let (from, to) = (yaml.find("- ").unwrap() + 2, yaml.find("kind: List").unwrap());
    for end in from..=to {
        let (facts, torn) = read_text("a.yaml", &yaml[..end]);
        assert_eq!(torn.len(), 1, "{}", &yaml[..end]);
        assert!(!facts.sees(Kind::Pods));
    }
}
