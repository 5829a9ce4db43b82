//! The custom resource: one entry of the allow-list as an object of the cluster.
//!
//! deploy/base/crd.yaml defines it for the API server; a test holds it against what is here. The schema
//! refuses most mistakes where they are typed. What it cannot see (host bits, say), and what a
//! server without the newest definition let through, is refused here by the rules of the
//! configuration file.

use detector_core::policy::Allowance;
use detector_core::workload::PodKey;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{ApiResource, DynamicObject};
use serde::{Deserialize, Serialize};

use super::status::Status;
use crate::config::value;
use crate::policy::Allowed;
use crate::source::cluster::rejection::{Reason, Rejection};
use crate::text::printable;

/// The group of the kind.
pub const GROUP: &str = "route-hijack-detector.io";
/// Its version.
pub const VERSION: &str = "v1";
/// Its name.
pub const KIND: &str = "FloatingIPAllowance";
/// Its name in paths.
pub const PLURAL: &str = "floatingipallowances";

/// `spec`: what may be, for whom, until when, and why.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// The addresses: `address/length` without host bits, or one address.
    pub cidr: String,
    /// The namespace of the pods that may have them.
    pub namespace: String,
    /// The service account of the pods that may have them.
    pub service_account: String,
    /// Until when, as RFC 3339 writes it; for good where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Why, in one line.
    pub reason: String,
}

/// What is wrong with an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    pub(super) field: &'static str,
    /// What is wrong with the field and what to do, as the rest of a sentence.
    pub(super) text: String,
}

/// One object as it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Object {
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    /// `resourceVersion`.
    pub(super) version: Box<str>,
    pub(super) generation: i64,
    /// Whether it is being deleted and only held up.
    pub(super) going: bool,
    pub(super) meaning: Result<Allowed, Problem>,
    pub(super) status: Status,
}

/// The kind, for a client.
pub(super) fn resource() -> ApiResource {
    ApiResource {
        group: GROUP.into(),
        version: VERSION.into(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: KIND.into(),
        plural: PLURAL.into(),
    }
}

/// What an object allows, going or not, or why it allows nothing.
pub(crate) fn allowed(object: &DynamicObject) -> Result<Allowed, Rejection> {
    let Some(read) = Object::read(object) else {
        return Err(Rejection::new(KIND, "metadata", Reason::Malformed, ""));
    };
    let name = shown_name(&read.name);
    read.meaning.map_err(|problem| Rejection::in_words(&name, problem.field, &problem.text))
}

/// How logs and findings name an object.
pub(super) fn shown_name(name: &str) -> String {
    format!("floatingipallowance {}", printable(name, 253))
}

// === impl Object ===

impl Object {
    /// Reads an object; `None` where it has no name or uid, without which it is none.
    pub(super) fn read(object: &DynamicObject) -> Option<Self> {
        let name = object.name_any();
        let uid = object.uid().filter(|uid| uid.len() <= 64)?;
        PodKey::new("namespace", &name)?;
        let spec = Spec::deserialize(&object.data["spec"]).map_err(|error| Problem {
            field: "spec",
            text: format!("cannot be read: {}", printable(&error.to_string(), 200)),
        });
        Some(Self {
            meaning: spec.and_then(|spec| meaning(&name, &spec)),
            name: name.into(),
            uid: uid.into(),
            version: object.resource_version().unwrap_or_default().into(),
            generation: object.metadata.generation.unwrap_or(0),
            going: object.metadata.deletion_timestamp.is_some(),
            status: Status::read(&object.data["status"]),
        })
    }

    /// Whether it is still, or again, about the same version of the same object.
    pub(super) fn is_version_of(&self, other: &Self) -> bool {
        self.uid == other.uid && self.generation == other.generation
    }
}

/// What a spec allows.
fn meaning(name: &str, spec: &Spec) -> Result<Allowed, Problem> {
    let Spec { cidr, namespace, service_account, expires, reason } = spec;
    let needed = |text: &str| {
        if text.trim().is_empty() {
            Err("is missing: write why it is allowed".into())
        } else {
            value::line(text)
        }
    };
    let allowance = Allowance {
        cidr: field("spec.cidr", cidr, value::cidr_or_address)?,
        namespace: field("spec.namespace", namespace, value::namespace)?,
        service_account: field("spec.serviceAccount", service_account, value::service_account)?,
        origin: shown_name(name).into(),
        reason: Some(field("spec.reason", reason, needed)?),
    };
    let expires: Option<Timestamp> =
        expires.as_deref().map(|text| field("spec.expires", text, value::time)).transpose()?;
    Ok(Allowed { allowance, expires })
}

fn field<T>(
    field: &'static str,
    text: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Problem> {
    parse(text).map_err(|text| Problem { field, text })
}

#[cfg(test)]
mod tests;
