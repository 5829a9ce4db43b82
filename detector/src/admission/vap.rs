//! A policy as objects of Kubernetes' own: ValidatingAdmissionPolicy and its binding (pure).

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Action, Guard};

/// The policy's `spec`.
pub(crate) fn spec(guard: &Guard) -> Value {
    let variables: Vec<Value> = guard
        .variables
        .iter()
        .map(|(name, expression)| json!({ "name": name, "expression": expression }))
        .collect();
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": guard.writes.operations,
                "resources": guard.writes.resources,
            }],
        },
        "variables": variables,
        "validations": [{
            "expression": guard.expression,
            "messageExpression": guard.message_expression,
            "message": guard.message,
        }],
    })
}

/// Both objects as YAML.
pub(super) fn manifest(guard: &Guard, action: Action, comment: &str) -> String {
    let name = guard.part.name();
    let actions = match action {
        Action::Deny => "[Deny, Audit]",
        Action::Audit => "[Audit]",
        Action::Warn => "[Warn, Audit]",
    };
    let mut text = format!(
        "{comment}apiVersion: admissionregistration.k8s.io/v1\n\
         kind: ValidatingAdmissionPolicy\n\
         metadata:\n  name: {name}\n  labels:\n    app.kubernetes.io/part-of: route-hijack-detector\n\
         spec:\n  failurePolicy: Fail\n  matchConstraints:\n    resourceRules:\n      \
         - apiGroups: [\"\"]\n        apiVersions: [v1]\n        operations: [{}]\n        resources:\n",
        guard.writes.operations.join(", ")
    );
    for resource in guard.writes.resources {
        let _ = writeln!(text, "          - {resource}");
    }
    text += "  variables:\n";
    text += &variables(guard, 4);
    let _ = write!(
        text,
        "  validations:\n    - expression: {}      messageExpression: {}      message: {}\n",
        block(&guard.expression, 8),
        block(&guard.message_expression, 8),
        guard.message
    );
    text + &format!(
        "---\napiVersion: admissionregistration.k8s.io/v1\n\
         kind: ValidatingAdmissionPolicyBinding\n\
         metadata:\n  name: {name}\n  labels:\n    app.kubernetes.io/part-of: route-hijack-detector\n\
         spec:\n  policyName: {name}\n  validationActions: {actions}\n"
    )
}

/// The variables as a list that is indented so far.
pub(super) fn variables(guard: &Guard, indent: usize) -> String {
    let space = " ".repeat(indent);
    let mut text = String::new();
    for (name, expression) in &guard.variables {
        let expression = block(expression, indent + 4);
        let _ = write!(text, "{space}- name: {name}\n{space}  expression: {expression}");
    }
    text
}

/// A text of several lines, each indented so far.
pub(super) fn block(text: &str, indent: usize) -> String {
    let space = " ".repeat(indent);
    let mut block = String::from("|-\n");
    for line in text.lines() {
        let _ = writeln!(block, "{space}{line}");
    }
    block
}
