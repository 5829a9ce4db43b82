//! The source as a whole: how it begins, and a server that is not there.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;

use detector_core::observation::{Answer, Reply, Sense};
use detector_core::policy::Feature;
use nix::unistd::mkdtemp;

use super::*;
use crate::cli::RunArgs;
use crate::config::File;

/// A directory that is gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(mkdtemp(&std::env::temp_dir().join("detector-XXXXXX")).unwrap())
    }

    fn file(&self, text: &str) -> PathBuf {
        let path = self.0.join("kubeconfig");
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn config(kubeconfig: &Path) -> Config {
    let args = RunArgs {
        node_name: Some("a".into()),
        kubeconfig: Some(kubeconfig.into()),
        ..RunArgs::default()
    };
    Config::resolve(&args, &File::default()).unwrap()
}

async fn refusal(kubeconfig: &Path) -> String {
    let error = Cluster::connect(&config(kubeconfig)).await.err().expect("it is refused");
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line:?}");
    line.replace(&*kubeconfig.to_string_lossy(), "FILE")
}

fn kubeconfig(server: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
         clusters: [{{name: a, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: a, user: {{}}}}]\n"
    )
}

#[tokio::test]
async fn a_kubeconfig_of_no_use_is_one_line() {
    let remedy = "; correct --kubeconfig or KUBECONFIG";
    let missing = refusal(Path::new("/nonexistent")).await;
    assert!(missing.starts_with("the kubeconfig FILE is of no use: failed to read"), "{missing}");
    assert!(missing.contains("No such file") && missing.ends_with(remedy), "{missing}");

    let scratch = Scratch::new();
    let cases = [
        ("clusters: [", "failed to parse kubeconfig YAML"),
        ("contexts: 7\n", "failed to parse kubeconfig YAML"),
        ("apiVersion: v1\nkind: Config\n", "failed to determine current context"),
        (&kubeconfig("http://[::1"), "failed to parse cluster url"),
    ];
    for (text, why) in cases {
        let line = refusal(&scratch.file(text)).await;
        assert!(line.contains(why) && line.ends_with(remedy), "{line}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_reason_to_be_blind() {
    // A port that was free a moment ago and that nobody listens to.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let scratch = Scratch::new();
    let path = scratch.file(&kubeconfig(&format!("http://127.0.0.1:{port}")));
    let cluster = Cluster::connect(&config(&path)).await.unwrap();

    let (tx, mut rx) = mpsc::channel(16);
    let (questions, asked) = mpsc::channel(1);
    let mut running = cluster.start(&tx, asked);
    questions.send(Question::Claimants([10, 0, 0, 1].into())).await.unwrap();

    let mut blind = BTreeMap::new();
    let mut answer = None;
    while blind.len() < 5 || answer.is_none() {
        match rx.recv().await.expect("the source goes on").what {
            What::Blind(sense, Some(reason)) => drop(blind.insert(sense, reason)),
            What::Answer(Answer { reply: Reply::Claimants(_, given), .. }) => {
                answer = Some(given.unwrap_err());
            }
            // It is known that nothing is known.
            What::Feature(Feature::Unknown) => {}
            other => panic!("{other:?}"),
        }
    }
    let why = "the API server cannot be reached: Connection refused (os error 111)";
    let of = |sense| blind.get(&sense).map(|reason| &**reason);
    assert_eq!(of(Sense::Pods), Some(&*format!("cannot list and watch pods: {why}")));
    assert_eq!(of(Sense::Nodes), Some(&*format!("cannot list and watch nodes: {why}")));
    assert_eq!(of(Sense::Services), Some(&*format!("cannot list and watch services: {why}")));
    assert_eq!(of(Sense::Pools), Some(&*format!("cannot list and watch ippools: {why}")));
    assert!(of(Sense::Feature).is_some_and(|reason| reason.ends_with(why)), "{blind:?}");
    assert_eq!(answer.as_deref(), Some(&*format!("cannot list pods: {why}")));
    let counts = running.counters().counts();
    assert!(counts.requests >= 10 && counts.failures >= 9 && counts.listings == 0, "{counts:?}");

    // Nobody asks and nobody listens: the tasks end by themselves.
    drop((questions, rx));
    while let Some(ended) = running.ended().await {
        ended.unwrap();
    }
}
