//! Which version of Calico runs, and whether its Felix heeds the switch of floating IPs.
//!
//! calico-node writes its version to ClusterInformation `default` when it starts. It is one value
//! for the whole cluster, which may lie in the middle of an upgrade, and a vendor's rebuild may have
//! the fix without saying so: what is derived from it is true "by version", not proven.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use kube::Client;
use kube::api::DynamicObject;
use serde_json::Value;

use super::counters::Counters;
use super::rejection::{Reason, Rejection};
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, calico};

/// What ClusterInformation says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Version {
    /// The version, as it is written there.
    pub(super) text: Option<Box<str>>,
    /// Whether Felix heeds FelixConfiguration `floatingIPs`; `None` where nobody can say.
    pub(super) heeds_switch: Option<bool>,
}

/// ClusterInformation `default`.
pub(super) fn watch(
    client: &Client,
    counters: &Arc<Counters>,
) -> BoxStream<'static, Word<Version>> {
    let scope = Scope {
        what: "list and watch clusterinformations".into(),
        fields: Some("metadata.name=default".into()),
        cached: false,
        optional: true,
        patience: SLOW_PATIENCE,
    };
    let apis = calico::apis(client, "ClusterInformation", "clusterinformations");
    let read = {
        let counters = Arc::clone(counters);
        move |object: DynamicObject| Some(read(&object, &counters))
    };
    follow(apis, scope, Arc::clone(counters), read).boxed()
}

fn read(object: &DynamicObject, counters: &Counters) -> Version {
    let spec = &object.data["spec"];
    let text = match &spec["calicoVersion"] {
        Value::Null => return Version::default(),
        Value::String(text) if text.is_empty() => return Version::default(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let parsed = match parse(&text) {
        Some(parsed) if text.len() <= 64 => parsed,
        _ => {
            let (name, field) = ("clusterinformation default", "spec.calicoVersion");
            counters.rejections.report([Rejection::new(name, field, Reason::NotAVersion, &text)]);
            return Version::default();
        }
    };
    // Calico Enterprise counts its versions anew, and says here which Calico it is made of, which
    // is not what its fixes go by.
    let other_product = match &spec["variant"] {
        Value::Null => false,
        Value::String(variant) => !variant.is_empty() && !variant.eq_ignore_ascii_case("Calico"),
        _ => true,
    } || !spec["cnxVersion"].is_null();
    let heeds_switch = if other_product { None } else { heeds_switch(parsed) };
    Version { text: Some(text.into()), heeds_switch }
}

/// A version's three numbers, and whether there is more behind them: a development build, a
/// release candidate, a vendor's.
type Parsed = ((u32, u32, u32), bool);

/// `v3.22.1`, with or without the letter, and with anything printable behind it.
fn parse(text: &str) -> Option<Parsed> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|_| digits)
    };
    let mut numbers = numbers.split('.').map(number);
    let version = (numbers.next()??, numbers.next()??, numbers.next()??);
    let printable = rest.bytes().all(|byte| byte.is_ascii_graphic());
    (numbers.next().is_none() && printable).then_some((version, !rest.is_empty()))
}

/// By the bulletin (TTA-2022-001): the fix is in v3.20.5, v3.21.5, v3.22.2, and v3.23.0. Builds that
/// are none of the releases may be from before or after it, next to where it came.
fn heeds_switch((version, unreleased): Parsed) -> Option<bool> {
    const FIXED: [(u32, u32, u32); 4] = [(3, 20, 5), (3, 21, 5), (3, 22, 2), (3, 23, 0)];
    let (major, minor, patch) = version;
    let near = FIXED.contains(&version) || FIXED.contains(&(major, minor, patch.saturating_add(1)));
    if unreleased && near {
        return None;
    }
    Some(match FIXED.iter().find(|fixed| (fixed.0, fixed.1) == (major, minor)) {
        Some(fixed) => version >= *fixed,
        None => version > FIXED[3],
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bands_are_those_of_the_bulletin() {
        let heeds = |text: &str| parse(text).map(heeds_switch);
        for text in ["v3.20.4", "v3.19.99", "v2.6.0", "v3.21.0", "v3.21.4", "v3.22.0", "v3.22.1"] {
            assert_eq!(heeds(text), Some(Some(false)), "{text}");
        }
        for text in ["v3.20.5", "3.20.6", "v3.21.5", "v3.22.2", "v3.23.0", "v3.32.1", "v4.0.0"] {
            assert_eq!(heeds(text), Some(Some(true)), "{text}");
        }
        // Neither release: who knows on which side of the fix.
        for text in ["v3.22.1-7-g0123abc", "v3.22.2-0.dev", "v3.23.0-rc1", "v3.20.4+vendor.3"] {
            assert_eq!(heeds(text), Some(None), "{text}");
        }
        assert_eq!(heeds("v3.22.0-rc1"), Some(Some(false)));
        assert_eq!(heeds("v3.30.0-0.dev-5-g0123abc"), Some(Some(true)));
        let wrong = [
            "",
            "v",
            "master",
            "v3.22",
            "v3.22.1.1",
            "v3.+2.1",
            "v3..1",
            "v3.22.1-a b",
            "v3.22.99999999999",
            "v3.22.1-\n",
        ];
        for text in wrong {
            assert_eq!(heeds(text), None, "{text}");
        }
    }

    #[test]
    fn cluster_information_is_read_for_its_version() {
        let counters = Counters::default();
        let read = |spec: Value| {
            let object = json!({"metadata": {"name": "default"}, "spec": spec});
            read(&serde_json::from_value(object).unwrap(), &counters)
        };
        let version = |text: &str, heeds_switch| Version { text: Some(text.into()), heeds_switch };
        let of = |text: &str| json!({"calicoVersion": text});
        assert_eq!(read(of("v3.22.1")), version("v3.22.1", Some(false)));
        assert_eq!(read(of("v3.26.0")), version("v3.26.0", Some(true)));
        let spec = json!({"calicoVersion": "v3.22.1", "variant": "Calico"});
        assert_eq!(read(spec), version("v3.22.1", Some(false)));
        for other in
            [json!({"variant": "TigeraSecureEnterprise"}), json!({"cnxVersion": "v3.12.0"})]
        {
            let mut spec = other;
            spec["calicoVersion"] = json!("v3.22.1");
            assert_eq!(read(spec), version("v3.22.1", None));
        }
        for absent in [json!(null), json!({}), of("")] {
            assert_eq!(read(absent), Version::default());
        }
        assert_eq!(counters.counts().rejections, 0);
        for wrong in
            [of("master"), json!({"calicoVersion": 7}), of(&format!("v3.1.1-{}", "a".repeat(99)))]
        {
            assert_eq!(read(wrong), Version::default());
        }
        assert_eq!(counters.counts().rejections, 3);
    }
}
