//! Whether Calico's floating IPs are switched on for this node.
//!
//! Felix asks FelixConfiguration `node.<name>`, then `default`, for `spec.floatingIPs`. Where neither
//! says anything, the CNI plugin's switch in ConfigMap `kube-system/calico-config` tells what the
//! operator of the cluster meant; where that is silent too, the feature is off, which is Calico's
//! default. The environment of calico-node (`FELIX_FLOATINGIPS`) would win over all of it and cannot
//! be read from here.

use std::sync::Arc;

use detector_core::observation::{Observation, Sense, What};
use detector_core::policy::Feature;
use detector_core::workload::NodeName;
use futures::stream::{BoxStream, StreamExt as _, select_all};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::mpsc;

use super::cni::{self, Switch};
use super::counters::Counters;
use super::rejection::{Reason, Rejection};
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, tell};

/// Tells of the feature until nobody listens.
pub(super) async fn run(
    client: Client,
    node: NodeName,
    counters: Arc<Counters>,
    tx: mpsc::Sender<Observation>,
) {
    let names = [format!("node.{node}"), "default".to_owned()];
    let [of_node, of_default] = names.clone().map(|name| felix(&client, &name, &counters));
    let cni = cni_config(&client, &counters);
    let mut words = select_all([
        of_node.map(|word| (Place::FelixNode, word)).boxed(),
        of_default.map(|word| (Place::FelixDefault, word)).boxed(),
        cni.map(|word| (Place::Cni, word)).boxed(),
    ]);
    let mut known = Known::new(names);
    while let Some((place, word)) = words.next().await {
        for what in known.hear(place, word) {
            if tell(&tx, what).await.is_err() {
                return;
            }
        }
    }
}

/// What one place says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Said {
    On,
    Off,
    Nothing,
}

/// Where it is said; the first that says anything wins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    FelixNode,
    FelixDefault,
    Cni,
}

/// One FelixConfiguration, of Calico's own storage group or, from v3.32 on where that is not
/// installed, of its native one.
fn felix(client: &Client, name: &str, counters: &Arc<Counters>) -> BoxStream<'static, Word<Said>> {
    let apis =
        [("crd.projectcalico.org", "v1"), ("projectcalico.org", "v3")].map(|(group, version)| {
            let resource = ApiResource {
                group: group.into(),
                version: version.into(),
                api_version: format!("{group}/{version}"),
                kind: "FelixConfiguration".into(),
                plural: "felixconfigurations".into(),
            };
            Api::<DynamicObject>::all_with(client.clone(), &resource)
        });
    let scope = Scope {
        what: "list and watch felixconfigurations".into(),
        fields: Some(format!("metadata.name={name}")),
        cached: false,
        optional: true,
        patience: SLOW_PATIENCE,
    };
    let read = {
        let counters = Arc::clone(counters);
        move |object: DynamicObject| Some(read_felix(&object, &counters))
    };
    follow(apis.into(), scope, Arc::clone(counters), read).boxed()
}

fn read_felix(object: &DynamicObject, counters: &Counters) -> Said {
    // Felix compares without regard to case (oneof in felix/config/config_params.go).
    match &object.data["spec"]["floatingIPs"] {
        serde_json::Value::Null => Said::Nothing,
        serde_json::Value::String(word) if word.eq_ignore_ascii_case("Enabled") => Said::On,
        serde_json::Value::String(word) if word.eq_ignore_ascii_case("Disabled") => Said::Off,
        other => {
            let name = format!("FelixConfiguration {}", object.name_any());
            let (field, reason) = ("spec.floatingIPs", Reason::UnknownWord);
            let text = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
            counters.rejections.report([Rejection::new(&name, field, reason, &text)]);
            Said::Nothing
        }
    }
}

/// The CNI plugin's configuration.
fn cni_config(client: &Client, counters: &Arc<Counters>) -> BoxStream<'static, Word<Said>> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    let scope = Scope {
        what: "list and watch configmaps of kube-system".into(),
        fields: Some("metadata.name=calico-config".into()),
        cached: false,
        optional: false,
        patience: SLOW_PATIENCE,
    };
    let read = {
        let counters = Arc::clone(counters);
        move |object: ConfigMap| Some(read_cni_config(&object, &counters))
    };
    follow(vec![api], scope, Arc::clone(counters), read).boxed()
}

fn read_cni_config(object: &ConfigMap, counters: &Counters) -> Said {
    let text = object.data.as_ref().and_then(|data| data.get("cni_network_config"));
    match text.map_or(Switch::Absent, |text| cni::floating_ips(text)) {
        Switch::On => Said::On,
        Switch::Off => Said::Off,
        Switch::Absent => Said::Nothing,
        Switch::Malformed => {
            let (object, field) = ("configmap kube-system/calico-config", "cni_network_config");
            let value = "feature_control.floating_ips";
            let rejection = Rejection::new(object, field, Reason::UnknownWord, value);
            counters.rejections.report([rejection]);
            Said::Nothing
        }
    }
}

/// What is known of the three places.
struct Known {
    /// The names of the two FelixConfigurations.
    names: [String; 2],
    /// By place; `None` as long as it was not read.
    said: [Option<Said>; 3],
    blind: [Option<Box<str>>; 3],
    /// What was told last.
    feature: Feature,
    sight: Sight,
}

#[derive(PartialEq, Eq)]
enum Sight {
    /// Not everything was read yet, and nothing has failed.
    Untold,
    Seeing,
    Blind(Box<str>),
}

// === impl Known ===

impl Known {
    fn new(names: [String; 2]) -> Self {
        Self {
            names,
            said: [None; 3],
            blind: [const { None }; 3],
            feature: Feature::Unknown,
            sight: Sight::Untold,
        }
    }

    /// What is to be told after a word about one place.
    fn hear(&mut self, place: Place, word: Word<Said>) -> Vec<What> {
        let index = place as usize;
        match word {
            // One object at most has the name.
            Word::Reset(objects) => {
                self.said[index] = Some(objects.first().copied().unwrap_or(Said::Nothing));
            }
            Word::Applied(said) => self.said[index] = Some(said),
            Word::Deleted(_) => self.said[index] = Some(Said::Nothing),
            Word::NotServed => {
                self.said[index] = Some(Said::Nothing);
                self.blind[index] = None;
            }
            Word::Blind(reason) => self.blind[index] = Some(reason),
            Word::Seeing => self.blind[index] = None,
        }
        let mut told = Vec::new();
        let feature = self.feature();
        if feature != self.feature {
            self.feature = feature.clone();
            told.push(What::Feature(feature));
        }
        let reason = self.blind.iter().flatten().next().cloned();
        let sight = match &reason {
            Some(reason) => Sight::Blind(reason.clone()),
            None if self.said.iter().all(Option::is_some) => Sight::Seeing,
            None => return told,
        };
        if sight != self.sight {
            self.sight = sight;
            told.push(What::Blind(Sense::Feature, reason));
        }
        told
    }

    fn feature(&self) -> Feature {
        let [node, default] = &self.names;
        let fields = [
            format!("FelixConfiguration {node} spec.floatingIPs"),
            format!("FelixConfiguration {default} spec.floatingIPs"),
            "ConfigMap kube-system/calico-config feature_control.floating_ips".to_owned(),
        ];
        for (said, field) in self.said.iter().zip(fields) {
            match said {
                // What comes after it does not count as long as this is not known.
                None => return Feature::Unknown,
                Some(Said::On) => return Feature::Enabled { by: field.into() },
                Some(Said::Off) => return Feature::Disabled { by: field.into() },
                Some(Said::Nothing) => {}
            }
        }
        let by = "Calico's default: neither FelixConfiguration spec.floatingIPs nor calico-config \
                  feature_control.floating_ips is set";
        Feature::Disabled { by: by.into() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known() -> Known {
        Known::new(["node.a".into(), "default".into()])
    }

    fn seeing() -> What {
        What::Blind(Sense::Feature, None)
    }

    fn feature(known: &Known) -> String {
        match known.feature() {
            Feature::Unknown => "unknown".into(),
            Feature::Enabled { by } => format!("on: {by}"),
            Feature::Disabled { by } => format!("off: {by}"),
        }
    }

    #[test]
    fn the_first_place_that_speaks_wins() {
        let felix_node = "FelixConfiguration node.a spec.floatingIPs";
        let felix_default = "FelixConfiguration default spec.floatingIPs";
        let cni = "ConfigMap kube-system/calico-config feature_control.floating_ips";
        let nothing = "off: Calico's default: neither FelixConfiguration spec.floatingIPs nor \
                       calico-config feature_control.floating_ips is set";
        let (on, off, none) = (Some(Said::On), Some(Said::Off), Some(Said::Nothing));
        let cases = [
            ([None, None, None], "unknown".to_owned()),
            ([None, on, on], "unknown".to_owned()),
            ([none, None, on], "unknown".to_owned()),
            ([none, none, None], "unknown".to_owned()),
            ([on, None, None], format!("on: {felix_node}")),
            ([off, on, on], format!("off: {felix_node}")),
            ([none, on, off], format!("on: {felix_default}")),
            ([none, off, on], format!("off: {felix_default}")),
            ([none, none, on], format!("on: {cni}")),
            ([none, none, off], format!("off: {cni}")),
            ([none, none, none], nothing.to_owned()),
        ];
        for (said, expected) in cases {
            assert_eq!(feature(&Known { said, ..known() }), expected);
        }
    }

    #[test]
    fn changes_are_told_and_repetitions_are_not() {
        let mut known = known();
        assert_eq!(known.hear(Place::Cni, Word::Reset(vec![])), []);
        assert_eq!(known.hear(Place::FelixNode, Word::NotServed), []);
        let told = known.hear(Place::FelixDefault, Word::Reset(vec![Said::Nothing]));
        assert!(
            matches!(&told[..], [What::Feature(Feature::Disabled { .. }), w] if *w == seeing())
        );
        assert_eq!(known.hear(Place::FelixDefault, Word::Seeing), []);
        assert_eq!(known.hear(Place::Cni, Word::Applied(Said::Nothing)), []);

        let told = known.hear(Place::FelixDefault, Word::Applied(Said::On));
        assert!(matches!(&told[..], [What::Feature(Feature::Enabled { .. })]));
        assert_eq!(known.hear(Place::FelixDefault, Word::Applied(Said::On)), []);
        let told = known.hear(Place::FelixDefault, Word::Deleted(Said::On));
        assert!(matches!(&told[..], [What::Feature(Feature::Disabled { .. })]));
    }

    #[test]
    fn it_sees_again_when_all_places_do() {
        let mut known = known();
        let blind = |reason: &str| What::Blind(Sense::Feature, Some(reason.into()));
        assert_eq!(known.hear(Place::Cni, Word::Blind("b".into())), [blind("b")]);
        assert_eq!(known.hear(Place::FelixNode, Word::Blind("a".into())), [blind("a")]);
        // It is not called seeing before everything was read.
        assert_eq!(known.hear(Place::FelixNode, Word::Seeing), [blind("b")]);
        assert_eq!(known.hear(Place::Cni, Word::Seeing), []);
        known.hear(Place::Cni, Word::Reset(vec![]));
        known.hear(Place::FelixNode, Word::Reset(vec![]));
        let told = known.hear(Place::FelixDefault, Word::Reset(vec![]));
        assert_eq!(told.last(), Some(&seeing()));
        // What was read stays known while nothing is heard.
        assert_eq!(known.hear(Place::Cni, Word::Blind("c".into())), [blind("c")]);
        assert_ne!(known.feature(), Feature::Unknown);
    }

    #[test]
    fn felix_words_are_read_as_felix_reads_them() {
        let counters = Counters::default();
        let said = |spec: serde_json::Value| {
            let object = json!({"metadata": {"name": "default"}, "spec": spec});
            read_felix(&serde_json::from_value(object).unwrap(), &counters)
        };
        assert_eq!(said(json!({"floatingIPs": "Enabled"})), Said::On);
        assert_eq!(said(json!({"floatingIPs": "disabled"})), Said::Off);
        assert_eq!(said(json!({})), Said::Nothing);
        assert_eq!(said(json!(null)), Said::Nothing);
        assert_eq!(counters.counts().rejections, 0);
        assert_eq!(said(json!({"floatingIPs": "yes"})), Said::Nothing);
        assert_eq!(said(json!({"floatingIPs": true})), Said::Nothing);
        assert_eq!(counters.counts().rejections, 2);
    }

    #[test]
    fn a_config_map_is_read_for_its_one_key() {
        let counters = Counters::default();
        let said = |data: serde_json::Value| {
            let object = serde_json::from_value(json!({ "data": data })).unwrap();
            read_cni_config(&object, &counters)
        };
        let text = |switch: &str| {
            format!(r#"{{"mtu": __CNI_MTU__, "feature_control": {{"floating_ips": {switch}}}}}"#)
        };
        assert_eq!(said(json!({"cni_network_config": text("true")})), Said::On);
        assert_eq!(said(json!({"cni_network_config": text("false")})), Said::Off);
        assert_eq!(said(json!({"typha_service_name": text("true")})), Said::Nothing);
        assert_eq!(said(json!(null)), Said::Nothing);
        assert_eq!(counters.counts().rejections, 0);
        assert_eq!(said(json!({"cni_network_config": text("maybe")})), Said::Nothing);
        assert_eq!(counters.counts().rejections, 1);
    }
}
