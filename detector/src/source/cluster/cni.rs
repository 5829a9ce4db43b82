//! The floating IP switch in the CNI plugin's configuration.
//!
//! `cni_network_config` of ConfigMap `kube-system/calico-config` is JSON only after calico-node's
//! installer has replaced its placeholders: `"mtu": __CNI_MTU__` stands there without quotes, and
//! people keep abbreviated or hand-edited copies. So it is not parsed as JSON but read as a row of
//! words and signs, of which the switch is five in a row: `feature_control : { ... floating_ips :
//! true`. Keys are compared as Go does, without regard to case; of several the last counts.

/// What the text says of `feature_control.floating_ips`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Switch {
    /// `true`.
    On,
    /// `false`.
    Off,
    /// Nothing, which the plugin takes for `false`.
    Absent,
    /// Neither `true` nor `false`: the plugin would refuse its configuration.
    Malformed,
}

/// Reads the switch out of the text.
pub(super) fn floating_ips(text: &str) -> Switch {
    let mut tokens = Tokens(text).peekable();
    let mut switch = Switch::Absent;
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
                if name.eq_ignore_ascii_case("floating_ips") {
                    switch = match tokens.next() {
                        Some(Token::Word("true")) => Switch::On,
                        Some(Token::Word("false")) => Switch::Off,
                        // To Go, null leaves a field as it is.
                        Some(Token::Word("null")) => switch,
                        _ => Switch::Malformed,
                    };
                }
            }
            Token::Sign(b'{') if depth > 0 => depth += 1,
            Token::Sign(b'}') if depth > 0 => depth -= 1,
            _ => {}
        }
    }
    switch
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
    use super::*;

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
}
