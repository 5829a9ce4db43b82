//! Answers other than success: the `Status` objects of a real server.

use serde_json::{Value, json};

use super::kind::Kind;

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason} ({code}): {message}")]
pub struct Refusal {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason; empty where a real server gives none.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
    /// After how many seconds to ask again, when the server says.
    pub retry_after: Option<u32>,
    pub(super) details: Value,
}

// === impl Refusal ===

impl Refusal {
    /// A refusal with nothing but its reason and message.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), retry_after: None, details: Value::Null }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 404 for a path that names nothing that is served.
    pub fn unknown_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 404 for an object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified()))
            .about(kind, name)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 406 for an `Accept` header that asks for what is not spoken here.
    pub fn not_acceptable() -> Self {
        Self::new(406, "NotAcceptable", "only application/json is served; add it to Accept")
    }

    /// 409 for a name that is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", kind.qualified());
        Self::new(409, "AlreadyExists", message).about(kind, name)
    }

    /// 409 for a write that was made against another state of the object.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message =
            format!("operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified());
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// 410 for history that is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413 for a body over the limit.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("the request body is over {limit} bytes or could not be read");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415 for a patch in a language that is not spoken here.
    pub fn unsupported_patch(media_type: &str) -> Self {
        let message = format!(
            "the patch format {media_type:?} is not served; send application/merge-patch+json"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422 for an object that breaks a rule.
    pub fn invalid(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is invalid: {why}", kind.name);
        Self::new(422, "Invalid", message).about(kind, name)
    }

    /// 422 for options of a list or a watch that do not go together.
    pub fn invalid_options(why: &str) -> Self {
        Self::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"))
    }

    /// 504 for a version that has not been reached.
    pub fn version_ahead(asked: u64, newest: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {newest}");
        let cause = json!({ "reason": "ResourceVersionTooLarge",
                            "message": "Too large resource version" });
        let mut refusal = Self::new(504, "Timeout", format!("Timeout: {message}"));
        refusal.details = json!({ "causes": [cause], "retryAfterSeconds": 1 });
        refusal.retry_after = Some(1);
        refusal
    }

    /// The `Status` object that a client reads.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        if let Some(seconds) = self.retry_after {
            status["details"]["retryAfterSeconds"] = json!(seconds);
        }
        status
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = json!({ "name": name, "kind": kind.plural });
        if !kind.group.is_empty() {
            self.details["group"] = json!(kind.group);
        }
        self
    }
}
