//! Field selectors: the labels that each kind knows, and no others.

use std::borrow::Cow;

use serde_json::Value;

use super::kind::Kind;
use super::refusal::Refusal;

/// All of its terms must hold.
#[derive(Debug, Default)]
pub(super) struct FieldSelector(Vec<Term>);

#[derive(Debug)]
struct Term {
    field: Field,
    equal: bool,
    value: String,
}

/// How the value of a label is read from an object.
#[derive(Clone, Copy, Debug)]
enum Field {
    /// A text at a JSON pointer; empty where there is none.
    Text(&'static str),
    /// A boolean at a JSON pointer; `false` where there is none.
    Flag(&'static str),
    /// A label that is accepted but has no value: it equals the empty text only.
    Void,
}

// === impl FieldSelector ===

impl FieldSelector {
    /// Reads `label=value,label!=value`; an unknown label is refused with 400.
    pub(super) fn parse(kind: &Kind, text: &str) -> Result<Self, Refusal> {
        let terms = text.split(',').filter(|term| !term.is_empty());
        terms.map(|term| Term::parse(kind, term)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| (term.field.read(object) == term.value) == term.equal)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Term ===

impl Term {
    fn parse(kind: &Kind, term: &str) -> Result<Self, Refusal> {
        let parts = |operator| term.split_once(operator);
        let (label, value, equal) = match (parts("!="), parts("=="), parts("=")) {
            (Some((label, value)), ..) => (label, value, false),
            (_, Some((label, value)), _) | (.., Some((label, value))) => (label, value, true),
            _ => {
                let message = format!("invalid selector: {term:?}; it needs =, == or !=");
                return Err(Refusal::bad_request(message));
            }
        };
        Ok(Self { field: Field::of(kind, label)?, equal, value: value.to_owned() })
    }
}

// === impl Field ===

impl Field {
    /// Sources: pkg/apis/core/v1/conversion.go (labels accepted), `ToSelectableFields` of
    /// pkg/registry/core/pod (their values), apiextensions' `crdConversionRESTOptionsGetter`.
    fn of(kind: &Kind, label: &str) -> Result<Self, Refusal> {
        Ok(match (kind.plural, label) {
            (_, "metadata.name") => Self::Text("/metadata/name"),
            (_, "metadata.namespace") if kind.namespaced => Self::Text("/metadata/namespace"),
            ("pods", "spec.nodeName") => Self::Text("/spec/nodeName"),
            ("pods", "spec.serviceAccountName") => Self::Text("/spec/serviceAccountName"),
            ("pods", "spec.restartPolicy") => Self::Text("/spec/restartPolicy"),
            ("pods", "spec.hostNetwork") => Self::Flag("/spec/hostNetwork"),
            ("pods", "status.phase") => Self::Text("/status/phase"),
            // The first address only.
            ("pods", "status.podIP") => Self::Text("/status/podIP"),
            ("pods", "status.podIPs") => Self::Void,
            ("nodes", "spec.unschedulable") => Self::Flag("/spec/unschedulable"),
            ("services", "spec.clusterIP") => Self::Text("/spec/clusterIP"),
            ("services", "spec.type") => Self::Text("/spec/type"),
            ("events", "reason") => Self::Text("/reason"),
            ("events", "type") => Self::Text("/type"),
            _ => {
                let message = format!("field label not supported: {label}");
                return Err(Refusal::bad_request(message));
            }
        })
    }

    fn read(self, object: &Value) -> Cow<'_, str> {
        let at = |pointer| object.pointer(pointer);
        match self {
            Self::Text(pointer) => at(pointer).and_then(Value::as_str).unwrap_or_default().into(),
            Self::Flag(pointer) => {
                at(pointer).and_then(Value::as_bool).unwrap_or_default().to_string().into()
            }
            Self::Void => Cow::Borrowed(""),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terms_are_read_and_all_must_hold() {
        let kind = Kind::of_plural("pods").unwrap();
        let pod = json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "n1" },
                          "status": { "podIPs": [{ "ip": "10.0.0.1" }] } });
        let matches = |text| FieldSelector::parse(kind, text).unwrap().matches(&pod);
        assert!(matches(""));
        assert!(matches("spec.nodeName=n1,metadata.name==a"));
        assert!(matches("spec.hostNetwork=false,status.phase!=Failed,status.podIP="));
        assert!(!matches("spec.nodeName=n1,metadata.name!=a"));
        assert!(!matches("spec.nodeName="));
        assert!(!matches("status.podIPs=10.0.0.1"));
        for wrong in ["spec.nodename=n1", "metadata.labels=x", "spec.nodeName"] {
            assert_eq!(FieldSelector::parse(kind, wrong).unwrap_err().code, 400, "{wrong}");
        }
    }
}
