//! Who is who: the server's certificate, and the tokens of those who may use it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Somebody who uses the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// May do anything.
    Admin,
    /// May do what `deploy/base/rbac.yaml` allows, and nothing else.
    Agent,
    /// May do what `deploy/audit-rbac.yaml` allows, and nothing else.
    Auditor,
    /// May do what a test gives to user `tenant`.
    Tenant,
    /// Has a token that the server does not know, or no longer.
    Nobody,
}

/// Gives the agent and the auditor what `deploy` describes. By names of the tests' own, so that the
/// bindings of `deploy/base` can be applied beside them.
pub(super) const BINDINGS: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: detector-of-the-tests}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: detector}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: agent}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: detector-audit-of-the-tests}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: detector-audit}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: auditor}]
";

/// The files that tell the server who it is and whom to believe.
#[derive(Debug)]
pub(super) struct Identity {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    tokens: PathBuf,
    accounts: PathBuf,
    accounts_public: PathBuf,
}

// === impl User ===

impl User {
    /// Known to everybody on this machine, who are not many: the server listens on loopback, for as
    /// long as a test runs, and has nothing to hide.
    fn token(self) -> &'static str {
        match self {
            Self::Admin => "admin-of-the-tests",
            Self::Agent => "agent-of-the-tests",
            Self::Auditor => "auditor-of-the-tests",
            Self::Tenant => "tenant-of-the-tests",
            Self::Nobody => "nobody-of-the-tests",
        }
    }

    fn line(self) -> String {
        match self {
            Self::Admin => format!("{},admin,1,system:masters\n", self.token()),
            Self::Agent => format!("{},agent,2\n", self.token()),
            Self::Auditor => format!("{},auditor,3\n", self.token()),
            Self::Tenant => format!("{},tenant,4\n", self.token()),
            Self::Nobody => String::new(),
        }
    }
}

// === impl Identity ===

impl Identity {
    /// Makes the files in a folder.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let identity = Self {
            authority: folder.join("authority.crt"),
            certificate: folder.join("server.crt"),
            key: folder.join("server.key"),
            tokens: folder.join("tokens.csv"),
            accounts: folder.join("accounts.key"),
            accounts_public: folder.join("accounts.pub"),
        };
        identity.write_certificates().context("cannot make certificates")?;
        let users = [User::Admin, User::Agent, User::Auditor, User::Tenant];
        fs::write(&identity.tokens, users.map(User::line).concat())?;
        Ok(identity)
    }

    fn write_certificates(&self) -> Result<()> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "authority of the tests");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority_key = KeyPair::generate()?;
        fs::write(&self.authority, authority.self_signed(&authority_key)?.pem())?;

        let mut server = CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver of the tests");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate()?;
        let issuer = Issuer::new(authority, authority_key);
        fs::write(&self.certificate, server.signed_by(&server_key, &issuer)?.pem())?;
        fs::write(&self.key, server_key.serialize_pem())?;

        let accounts_key = KeyPair::generate()?;
        fs::write(&self.accounts, accounts_key.serialize_pem())?;
        fs::write(&self.accounts_public, accounts_key.public_key_pem())?;
        Ok(())
    }

    /// Who signed the server's certificate.
    pub(super) fn authority(&self) -> &Path {
        &self.authority
    }

    /// What kube-apiserver is told of it.
    pub(super) fn arguments(&self) -> Vec<String> {
        let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
        vec![
            file("tls-cert-file", &self.certificate),
            file("tls-private-key-file", &self.key),
            file("token-auth-file", &self.tokens),
            file("service-account-key-file", &self.accounts_public),
            file("service-account-signing-key-file", &self.accounts),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        ]
    }

    /// A kubeconfig for a user who reaches the server at an address.
    pub(super) fn kubeconfig(&self, user: User, addr: SocketAddr) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: https://{addr}\n    \
             certificate-authority: {}\n\
             users:\n- name: test\n  user:\n    token: {}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: test\n",
            self.authority.display(),
            user.token()
        )
    }
}
