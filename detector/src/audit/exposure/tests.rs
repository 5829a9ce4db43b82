//! Versions around the borders, and which witness counts.

use super::*;
use crate::source::cluster::felix::Settings;
use crate::source::cluster::version::Information;

fn image(asked: &str) -> Image {
    Image { asked: asked.into(), running: None }
}

fn agent(node: &str, asked: &str) -> CalicoNode {
    CalicoNode {
        namespace: "kube-system".into(),
        name: format!("calico-node-{node}").into(),
        node: detector_core::workload::NodeName(node.into()),
        owner: None,
        image: image(asked),
        switch: Environment::Silent,
    }
}

/// Facts of a cluster in which everything can be seen.
fn seen() -> Facts {
    let mut facts = Facts::default();
    for kind in Kind::ALL {
        facts.saw(kind, crate::audit::facts::Sight::All);
    }
    facts
}

fn standing_of(asked: &str) -> (Product, Standing) {
    let mut facts = seen();
    facts.agents.push(agent("a", asked));
    let state = examine(&facts).nodes.remove("a").unwrap();
    (state.product, state.standing)
}

#[test]
fn every_release_around_the_borders_is_on_its_side() {
    use Standing::{Affected, Fixed, Uncertain, Unknown};
    let releases = [
        // The open source project: fixed in v3.20.5, v3.21.5, v3.22.2, and all from v3.23.0 on.
        ("v2.6.12", Affected),
        ("v3.0.0", Affected),
        ("v3.19.4", Affected),
        ("v3.20.0", Affected),
        ("v3.20.3", Affected),
        ("v3.20.4", Affected),
        ("v3.20.5", Fixed),
        ("v3.20.6", Fixed),
        ("v3.21.0", Affected),
        ("v3.21.4", Affected),
        ("v3.21.5", Fixed),
        ("v3.21.6", Fixed),
        ("v3.22.0", Affected),
        ("v3.22.1", Affected),
        ("v3.22.2", Fixed),
        ("v3.22.5", Fixed),
        ("v3.23.0", Fixed),
        ("v3.23.5", Fixed),
        ("v3.26.4", Fixed),
        ("v3.30.2", Fixed),
        ("v3.32.0", Fixed),
        ("v4.0.0", Fixed),
        // With and without the letter, and with an architecture.
        ("3.22.1", Affected),
        ("3.22.2", Fixed),
        ("V3.22.1", Affected),
        ("v3.22.1-amd64", Affected),
        ("v3.22.2-arm64", Fixed),
        // Before a release: what comes before the first with the fix may have it or not.
        ("v3.22.0-rc1", Affected),
        ("v3.22.1-rc2", Affected),
        ("v3.22.2-0.dev", Uncertain),
        ("v3.22.2-0.dev-12-g0123456789ab", Uncertain),
        ("v3.23.0-0.dev", Uncertain),
        ("v3.23.0-rc1", Uncertain),
        ("v3.23.1-rc1", Fixed),
        ("v3.21.5-beta1", Uncertain),
        // Behind a release, by so many commits.
        ("v3.22.1-7-g0123abc", Uncertain),
        ("v3.22.2-7-g0123abc", Fixed),
        ("v3.21.3-1-g0123abc", Affected),
        // A vendor's own builds: the last without the fix may have been given it.
        ("v3.22.1-gke.4", Uncertain),
        ("v3.22.0-gke.1", Affected),
        ("v3.22.2-eksbuild.1", Fixed),
        ("v3.20.4-build20220301", Uncertain),
        ("v3.20.5+vendor.1", Fixed),
        ("v3.21.4_rancher1", Uncertain),
        ("v3.19.1-vendor", Affected),
        // What Calico Enterprise's previews are called is a vendor's count here.
        ("v3.22.1-1.2", Uncertain),
        // No version of Calico's.
        ("latest", Unknown),
        ("master", Unknown),
        ("release-v3.22", Unknown),
        ("v3.22", Unknown),
        ("v3", Unknown),
    ];
    for (tag, expected) in releases {
        for repository in [
            "docker.io/calico/node",
            "calico/node",
            "rancher/mirrored-calico-node",
            "reg:5000/calico/node",
        ] {
            let image = format!("{repository}:{tag}");
            assert_eq!(standing_of(&image), (Product::Calico, expected), "{image}");
            let pinned = format!("{image}@sha256:{}", "0".repeat(64));
            assert_eq!(standing_of(&pinned), (Product::Calico, expected), "{pinned}");
        }
    }
    // Calico Enterprise: fixed in v3.11.4, v3.12.1, and all from v3.13.0 on.
    let releases = [
        ("v2.8.5", Affected),
        ("v3.0.0", Affected),
        ("v3.10.3", Affected),
        ("v3.11.0", Affected),
        ("v3.11.3", Affected),
        ("v3.11.4", Fixed),
        ("v3.11.5", Fixed),
        ("v3.12.0", Affected),
        ("v3.12.0-1.0", Affected),
        ("v3.12.0-2.0", Affected),
        ("v3.12.1", Fixed),
        ("v3.12.2", Fixed),
        ("v3.13.0-1.0", Uncertain),
        ("v3.13.0-calient-0.dev-31-g0123abc", Uncertain),
        ("v3.13.0", Fixed),
        ("v3.14.4", Fixed),
        ("v3.19.0-2.0", Fixed),
        ("v3.20.4", Fixed),
        ("v3.22.1", Fixed),
        ("3.12.0", Affected),
        ("v3.12.0-fips", Uncertain),
    ];
    for (tag, expected) in releases {
        for repository in
            ["quay.io/tigera/cnx-node", "registry.example/mirror/cnx-node", "quay.io/tigera/node"]
        {
            let image = format!("{repository}:{tag}");
            assert_eq!(standing_of(&image), (Product::Enterprise, expected), "{image}");
        }
    }
}

#[test]
fn an_image_is_taken_apart() {
    let apart = [
        ("calico/node:v3.22.1", Some(Product::Calico), Some("v3.22.1")),
        ("reg:5000/calico/node", Some(Product::Calico), None),
        ("reg:5000/node:v3.22.1", None, Some("v3.22.1")),
        ("calico/node@sha256:ab", Some(Product::Calico), None),
        ("calico/node:v3.22.1@sha256:ab", Some(Product::Calico), Some("v3.22.1")),
        ("gke.gcr.io/calico/node:v3.21.4-gke.2", Some(Product::Calico), Some("v3.21.4-gke.2")),
        (
            "rancher/hardened-calico:v3.22.1-build20220301",
            Some(Product::Calico),
            Some("v3.22.1-build20220301"),
        ),
        ("quay.io/tigera/cnx-node:v3.12.0", Some(Product::Enterprise), Some("v3.12.0")),
        ("sha256:abcdef", None, Some("abcdef")),
        ("calico/node:", Some(Product::Calico), None),
        ("", None, None),
    ];
    for (image, product, tag) in apart {
        assert_eq!(taken_apart(image), (product, tag), "{image}");
    }
}

#[test]
fn where_an_image_has_no_tag_the_next_witness_tells() {
    let digest = "registry.example/node@sha256:ab";
    let mut facts = seen();
    facts.agents.push(agent("a", digest));
    let state = |facts: &Facts| examine(facts).nodes.remove("a").unwrap();
    assert_eq!(state(&facts).standing, Standing::Unknown);
    assert_eq!(state(&facts).by, None);
    facts.agents[0].image = image("registry.example/node:latest");
    let by = state(&facts).by.unwrap().shown();
    assert!(by.ends_with("image of container calico-node, whose tag latest is no version"), "{by}");
    facts.agents[0].image = image(digest);
    assert!(!state(&facts).is_open(), "nobody is called exposed for what cannot be seen");
    facts.installation = Some(crate::audit::facts::Installation {
        variant: "Calico".into(),
        version: Some("v3.21.4".into()),
    });
    assert_eq!(state(&facts).standing, Standing::Affected);
    facts.information = Some(Information::of("v3.22.2", Product::Calico));
    assert_eq!(state(&facts).standing, Standing::Fixed);
    // The runtime knows the tag.
    facts.agents[0].image.running = Some("docker.io/calico/node:v3.22.0".into());
    assert_eq!(state(&facts).standing, Standing::Affected);
    // What was asked for counts before it.
    facts.agents[0].image.asked = "docker.io/calico/node:v3.22.3".into();
    assert_eq!(state(&facts).standing, Standing::Fixed);
    // Enterprise counts its versions anew, whatever Calico it is made of.
    facts.agents[0].image = image(digest);
    facts.information = Some(Information::of("v3.22.1", Product::Enterprise));
    facts.installation = None;
    assert_eq!(state(&facts).standing, Standing::Unknown);
    facts.information.as_mut().unwrap().enterprise = Some("v3.12.1".into());
    assert_eq!(
        (state(&facts).product, state(&facts).standing),
        (Product::Enterprise, Standing::Fixed)
    );
}

/// v3.20.4 is affected as Calico and fixed as Calico Enterprise: a registry's folder does not decide.
#[test]
fn a_folder_called_tigera_makes_no_enterprise() {
    let mut facts = seen();
    facts.agents.push(agent("a", "registry.example/tigera/node:v3.20.4"));
    let state = |facts: &Facts| examine(facts).nodes.remove("a").unwrap();
    assert_eq!(state(&facts).product, Product::Enterprise);
    facts.information = Some(Information::of("v3.20.4", Product::Calico));
    assert_eq!(
        (state(&facts).product, state(&facts).standing),
        (Product::Calico, Standing::Affected)
    );
    facts.information = None;
    facts.installation =
        Some(crate::audit::facts::Installation { variant: "Calico".into(), version: None });
    assert_eq!(state(&facts).standing, Standing::Affected);
    facts.agents[0].image = image("registry.example/calico/cnx-node:v3.20.4");
    assert_eq!(state(&facts).product, Product::Enterprise);
}

#[test]
fn the_nearest_word_on_the_switch_counts() {
    let mut facts = seen();
    facts.agents.push(agent("a", "calico/node:v3.26.0"));
    let switch = |facts: &Facts| match examine(facts).nodes.remove("a").unwrap().switch {
        Switch::Missing => "missing".to_owned(),
        Switch::On { by } => format!("on {}", by.shown()),
        Switch::Off { by, unless: None } => format!("off {by}"),
        Switch::Off { by, unless: Some(unless) } => format!("off {by}, {unless}"),
        Switch::Unknown { why } => format!("unknown {why}"),
    };
    let felix = |on| Settings { floating_ips: Some(on), spoofing: None };
    assert!(switch(&facts).starts_with("off Calico's default"));
    facts.felix.insert("default".into(), felix(true));
    assert_eq!(switch(&facts), "on FelixConfiguration default spec.floatingIPs");
    facts.felix.insert("node.a".into(), felix(false));
    assert_eq!(switch(&facts), "off FelixConfiguration node.a spec.floatingIPs");
    // What cannot be read leaves the word to what can, and is told.
    facts.agents[0].switch = Environment::Elsewhere("ConfigMap extra".into());
    assert!(switch(&facts).ends_with(
        "spec.floatingIPs, unless ConfigMap extra (envFrom of \
                                      calico-node) sets FELIX_FLOATINGIPS"
    ));
    facts.agents[0].switch = Environment::On;
    assert!(switch(&facts).starts_with("on pod kube-system/calico-node-a env FELIX_FLOATINGIPS"));
    facts.agents[0].switch = Environment::Unreadable("valueFrom".into());
    assert!(switch(&facts).starts_with("unknown pod kube-system/calico-node-a env"));
    // A version without the switch heeds none of it.
    facts.agents[0].image = image("calico/node:v3.22.1");
    assert_eq!(switch(&facts), "missing");
    // What is not seen is not taken for off.
    let mut facts = Facts::default();
    facts.agents.push(agent("a", "calico/node:v3.26.0"));
    assert_eq!(switch(&facts), "unknown FelixConfigurations cannot be seen");
}

#[test]
fn of_two_pods_on_a_node_the_worse_counts_and_windows_does_not() {
    let mut facts = seen();
    facts.agents.push(agent("a", "calico/node:v3.26.0"));
    facts.agents.push(agent("a", "calico/node:v3.22.1"));
    facts.agents.push(agent("w", "calico/node:v3.22.1"));
    for (name, windows) in [("a", false), ("b", false), ("w", true)] {
        facts.nodes.push(crate::audit::facts::Member {
            node: detector_core::observation::Node {
                name: detector_core::workload::NodeName(name.into()),
                addresses: Vec::new(),
                pod_prefixes: Vec::new(),
            },
            windows,
        });
    }
    let exposure = examine(&facts);
    assert_eq!(exposure.nodes.len(), 1);
    assert_eq!(exposure.nodes["a"].switch, Switch::Missing);
    assert_eq!(exposure.without, ["b".into()]);
}

#[test]
fn without_a_sight_of_it_calico_is_not_called_absent() {
    assert_eq!(examine(&seen()).presence, Presence::Absent);
    let hidden = examine(&Facts::default()).presence;
    assert_eq!(
        hidden,
        Presence::Hidden(vec![Kind::Pods, Kind::DaemonSets, Kind::ClusterInformation])
    );
}
