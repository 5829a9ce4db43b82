//! A node as far as it matters here. What its status says beside, above all which images it has, is
//! ten times as long: it is passed over where it is read, and never held in memory.

use std::borrow::Cow;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::NodeAddress;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// A node of the API, read in part.
#[derive(Clone, Default, Debug, Deserialize)]
pub struct LeanNode {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted of it.
    pub spec: Option<LeanNodeSpec>,
    /// How it is.
    pub status: Option<LeanNodeStatus>,
}

/// What is wanted of a node, as far as it matters.
#[derive(Clone, Default, Debug, Deserialize)]
pub struct LeanNodeSpec {
    /// The range of its pods' addresses.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// The ranges, by family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
}

/// How a node is, as far as it matters.
#[derive(Clone, Default, Debug, Deserialize)]
pub struct LeanNodeStatus {
    /// Its addresses.
    pub addresses: Option<Vec<NodeAddress>>,
}

// === impl LeanNode ===

impl Resource for LeanNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
