//! A policy as a ClusterPolicy of Kyverno's, with the same CEL (pure).

use std::fmt::Write as _;

use super::vap::{block, variables};
use super::{Action, Guard};

/// What Kyverno does not do as Kubernetes does, said above each policy.
pub(super) const LIMITS: [&str; 5] = [
    "Kyverno asks its policies only about what its own configuration lets through: by default not",
    "about kube-system and its like, not about bindings (resourceFilters), and not about what",
    "kubelets write (excludeGroups). Take the filters of Binding and Pod/binding out, or apply the",
    "ValidatingAdmissionPolicy as well, or an annotation can come by a binding. Where Kyverno does not",
    "answer, writes of pods fail.",
];

/// The object as YAML.
pub(super) fn manifest(guard: &Guard, action: Action, comment: &str) -> String {
    let name = guard.part.name();
    let (fails, warns) = match action {
        Action::Deny => ("Enforce", false),
        Action::Audit => ("Audit", false),
        Action::Warn => ("Audit", true),
    };
    let mut text = format!(
        "{comment}apiVersion: kyverno.io/v1\nkind: ClusterPolicy\nmetadata:\n  name: {name}\n  \
         labels:\n    app.kubernetes.io/part-of: route-hijack-detector\n  annotations:\n    \
         # Templates of pods are not pods: what they make is asked about.\n    \
         pod-policies.kyverno.io/autogen-controllers: none\nspec:\n  \
         # Who writes is known only while it is written.\n  background: false\n  \
         emitWarning: {warns}\n  webhookConfiguration:\n    failurePolicy: Fail\n  rules:\n    \
         - name: {}\n      match:\n        any:\n          - resources:\n              kinds:\n",
        name.split('.').next().unwrap_or(name)
    );
    for kind in guard.writes.kinds {
        let _ = writeln!(text, "                - {kind}");
    }
    let _ = write!(
        text,
        "              operations: [{}]\n      validate:\n        failureAction: {fails}\n        \
         # What was there before is asked about by the rule itself.\n        \
         allowExistingViolations: false\n        cel:\n          variables:\n",
        guard.writes.operations.join(", ")
    );
    text += &variables(guard, 12);
    text + &format!(
        "          expressions:\n            - expression: {}              messageExpression: \
         {}              message: {}\n",
        block(&guard.expression, 16),
        block(&guard.message_expression, 16),
        guard.message
    )
}
