//! Who has such rights because the cluster works that way.

use crate::audit::facts::Subject;

/// Namespaces of the cluster itself: whoever may make pods or tokens there has the cluster anyway.
const OWN: [&str; 4] = ["kube-system", "calico-system", "calico-apiserver", "tigera-operator"];

/// Users that Kubernetes' own documentation and source name (`user_info.go`, `policy.go`). Whatever else
/// begins with `system:` somebody else has named so.
const COMPONENTS: [&str; 5] = [
    "system:apiserver",
    "system:kube-apiserver",
    "system:kube-proxy",
    "system:cloud-controller-manager",
    "system:volume-scheduler",
];

/// The same of groups.
const GROUPS: [&str; 2] = ["system:monitoring", "system:bootstrappers"];

/// Many people in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Crowd {
    /// Whoever reaches the API server.
    Anybody,
    /// Whoever has any account.
    Everybody,
    /// Whoever runs code in any pod.
    EveryPod,
    /// Whoever runs code in any pod of a namespace.
    PodsOfANamespace,
}

// === impl Crowd ===

impl Crowd {
    pub(super) fn danger(self) -> u8 {
        match self {
            Self::Anybody => 60,
            Self::Everybody => 55,
            Self::EveryPod => 50,
            Self::PodsOfANamespace => 35,
        }
    }
}

/// The crowd that a subject is.
pub(super) fn crowd(subject: &Subject) -> Option<Crowd> {
    match subject {
        Subject::User(name) if **name == *"system:anonymous" => Some(Crowd::Anybody),
        Subject::Group(name) => match &**name {
            "system:unauthenticated" => Some(Crowd::Anybody),
            // What OpenShift's own OAuth server lets in, which is people.
            "system:authenticated" | "system:authenticated:oauth" => Some(Crowd::Everybody),
            "system:serviceaccounts" => Some(Crowd::EveryPod),
            name if name.starts_with("system:serviceaccounts:") => Some(Crowd::PodsOfANamespace),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a namespace is the cluster's own.
pub(super) fn is_own(namespace: &str) -> bool {
    OWN.contains(&namespace)
}

/// Why a subject has the rights, where the cluster needs it to or it may do anything anyway.
pub(super) fn why(subject: &Subject, everything: bool) -> Option<&'static str> {
    const CNI: &str = "Calico's own: the CNI plugin writes a pod's addresses to it. Its token lies on \
                       each node, so whoever takes over one node may annotate any pod";
    let own_group = |name: &str| {
        let rest = name.strip_prefix("system:serviceaccounts:");
        rest.is_some_and(is_own)
    };
    match subject {
        // A service account by its other name.
        Subject::User(name) if name.starts_with("system:serviceaccount:") => {
            let mut parts = name.splitn(4, ':').skip(2);
            let (namespace, account) = (parts.next()?, parts.next()?);
            why(&Subject::ServiceAccount(namespace.into(), account.into()), everything)
        }
        Subject::Group(name) if own_group(name) => {
            Some("service accounts of the cluster's own namespace")
        }
        subject if crowd(subject).is_some() => None,
        Subject::Group(name) if **name == *"system:masters" => {
            Some("the API server asks no role for it: keep its certificates few")
        }
        Subject::Group(name) if **name == *"system:nodes" => {
            Some("kubelets, which report the status of their own pods")
        }
        Subject::User(name) if name.starts_with("system:node:") => {
            Some("a kubelet, which reports the status of its own pods")
        }
        Subject::User(name) if **name == *"system:kube-controller-manager" => {
            Some("the controllers of Kubernetes, which adopt and evict pods")
        }
        Subject::User(name) if **name == *"system:kube-scheduler" => {
            Some("the scheduler, which writes where a pod goes to its status")
        }
        Subject::User(name) if COMPONENTS.contains(&&**name) => Some("a component of Kubernetes"),
        Subject::Group(name)
            if GROUPS.contains(&&**name) || name.starts_with("system:bootstrappers:") =>
        {
            Some("a component of Kubernetes")
        }
        Subject::ServiceAccount(namespace, name) if is_own(namespace) => Some(match &**name {
            "calico-node" | "calico-cni-plugin" | "canal" => CNI,
            _ => "a component of the cluster, in a namespace of its own",
        }),
        Subject::User(_) | Subject::Group(_) if everything => {
            Some("an administrator, who may do anything anyway")
        }
        _ => None,
    }
}
