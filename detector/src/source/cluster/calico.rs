//! Calico's own kinds of objects, which are served in one of two groups.

use kube::api::{ApiResource, DynamicObject};
use kube::{Api, Client};

/// Calico's storage group, and the native one that replaces it from v3.32 on where it is not
/// installed: the rule of libcalico-go/lib/backend/k8s/discovery.go.
pub(crate) const GROUPS: [(&str, &str); 2] =
    [("crd.projectcalico.org", "v1"), ("projectcalico.org", "v3")];

/// The interfaces to a kind of Calico's, the one to be asked first in front.
pub(crate) fn apis(client: &Client, kind: &str, plural: &str) -> Vec<Api<DynamicObject>> {
    let api = |(group, version): (&str, &str)| {
        let resource = ApiResource {
            group: group.into(),
            version: version.into(),
            api_version: format!("{group}/{version}"),
            kind: kind.into(),
            plural: plural.into(),
        };
        Api::all_with(client.clone(), &resource)
    };
    GROUPS.map(api).into()
}
