//! What keeps an audit from looking is said in one line that tells what to do, with exit code 2.

use std::net::TcpListener;
use std::process::Output;

use detector_tests::agent::MemoryFile;
use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use serde_json::json;

use crate::stage::audit;

/// Exactly one line on stderr with all these words, nothing on stdout, and exit code 2.
#[track_caller]
pub(crate) fn one_line(output: &Output, words: &[&str]) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

fn kubeconfig(server: &str) -> MemoryFile {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         clusters: [{{name: a, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: a, user: {{token: t}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
    );
    MemoryFile::new(&text).unwrap()
}

#[test]
fn a_kubeconfig_that_is_of_no_use_is_named() {
    one_line(&audit(&["--kubeconfig", "/nonexistent"]), &["/nonexistent", "correct --kubeconfig"]);
    let wrong = MemoryFile::new("clusters: 7\n").unwrap();
    one_line(&audit(&["--kubeconfig", &wrong.path()]), &[&wrong.path(), "is of no use"]);
    let empty = MemoryFile::new("").unwrap();
    one_line(&audit(&["--kubeconfig", &empty.path()]), &["is of no use"]);
    let good = kubeconfig("https://127.0.0.1:1");
    let context = ["--kubeconfig", &good.path(), "--context", "other"];
    one_line(&audit(&context), &["other"]);
    one_line(&audit(&[]), &["no API server is known", "--kubeconfig"]);
}

#[test]
fn a_server_that_cannot_be_reached_is_told() {
    // A port that nobody listens on, as long as this is bound and does not.
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = port.local_addr().unwrap();
    drop(port);
    let nowhere = kubeconfig(&format!("http://{addr}"));
    one_line(&audit(&["--kubeconfig", &nowhere.path()]), &["cannot be reached"]);
}

#[test]
fn a_token_that_is_no_longer_known_is_told() {
    let what = "a token that has expired, with a real API server";
    let Some(programs) = Programs::find_or_skip(what) else { return };
    let cluster = Cluster::start(programs).unwrap();
    let nobody = MemoryFile::new(&cluster.kubeconfig(User::Nobody, cluster.addr())).unwrap();
    one_line(&audit(&["--kubeconfig", &nobody.path()]), &["token", "401"]);
    cluster.kubectl(&["create", "serviceaccount", "visitor"]).unwrap();
    // The same token is known as long as it is good, and then by what it may not do.
    let good = account(&cluster, 4_000_000_000);
    one_line(&audit(&["--kubeconfig", &good.path()]), &["403", "deploy/audit-rbac.yaml"]);
    let expired = account(&cluster, 1_000_000_000);
    one_line(&audit(&["--kubeconfig", &expired.path()]), &["token", "401"]);
}

/// The kubeconfig of a service account, with a token by the server's own key that is good until then.
fn account(cluster: &Cluster, until: i64) -> MemoryFile {
    let folder = cluster.kubeconfig_path().parent().unwrap().to_path_buf();
    let uid = ["get", "serviceaccount", "visitor", "--output=jsonpath={.metadata.uid}"];
    let uid = cluster.kubectl(&uid).unwrap();
    let issuer = "https://kubernetes.default.svc";
    let claims = json!({
        "iss": issuer, "aud": [issuer], "iat": 1, "nbf": 1, "exp": until,
        "sub": "system:serviceaccount:default:visitor",
        "kubernetes.io": {
            "namespace": "default", "serviceaccount": { "name": "visitor", "uid": uid },
        },
    });
    let signed = format!(
        "{}.{}",
        base64(json!({ "alg": "ES256" }).to_string().as_bytes()),
        base64(claims.to_string().as_bytes())
    );
    let key = std::fs::read_to_string(folder.join("accounts.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap().serialize_der();
    let random = ring::rand::SystemRandom::new();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, &key, &random).unwrap();
    let signature = key.sign(&random, signed.as_bytes()).unwrap();
    let token = format!("{signed}.{}", base64(signature.as_ref()));
    let text = cluster.kubeconfig(User::Nobody, cluster.addr());
    MemoryFile::new(&text.replace("nobody-of-the-tests", &token)).unwrap()
}

/// Base64 for URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for place in 0..=three.len() {
            let letter = bits >> (18 - 6 * place) & 63;
            text.push(char::from(LETTERS[letter as usize]));
        }
    }
    text
}

#[test]
fn files_that_cannot_be_read_are_named() {
    one_line(&audit(&["--from", "/nonexistent"]), &["/nonexistent", "correct --from"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    one_line(&audit(&["--from", path]), &["no objects", "kubectl get"]);
    let output = audit(&["--from", path, "--kubeconfig", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    let missing = ["--from", path, "--config", "/nonexistent"];
    one_line(&audit(&missing), &["/nonexistent"]);
}
