//! Which resource a path names.

use super::kind::Kind;
use super::refusal::Refusal;
use super::store::Key;
use super::write::Part;

/// A path below `/api/v1` or `/apis/GROUP/VERSION`.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) kind: &'static Kind,
    /// None: all namespaces, or an object of the cluster.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) part: Part,
}

// === impl Target ===

impl Target {
    /// Reads a path. None when it is not below a group's version, so that it may be discovery.
    pub(super) fn parse(path: &str) -> Option<Result<Self, Refusal>> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        if rest.is_empty() {
            return None;
        }
        Some(Self::within(group, version, rest))
    }

    fn within(group: &str, version: &str, rest: &[&str]) -> Result<Self, Refusal> {
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let (plural, name, part) = match rest {
            [plural] => (*plural, None, Part::Main),
            [plural, name] => (*plural, Some(*name), Part::Main),
            [plural, name, "status"] => (*plural, Some(*name), Part::Status),
            _ => return Err(Refusal::unknown_path()),
        };
        let kind = Kind::of_path(group, version, plural)?;
        let in_place = match (kind.namespaced, namespace) {
            (true, None) => name.is_none(),
            (true, Some(_)) | (false, None) => true,
            (false, Some(_)) => false,
        };
        if !in_place || (part == Part::Status && !kind.status) {
            return Err(Refusal::unknown_path());
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { kind, namespace: owned(namespace), name: owned(name), part })
    }

    /// The namespace; empty for the whole cluster.
    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// The object; 405 when the path names a collection.
    pub(super) fn key(&self) -> Result<Key, Refusal> {
        let name = self.name.as_deref().ok_or_else(Refusal::method_not_allowed)?;
        Ok(Key::new(self.kind, self.namespace(), name))
    }

    /// Whether an object is within the collection that the path names.
    pub(super) fn holds(&self, key: &Key) -> bool {
        key.is_of(self.kind)
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_objects_and_their_status() {
        let target = |path| Target::parse(path).unwrap().unwrap();
        let all = target("/api/v1/pods");
        assert_eq!((all.kind.name, all.namespace, all.name), ("Pod", None, None));
        let one = target("/api/v1/namespaces/a/pods/b/status");
        assert_eq!(
            (one.namespace(), one.name.as_deref(), one.part),
            ("a", Some("b"), Part::Status)
        );
        let custom = target("/apis/crd.projectcalico.org/v1/ippools/default");
        assert_eq!((custom.kind.name, custom.namespace()), ("IPPool", ""));
    }

    #[test]
    fn other_paths_are_not_found_or_not_resources() {
        for wrong in [
            "/api/v2/pods",
            "/api/v1/pods/a",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/nodes/a/log",
            "/apis/apps/v1/pods",
            "/apis/crd.projectcalico.org/v1/ippools/a/status",
        ] {
            assert_eq!(Target::parse(wrong).unwrap().unwrap_err().code, 404, "{wrong}");
        }
        for discovery in ["/", "/version", "/api", "/api/v1", "/apis/apps", "/apis/apps/v1"] {
            assert!(Target::parse(discovery).is_none(), "{discovery}");
        }
    }
}
