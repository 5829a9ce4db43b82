//! Whole objects, or their metadata alone: what `Accept` asks for.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::kind::Kind;
use super::refusal::Refusal;

/// The form in which objects are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Whole,
    /// `PartialObjectMetadata` of meta.k8s.io/v1.
    Metadata,
}

// === impl Shape ===

impl Shape {
    /// The first form in an `Accept` header that is served; whole objects when there is none.
    pub(super) fn accepted(accept: Option<&str>) -> Result<Self, Refusal> {
        let Some(accept) = accept else { return Ok(Self::Whole) };
        accept.split(',').find_map(Self::of_media_type).ok_or_else(Refusal::not_acceptable)
    }

    fn of_media_type(media_type: &str) -> Option<Self> {
        let mut parts = media_type.split(';').map(str::trim);
        let json = matches!(parts.next(), Some("application/json" | "application/*" | "*/*"));
        let form = parts.find_map(|part| part.strip_prefix("as="));
        match form {
            _ if !json => None,
            None => Some(Self::Whole),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Self::Metadata),
            Some(_) => None,
        }
    }

    /// An object in this form.
    pub(super) fn object(self, object: &Value) -> Cow<'_, Value> {
        match self {
            Self::Whole => Cow::Borrowed(object),
            Self::Metadata => Cow::Owned(json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            })),
        }
    }

    /// An object as an item of a list, where built-in kinds do not repeat what they are.
    pub(super) fn item(self, kind: &Kind, object: &Value) -> Value {
        let mut item = self.object(object).into_owned();
        if let (Self::Whole, false, Some(fields)) = (self, kind.custom, item.as_object_mut()) {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        item
    }

    /// `kind` and `apiVersion` of objects in this form.
    pub(super) fn names(self, kind: &Kind) -> (String, String) {
        match self {
            Self::Whole => (kind.name.to_owned(), kind.api_version()),
            Self::Metadata => ("PartialObjectMetadata".to_owned(), "meta.k8s.io/v1".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_is_served_is_taken() {
        let accepted = |accept| Shape::accepted(Some(accept));
        assert_eq!(Shape::accepted(None), Ok(Shape::Whole));
        assert_eq!(accepted("application/json"), Ok(Shape::Whole));
        assert_eq!(
            accepted("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            Ok(Shape::Metadata)
        );
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io, application/json";
        assert_eq!(accepted(kubectl), Ok(Shape::Whole));
        assert_eq!(accepted("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
    }
}
