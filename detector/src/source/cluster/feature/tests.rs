//! What follows from what the places say.

use super::*;

const ON: Switches = Switches { floating_ips: Switch::On, ip_addrs_no_ipam: Switch::Absent };
const OFF: Switches = Switches { floating_ips: Switch::Off, ip_addrs_no_ipam: Switch::Absent };
const SILENT: Switches =
    Switches { floating_ips: Switch::Absent, ip_addrs_no_ipam: Switch::Absent };

fn known() -> Known {
    Known::new(["node.a".into(), "default".into()])
}

fn seeing() -> What {
    What::Blind(Sense::Feature, None)
}

fn floating(on: Option<bool>) -> Settings {
    Settings { floating_ips: on, spoofing: None }
}

fn version(text: &str, heeds_switch: Option<bool>) -> Version {
    Version { text: Some(text.into()), heeds_switch }
}

/// All places have been read: of FelixConfigurations, ConfigMaps, and the version.
fn reading(felix: [Said<Settings>; 2], cni: [Said<Switches>; 2], version: Said<Version>) -> Known {
    let mut sight = Sight::new(Sense::Feature);
    if version.is_some() {
        sight.sees(OF_VERSION);
    }
    Known { felix, cni, version, sight, ..known() }
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
    let operator = "ConfigMap calico-system/cni-config feature_control.floating_ips";
    let nothing = "off: Calico's default: neither FelixConfiguration spec.floatingIPs nor \
                   calico-config feature_control.floating_ips is set";
    let (on, off, none) =
        (Some(Some(floating(Some(true)))), Some(Some(floating(Some(false)))), Some(None));
    let (cni_on, cni_off, absent) = (Some(Some(ON)), Some(Some(OFF)), Some(None));
    let cases = [
        ([None, None], [None, None], "unknown".to_owned()),
        ([None, on], [cni_on, absent], "unknown".to_owned()),
        ([none, None], [cni_on, absent], "unknown".to_owned()),
        ([none, none], [None, absent], "unknown".to_owned()),
        ([none, none], [absent, None], "unknown".to_owned()),
        ([on, None], [None, None], format!("on: {felix_node}")),
        ([off, on], [cni_on, None], format!("off: {felix_node}")),
        ([none, on], [cni_off, absent], format!("on: {felix_default}")),
        ([none, off], [cni_on, absent], format!("off: {felix_default}")),
        ([none, none], [cni_on, None], format!("on: {cni}")),
        ([none, none], [cni_off, cni_on], format!("off: {cni}")),
        ([none, none], [Some(Some(SILENT)), cni_on], format!("on: {operator}")),
        ([none, none], [absent, absent], nothing.to_owned()),
    ];
    for (felix, cni, expected) in cases {
        for said in [None, Some(version("v3.26.1", Some(true))), Some(version("v3.22.1-x", None))] {
            assert_eq!(feature(&reading(felix, cni, Some(said))), expected);
        }
        assert_eq!(feature(&reading(felix, cni, None)), "unknown");
    }
}

#[test]
fn a_felix_that_heeds_no_switch_is_not_asked_for_it() {
    let on = Some(Some(floating(Some(true))));
    let old = || Some(Some(version("v3.22.1", Some(false))));
    let but = "(Calico v3.22.1 does not heed FelixConfiguration spec.floatingIPs)";
    let cni = "ConfigMap kube-system/calico-config feature_control.floating_ips";
    let of = |cni| feature(&reading([on, None], cni, old()));
    assert_eq!(of([Some(Some(ON)), Some(None)]), format!("on: {cni} {but}"));
    assert_eq!(of([Some(Some(OFF)), Some(None)]), format!("off: {cni} {but}"));
    let unset = "off: Calico's default: calico-config feature_control.floating_ips is not set";
    assert_eq!(of([Some(None), Some(None)]), format!("{unset} {but}"));
    assert_eq!(of([None, None]), "unknown");
}

#[test]
fn changes_are_told_and_repetitions_are_not() {
    let mut known = known();
    assert_eq!(known.hear(Heard::Cni(0, Word::Reset(vec![]))), []);
    assert_eq!(known.hear(Heard::Cni(1, Word::Reset(vec![SILENT]))), []);
    assert_eq!(known.hear(Heard::Felix(0, Word::NotServed)), []);
    assert_eq!(known.hear(Heard::Felix(1, Word::Reset(vec![Settings::default()]))), []);
    let told = known.hear(Heard::Version(Word::Reset(vec![version("v3.26.1", Some(true))])));
    let felix = Felix {
        version: Some("v3.26.1".into()),
        heeds_switch: Some(true),
        spoofing: Some(false),
        bypass: Some(false),
    };
    let [What::Feature(Feature::Disabled { .. }), What::Felix(told_felix), last] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((told_felix, last), (&felix, &seeing()));
    assert_eq!(known.hear(Heard::Felix(1, Word::Seeing)), []);
    assert_eq!(known.hear(Heard::Cni(0, Word::Applied(SILENT))), []);

    let told = known.hear(Heard::Felix(1, Word::Applied(floating(Some(true)))));
    assert!(matches!(&told[..], [What::Feature(Feature::Enabled { .. })]));
    assert_eq!(known.hear(Heard::Felix(1, Word::Applied(floating(Some(true))))), []);
    let told = known.hear(Heard::Felix(1, Word::Deleted(floating(Some(true)))));
    assert!(matches!(&told[..], [What::Feature(Feature::Disabled { .. })]));

    let any = Settings { floating_ips: None, spoofing: Some(true) };
    let told = known.hear(Heard::Felix(1, Word::Applied(any)));
    assert_eq!(told, [What::Felix(Felix { spoofing: Some(true), ..felix.clone() })]);
    // The node's own object wins.
    let disabled = Settings { floating_ips: None, spoofing: Some(false) };
    let told = known.hear(Heard::Felix(0, Word::Applied(disabled)));
    assert_eq!(told, [What::Felix(felix.clone())]);
    let bypass = Switches { ip_addrs_no_ipam: Switch::On, ..SILENT };
    let told = known.hear(Heard::Cni(0, Word::Applied(bypass)));
    assert_eq!(told, [What::Felix(Felix { bypass: Some(true), ..felix.clone() })]);
    let malformed = Switches { ip_addrs_no_ipam: Switch::Malformed, ..SILENT };
    let told = known.hear(Heard::Cni(0, Word::Applied(malformed)));
    assert_eq!(told, [What::Felix(Felix { bypass: None, ..felix })]);
}

#[test]
fn a_configuration_that_nobody_can_read_says_nothing_of_the_bypass() {
    let bypass = |cni| reading([Some(None); 2], cni, Some(None)).felix().bypass;
    assert_eq!(bypass([Some(None), Some(None)]), None);
    assert_eq!(bypass([None, Some(Some(SILENT))]), None);
    assert_eq!(bypass([Some(Some(SILENT)), Some(None)]), Some(false));
}

#[test]
fn a_version_that_cannot_be_read_holds_nothing_up() {
    let mut known = known();
    for index in 0..2 {
        known.hear(Heard::Cni(index, Word::Reset(vec![])));
        known.hear(Heard::Felix(index, Word::Reset(vec![])));
    }
    let told = known.hear(Heard::Version(Word::Blind("a".into())));
    let felix = Felix { spoofing: Some(false), ..Felix::default() };
    let blind = What::Blind(Sense::Feature, Some("a".into()));
    assert!(matches!(&told[0], What::Feature(Feature::Disabled { .. })), "{told:?}");
    assert_eq!(told[1..], [What::Felix(felix), blind]);
    // What was read stays known while nothing is heard.
    known.hear(Heard::Version(Word::Reset(vec![version("v3.22.1", Some(false))])));
    assert_eq!(known.hear(Heard::Version(Word::Seeing)), [seeing()]);
    known.hear(Heard::Version(Word::Blind("b".into())));
    assert!(feature(&known).contains("Calico v3.22.1 does not heed"));
}
