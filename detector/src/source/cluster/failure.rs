//! Why the API server could not be asked, in words that say what to do.

use kube::Error;

use crate::text::printable;

/// `error` as the reason why `what` (such as "list and watch pods") cannot be done: one printable
/// line.
pub(crate) fn reason(what: &str, error: &Error) -> Box<str> {
    reason_with(what, error, "apply the agent's ClusterRole and its binding")
}

/// The same, with what to do where permission is missing.
pub(crate) fn reason_with(what: &str, error: &Error, remedy: &str) -> Box<str> {
    let why = match error {
        Error::Api(status) => match status.code {
            401 => "the API server does not know this token (401): check the service account or \
                    the kubeconfig"
                .into(),
            403 => format!("permission is missing (403): {remedy}"),
            code => format!("the API server says {code}: {}", printable(&status.message, 120)),
        },
        Error::SerdeError(error) => {
            format!("the API server sent what is no object: {}", printable(&error.to_string(), 120))
        }
        // The cause at the bottom ("connection refused") says more than the layers around it.
        other => {
            let mut cause: &dyn std::error::Error = other;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            format!("the API server cannot be reached: {}", printable(&cause.to_string(), 120))
        }
    };
    format!("cannot {what}: {why}").into()
}

/// Whether the server does not have such objects at all: their definition is not installed.
pub(crate) fn is_not_served(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

/// Whether the server has such objects, but none of this name.
pub(crate) fn is_absent(error: &Error, name: &str) -> bool {
    // A server that does not know the kind answers in text, or with a Status about nothing
    // (`NewGenericServerResponse` and `NewNotFound` in apimachinery's pkg/api/errors/errors.go).
    matches!(error, Error::Api(status) if status.code == 404
        && status.details.as_ref().is_some_and(|details| details.name == name))
}

/// Whether a resource version is too old to go on from, or one that this server has not reached.
pub(crate) fn is_out_of_range(error: &Error) -> bool {
    matches!(error, Error::Api(status) if matches!(status.code, 410 | 504))
}

#[cfg(test)]
mod tests {
    use std::io;

    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> Error {
        Error::Api(Status::failure(message, "Reason").with_code(code).boxed())
    }

    #[test]
    fn each_failure_says_what_to_do() {
        let of = |error| reason("list pods", &error).into_string();
        assert_eq!(
            of(api(403, "pods is forbidden")),
            "cannot list pods: permission is missing (403): \
             apply the agent's ClusterRole and its binding"
        );
        assert_eq!(
            of(api(401, "Unauthorized")),
            "cannot list pods: the API server does not know this token (401): \
             check the service account or the kubeconfig"
        );
        assert_eq!(
            of(api(500, "etcd\nis gone")),
            "cannot list pods: the API server says 500: etcd\\nis gone"
        );
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(
            of(Error::Service(Box::new(refused))),
            "cannot list pods: the API server cannot be reached: connection refused"
        );
    }

    #[test]
    fn absence_and_age_are_told_apart() {
        assert!(is_not_served(&api(404, "")) && !is_not_served(&api(403, "")));
        assert!(!is_absent(&api(404, ""), "a"));
        let details = kube::core::response::StatusDetails {
            name: "a".into(),
            group: String::new(),
            kind: "pods".into(),
            uid: String::new(),
            causes: vec![],
            retry_after_seconds: 0,
        };
        let of = |code: u16| {
            let status = Status::failure("", "NotFound").with_code(code);
            Error::Api(status.with_details(details.clone()).boxed())
        };
        assert!(is_absent(&of(404), "a") && !is_absent(&of(404), "b") && !is_absent(&of(410), "a"));
        assert!(is_out_of_range(&api(410, "")) && is_out_of_range(&api(504, "")));
        assert!(!is_out_of_range(&api(500, "")));
    }
}
