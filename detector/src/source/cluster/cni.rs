//! The switches in the CNI plugin's configuration.
//!
//! `cni_network_config` of ConfigMap `kube-system/calico-config` is JSON only after calico-node's
//! installer has replaced its placeholders: `"mtu": __CNI_MTU__` stands there without quotes, and
//! people keep abbreviated or hand-edited copies. So it is not parsed as JSON but read as a row of
//! words and signs, of which a switch is five in a row: `feature_control : { ... floating_ips :
//! true`. Keys are compared as Go does, without regard to case; of several the last counts. The
//! plugin looks at both switches when a pod is made, and never again (cni-plugin/pkg/k8s/k8s.go).
//!
//! The Tigera operator keeps the same text in ConfigMap `calico-system/cni-config`, key `config`, and
//! never writes a switch there.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};

use super::SLOW_PATIENCE;
use super::counters::Counters;
use super::parse::Parsed;
use super::rejection::{Reason, Rejection};
use super::watch::{Scope, Word, follow};

/// A place where the configuration is kept.
pub(crate) struct Place {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
    pub(crate) key: &'static str,
}

/// The places, the one that counts in front.
pub(crate) const PLACES: [Place; 2] = [
    Place { namespace: "kube-system", name: "calico-config", key: "cni_network_config" },
    Place { namespace: "calico-system", name: "cni-config", key: "config" },
];

/// What the text says of one switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    /// `true`.
    On,
    /// `false`.
    Off,
    /// Nothing, which the plugin takes for `false`.
    Absent,
    /// Neither `true` nor `false`: the plugin would refuse its configuration.
    Malformed,
}

/// What the text says of the switches in `feature_control`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switches {
    /// `floating_ips`: whether pods may be made with annotation `floatingIPs`.
    pub floating_ips: Switch,
    /// `ip_addrs_no_ipam`: whether pods may be made with annotation `ipAddrsNoIpam`.
    pub ip_addrs_no_ipam: Switch,
}

/// Reads the switches out of the text.
pub fn read(text: &str) -> Switches {
    let mut tokens = Tokens(text).peekable();
    let mut switches = Switches { floating_ips: Switch::Absent, ip_addrs_no_ipam: Switch::Absent };
    // How many braces are open since `feature_control`'s own.
    let mut depth = 0_u32;
    while let Some(token) = tokens.next() {
        let key = matches!(token, Token::String(_)) && tokens.peek() == Some(&Token::Sign(b':'));
        match token {
            Token::String(name) if key && depth == 0 => {
                tokens.next();
                if name.eq_ignore_ascii_case("feature_control")
                    && tokens.next_if_eq(&Token::Sign(b'{')).is_some()
                {
                    depth = 1;
                }
            }
            Token::String(name) if key && depth == 1 => {
                tokens.next();
                let known = [
                    ("floating_ips", &mut switches.floating_ips),
                    ("ip_addrs_no_ipam", &mut switches.ip_addrs_no_ipam),
                ];
                let named = known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
                if let Some((_, switch)) = named {
                    *switch = match tokens.next() {
                        Some(Token::Word("true")) => Switch::On,
                        Some(Token::Word("false")) => Switch::Off,
                        // To Go, null leaves a field as it is.
                        Some(Token::Word("null")) => *switch,
                        _ => Switch::Malformed,
                    };
                }
            }
            Token::Sign(b'{') if depth > 0 => depth += 1,
            Token::Sign(b'}') if depth > 0 => depth -= 1,
            _ => {}
        }
    }
    switches
}

// === impl Place ===

impl Place {
    /// The ConfigMap as people write it.
    pub(crate) fn object(&self) -> String {
        format!("ConfigMap {}/{}", self.namespace, self.name)
    }

    /// What stands in this place.
    pub(super) fn watch(
        &'static self,
        client: &Client,
        counters: &Arc<Counters>,
    ) -> BoxStream<'static, Word<Switches>> {
        let api = Api::<ConfigMap>::namespaced(client.clone(), self.namespace);
        let scope = Scope {
            what: format!("list and watch configmaps of {}", self.namespace),
            fields: Some(format!("metadata.name={}", self.name)),
            cached: false,
            optional: false,
            patience: SLOW_PATIENCE,
        };
        let read = {
            let counters = Arc::clone(counters);
            move |object: ConfigMap| Some(self.read(&object, &counters))
        };
        follow(vec![api], scope, Arc::clone(counters), read).boxed()
    }

    fn read(&self, object: &ConfigMap, counters: &Counters) -> Switches {
        let text = object.data.as_ref().and_then(|data| data.get(self.key));
        let Parsed { value, rejections } = self.switches(text.map_or("", |text| text));
        counters.rejections.report(rejections);
        value
    }

    /// Reads the text that stands under the key.
    pub(crate) fn switches(&self, text: &str) -> Parsed<Switches> {
        let value = read(text);
        let names = [
            ("feature_control.floating_ips", value.floating_ips),
            ("feature_control.ip_addrs_no_ipam", value.ip_addrs_no_ipam),
        ];
        let malformed = names.iter().filter(|(_, switch)| *switch == Switch::Malformed);
        let reject =
            |name: &str| Rejection::new(&self.object(), self.key, Reason::UnknownWord, name);
        Parsed { value, rejections: malformed.map(|(name, _)| reject(name)).collect() }
    }
}

/// A piece of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token<'a> {
    /// What stands in quotes, escapes left as they are: no key that matters has any.
    String(&'a str),
    /// A brace, bracket, colon or comma.
    Sign(u8),
    /// Anything else in one piece: a number, `true`, a placeholder.
    Word(&'a str),
}

/// The rest of the text, to be taken piece by piece.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let text = self.0.trim_start();
        let first = *text.as_bytes().first()?;
        let (token, length) = match first {
            b'{' | b'}' | b'[' | b']' | b':' | b',' => (Token::Sign(first), 1),
            b'"' => {
                let inside = &text[1..];
                let mut escaped = false;
                let end = inside.bytes().position(|byte| {
                    let ends = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    ends
                });
                // A string that does not end takes the rest of the text with it.
                let end = end.unwrap_or(inside.len());
                (Token::String(&inside[..end]), (end + 2).min(text.len()))
            }
            _ => {
                let ends = |c: char| c.is_whitespace() || "{}[]:,\"".contains(c);
                let end = text.find(ends).unwrap_or(text.len());
                (Token::Word(&text[..end]), end)
            }
        };
        self.0 = &text[length..];
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn floating_ips(text: &str) -> Switch {
        read(text).floating_ips
    }

    /// As calico.yaml has it, with the feature on.
    const TEMPLATE: &str = r#"{
      "name": "k8s-pod-network",
      "cniVersion": "0.3.1",
      "plugins": [
        {
          "type": "calico",
          "log_level": "info",
          "nodename": "__KUBERNETES_NODE_NAME__",
          "mtu": __CNI_MTU__,
          "ipam": {"type": "calico-ipam"},
          "policy": {"type": "k8s"},
          "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__"},
          "feature_control": {"ip_addrs_no_ipam": false, "floating_ips": true}
        },
        {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
      ]
    }"#;

    /// As the security bulletin abbreviates it: no closing braces, no commas where objects end.
    const ABBREVIATED: &str = r#"
      "name": "k8s-pod-network",
      "plugins": [
          "type": "calico",
          "mtu": __CNI_MTU__,
          "ipam": {
              "type": "calico-ipam"
          "feature_control": {
              "floating_ips": true
          "type": "portmap",
          "snat": true,
          "capabilities": {"portMappings": true}"#;

    #[test]
    fn the_switch_is_read_in_any_shape_people_keep_it_in() {
        assert_eq!(floating_ips(TEMPLATE), Switch::On);
        assert_eq!(floating_ips(ABBREVIATED), Switch::On);
        for text in [TEMPLATE, ABBREVIATED] {
            let off = text.replace(r#""floating_ips": true"#, r#""floating_ips": false"#);
            assert_eq!(floating_ips(&off), Switch::Off);
            let absent = text.replace(r#""floating_ips": true"#, r#""other": true"#);
            assert_eq!(floating_ips(&absent), Switch::Absent);
        }
        let rendered = TEMPLATE.replace("__CNI_MTU__", "1440");
        assert!(serde_json::from_str::<serde_json::Value>(&rendered).is_ok());
        assert_eq!(floating_ips(&rendered), Switch::On);
    }

    #[test]
    fn only_the_switch_itself_counts() {
        let cases = [
            ("", Switch::Absent),
            ("{}", Switch::Absent),
            (r#"{"floating_ips": true}"#, Switch::Absent),
            (r#"{"log": "feature_control: {floating_ips: true"}"#, Switch::Absent),
            (r#"{"a": "\"feature_control\": {\"floating_ips\": true}"}"#, Switch::Absent),
            (r#"{"feature_control": {"x": {"floating_ips": true}}}"#, Switch::Absent),
            (r#"{"feature_control": {}, "floating_ips": true}"#, Switch::Absent),
            (r#"{"feature_control": {"x": {}, "floating_ips": true}}"#, Switch::On),
            (r#"{"Feature_Control": {"FLOATING_IPS": true}}"#, Switch::On),
            (r#"{"feature_control":{"floating_ips":true}}"#, Switch::On),
            (r#"{"feature_control": {"floating_ips": true, "floating_ips": false}}"#, Switch::Off),
            (r#"{"feature_control": {"floating_ips": "true"}}"#, Switch::Malformed),
            (r#"{"feature_control": {"floating_ips": __X__}}"#, Switch::Malformed),
            (r#"{"feature_control": {"floating_ips": "#, Switch::Malformed),
            (r#"{"feature_control": {"floating_ips": null}}"#, Switch::Absent),
            (r#"{"feature_control": null, "floating_ips": true}"#, Switch::Absent),
        ];
        for (text, switch) in cases {
            assert_eq!(floating_ips(text), switch, "{text}");
        }
    }

    #[test]
    fn any_text_is_read_to_its_end() {
        for text in [TEMPLATE, ABBREVIATED, "\"\\", "\"a\\\"", "é\"ü:{", "\u{a0}"] {
            for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
                let mut rest = Tokens(&text[..end]);
                while rest.next().is_some() {}
                assert_eq!(rest.0.trim(), "");
                floating_ips(&text[..end]);
            }
        }
    }

    #[test]
    fn both_switches_are_read_apart() {
        let of = |text: &str| {
            let Switches { floating_ips, ip_addrs_no_ipam } = read(text);
            (floating_ips, ip_addrs_no_ipam)
        };
        assert_eq!(of(TEMPLATE), (Switch::On, Switch::Off));
        let on = TEMPLATE.replace(r#""ip_addrs_no_ipam": false"#, r#""ip_addrs_no_ipam": true"#);
        assert_eq!(of(&on), (Switch::On, Switch::On));
        assert_eq!(of(ABBREVIATED), (Switch::On, Switch::Absent));
        let bypass = r#"{"feature_control": {"ip_addrs_no_ipam": 1, "floating_ips": false}}"#;
        assert_eq!(of(bypass), (Switch::Off, Switch::Malformed));
    }

    #[test]
    fn a_config_map_is_read_for_its_one_key() {
        let counters = Counters::default();
        let said = |place: usize, data: serde_json::Value| {
            let object = serde_json::from_value(json!({ "data": data })).unwrap();
            PLACES[place].read(&object, &counters).floating_ips
        };
        let text = |switch: &str| {
            format!(r#"{{"mtu": __CNI_MTU__, "feature_control": {{"floating_ips": {switch}}}}}"#)
        };
        assert_eq!(said(0, json!({"cni_network_config": text("true")})), Switch::On);
        assert_eq!(said(0, json!({"cni_network_config": text("false")})), Switch::Off);
        assert_eq!(said(0, json!({"config": text("true")})), Switch::Absent);
        assert_eq!(said(1, json!({"config": text("true")})), Switch::On);
        assert_eq!(said(0, json!(null)), Switch::Absent);
        assert_eq!(counters.counts().rejections, 0);
        assert_eq!(said(0, json!({"cni_network_config": text("maybe")})), Switch::Malformed);
        assert_eq!(counters.counts().rejections, 1);
    }
}
