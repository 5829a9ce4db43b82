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
use super::parse::Parsed;
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
    let parsed = information(object);
    let taken = counters.rejections.take(Ok(parsed)).flatten();
    taken.map_or_else(Version::default, |information| {
        let heeds_switch = match information.product {
            Product::Calico => information.calico.heeds_switch(Product::Calico),
            // It says here which Calico it is made of, which is not what its fixes go by.
            Product::Enterprise => None,
        };
        Version { text: Some(information.text), heeds_switch }
    })
}

/// What ClusterInformation says of the version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Information {
    /// `spec.calicoVersion`, as it is written there.
    pub(crate) text: Box<str>,
    /// The same, parsed.
    pub(crate) calico: Release,
    /// Which product it is.
    pub(crate) product: Product,
    /// `spec.cnxVersion`: Calico Enterprise's own version.
    pub(crate) enterprise: Option<Box<str>>,
}

/// Reads ClusterInformation; `None` where it says nothing of a version.
pub(crate) fn information(object: &DynamicObject) -> Parsed<Option<Information>> {
    let spec = &object.data["spec"];
    let nothing = Parsed { value: None, rejections: Vec::new() };
    let text = match &spec["calicoVersion"] {
        Value::Null => return nothing,
        Value::String(text) if text.is_empty() => return nothing,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let calico = match Release::parse(&text) {
        Some(parsed) if text.len() <= 64 => parsed,
        _ => {
            let (name, field) = ("clusterinformation default", "spec.calicoVersion");
            let rejection = Rejection::new(name, field, Reason::NotAVersion, &text);
            return Parsed { value: None, rejections: vec![rejection] };
        }
    };
    // Calico Enterprise counts its versions anew.
    let other_product = match &spec["variant"] {
        Value::Null => false,
        Value::String(variant) => !variant.is_empty() && !variant.eq_ignore_ascii_case("Calico"),
        _ => true,
    } || !spec["cnxVersion"].is_null();
    let product = if other_product { Product::Enterprise } else { Product::Calico };
    let enterprise = spec["cnxVersion"].as_str().filter(|text| Release::parse(text).is_some());
    let enterprise = enterprise.map(Into::into);
    let value = Some(Information { text: text.into(), calico, product, enterprise });
    Parsed { value, rejections: Vec::new() }
}

#[cfg(test)]
impl Information {
    /// What a ClusterInformation of this version and product says.
    pub(crate) fn of(text: &str, product: Product) -> Self {
        let calico = Release::parse(text).expect("a version");
        Self { text: text.into(), calico, product, enterprise: None }
    }
}

/// Who counts the versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Product {
    /// Calico, the open source project.
    Calico,
    /// Calico Enterprise, which Tigera sells.
    Enterprise,
}

/// A version as a product or a vendor writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Release {
    numbers: (u32, u32, u32),
    more: More,
}

/// What stands behind a version's three numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum More {
    /// Nothing, or the name of an architecture: it is the release.
    Nothing,
    /// It is from before the release: a development build, a release candidate.
    Before,
    /// Two numbers: a preview of Calico Enterprise, or a vendor's count of builds of Calico.
    Preview,
    /// It is so many commits behind the release, as `git describe` counts.
    Behind,
    /// A vendor's own count of its builds of the release.
    Vendors,
}

impl Release {
    /// `v3.22.1`, with or without the letter, and with anything printable behind it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
        let end = text.find(['-', '+', '_']).unwrap_or(text.len());
        let (numbers, rest) = text.split_at(end);
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| digits)
        };
        let mut numbers = numbers.split('.').map(number);
        let version = (numbers.next()??, numbers.next()??, numbers.next()??);
        let printable = rest.bytes().all(|byte| byte.is_ascii_graphic());
        let more = More::of(rest.trim_start_matches(['-', '+', '_']));
        (numbers.next().is_none() && printable).then_some(Self { numbers: version, more })
    }

    /// Whether the Felix of this version heeds the switch of floating IPs, by the bulletin
    /// (TTA-2022-001): the fix is in Calico v3.20.5, v3.21.5, v3.22.2 and v3.23.0, and in Calico
    /// Enterprise v3.11.4, v3.12.1 and v3.13.0. `None` where nobody can say: builds that are none of
    /// the releases may be from before or after it, next to where it came, and a vendor may have
    /// carried it over to the last release without it.
    pub(crate) fn heeds_switch(self, product: Product) -> Option<bool> {
        const CALICO: &[(u32, u32, u32)] = &[(3, 20, 5), (3, 21, 5), (3, 22, 2), (3, 23, 0)];
        const ENTERPRISE: &[(u32, u32, u32)] = &[(3, 11, 4), (3, 12, 1), (3, 13, 0)];
        let fixed = match product {
            Product::Calico => CALICO,
            Product::Enterprise => ENTERPRISE,
        };
        let (major, minor, patch) = self.numbers;
        let is = fixed.contains(&self.numbers);
        let next_is = fixed.contains(&(major, minor, patch.saturating_add(1)));
        match self.more {
            More::Before if is => return None,
            More::Preview if is && product == Product::Enterprise => return None,
            More::Preview if next_is && product == Product::Calico => return None,
            More::Behind | More::Vendors if next_is => return None,
            _ => {}
        }
        Some(match fixed.iter().find(|fixed| (fixed.0, fixed.1) == (major, minor)) {
            Some(fixed) => self.numbers >= *fixed,
            None => fixed.last().is_some_and(|last| self.numbers > *last),
        })
    }
}

impl More {
    fn of(rest: &str) -> Self {
        const ARCHITECTURES: [&str; 5] = ["amd64", "arm64", "ppc64le", "s390x", "armv7"];
        const BEFORE: [&str; 7] = ["0.dev", "dev", "rc", "beta", "alpha", "pre", "calient"];
        let lower = rest.to_ascii_lowercase();
        if rest.is_empty() || ARCHITECTURES.contains(&&*lower) {
            return Self::Nothing;
        }
        let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let mut parts = lower.split('-');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        // `git describe` writes the count of commits and `g` with the first digits of the last.
        if number(first) && second.starts_with('g') {
            return Self::Behind;
        }
        // Previews of Calico Enterprise are v3.13.0-1.0 and the like.
        let preview = first.split_once('.').is_some_and(|(a, b)| number(a) && number(b));
        if BEFORE.iter().any(|word| lower.starts_with(word)) {
            Self::Before
        } else if preview {
            Self::Preview
        } else {
            Self::Vendors
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bands_are_those_of_the_bulletin() {
        let heeds =
            |text: &str| Release::parse(text).map(|release| release.heeds_switch(Product::Calico));
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
