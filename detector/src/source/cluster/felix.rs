//! FelixConfigurations, as far as they matter here.
//!
//! Felix reads `node.<name>` and then `default`; its environment would win over both and cannot be
//! read from here. Words are compared without regard to case (oneof in
//! felix/config/config_params.go).

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use kube::api::DynamicObject;
use kube::{Client, ResourceExt as _};
use serde_json::Value;

use super::counters::Counters;
use super::parse::Parsed;
use super::rejection::{Reason, Rejection};
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, calico};

/// What one FelixConfiguration says; `None` where it says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Settings {
    /// `floatingIPs`: Enabled or Disabled.
    pub(crate) floating_ips: Option<bool>,
    /// `workloadSourceSpoofing`: Any or Disabled.
    pub(crate) spoofing: Option<bool>,
}

/// The FelixConfiguration of this name.
pub(super) fn watch(
    client: &Client,
    name: &str,
    counters: &Arc<Counters>,
) -> BoxStream<'static, Word<Settings>> {
    let scope = Scope {
        what: "list and watch felixconfigurations".into(),
        fields: Some(format!("metadata.name={name}")),
        cached: false,
        optional: true,
        patience: SLOW_PATIENCE,
    };
    let apis = calico::apis(client, "FelixConfiguration", "felixconfigurations");
    let read = {
        let counters = Arc::clone(counters);
        move |object: DynamicObject| Some(read(&object, &counters))
    };
    follow(apis, scope, Arc::clone(counters), read).boxed()
}

fn read(object: &DynamicObject, counters: &Counters) -> Settings {
    counters.rejections.take(Ok(settings(object))).unwrap_or_default()
}

/// Reads a FelixConfiguration.
pub(crate) fn settings(object: &DynamicObject) -> Parsed<Settings> {
    let name = || format!("FelixConfiguration {}", object.name_any());
    let mut rejections = Vec::new();
    let mut word = |key: &str, field: &'static str, on: &str| match &object.data["spec"][key] {
        Value::Null => None,
        Value::String(text) => match switch(text, on) {
            Ok(switch) => switch,
            Err(reason) => {
                rejections.push(Rejection::new(&name(), field, reason, text));
                None
            }
        },
        other => {
            let text = other.to_string();
            rejections.push(Rejection::new(&name(), field, Reason::UnknownWord, &text));
            None
        }
    };
    let value = Settings {
        floating_ips: word("floatingIPs", "spec.floatingIPs", "Enabled"),
        spoofing: word("workloadSourceSpoofing", "spec.workloadSourceSpoofing", "Any"),
    };
    Parsed { value, rejections }
}

/// One of Felix' words for on and off; `None` for an empty one, which to Felix is none.
pub(crate) fn switch(text: &str, on: &str) -> Result<Option<bool>, Reason> {
    match text {
        "" => Ok(None),
        text if text.eq_ignore_ascii_case(on) => Ok(Some(true)),
        text if text.eq_ignore_ascii_case("Disabled") => Ok(Some(false)),
        _ => Err(Reason::UnknownWord),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn felix_words_are_read_as_felix_reads_them() {
        let counters = Counters::default();
        let said = |spec: Value| {
            let object = json!({"metadata": {"name": "default"}, "spec": spec});
            let settings = read(&serde_json::from_value(object).unwrap(), &counters);
            (settings.floating_ips, settings.spoofing)
        };
        assert_eq!(said(json!({"floatingIPs": "Enabled"})), (Some(true), None));
        assert_eq!(said(json!({"floatingIPs": "disabled"})), (Some(false), None));
        assert_eq!(said(json!({"workloadSourceSpoofing": "any"})), (None, Some(true)));
        assert_eq!(said(json!({"workloadSourceSpoofing": "Disabled"})), (None, Some(false)));
        assert_eq!(said(json!({"workloadSourceSpoofing": ""})), (None, None));
        assert_eq!(said(json!({})), (None, None));
        assert_eq!(said(json!(null)), (None, None));
        assert_eq!(counters.counts().rejections, 0);
        assert_eq!(said(json!({"floatingIPs": "yes"})), (None, None));
        assert_eq!(said(json!({"floatingIPs": true})), (None, None));
        assert_eq!(said(json!({"workloadSourceSpoofing": "Enabled"})), (None, None));
        assert_eq!(counters.counts().rejections, 3);
    }
}
