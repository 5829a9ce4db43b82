//! The cluster of a real kube-apiserver: that tests can rely on it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::TcpStream;

use detector_tests::cluster::objects::Objects;
use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use serde_json::json;

#[test]
fn a_cluster_is_driven_stopped_and_started_again_and_leaves_nothing() {
    let Some(programs) = Programs::find_or_skip("the cluster of a real kube-apiserver") else {
        return;
    };
    let cluster = Cluster::start(programs).unwrap();
    let folder = cluster.kubeconfig_path().parent().unwrap().to_path_buf();

    // By kubectl, as people do.
    cluster.kubectl(&["create", "namespace", "shop"]).unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": { "nodeName": "node-a", "containers": [{ "name": "main", "image": "one" }] },
    });
    cluster.kubectl_fed(&["create", "--filename=-"], &pod.to_string()).unwrap();
    let annotation = r#"cni.projectcalico.org/floatingIPs=["10.0.0.9"]"#;
    cluster.kubectl(&["annotate", "--overwrite", "-n=shop", "pod", "cart", annotation]).unwrap();
    let status = r#"{"status":{"phase":"Running","podIP":"10.0.0.1"}}"#;
    let patch = ["patch", "-n=shop", "pod", "cart", "--subresource=status", "--type=merge", "-p"];
    cluster.kubectl(&[&patch[..], &[status]].concat()).unwrap();
    let wrong = cluster.kubectl(&["get", "-n=shop", "pod", "nobody"]).unwrap_err().to_string();
    assert!(wrong.contains("NotFound"), "{wrong}");

    // By requests, which is quicker.
    let objects = cluster.objects();
    let read = objects.get("pods", "shop", "cart").unwrap();
    assert_eq!(read["status"]["podIP"], "10.0.0.1");
    objects
        .create(&json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
            "metadata": { "name": "default" }, "spec": { "floatingIPs": "Enabled" },
        }))
        .unwrap();

    // The agent may do what its role says.
    let agent = Objects::connect(&cluster.kubeconfig(User::Agent, cluster.addr())).unwrap();
    agent.get("felixconfigurations", "", "default").unwrap();
    let forbidden = agent.get("configmaps", "shop", "any").unwrap_err();
    assert!(format!("{forbidden:#}").contains("forbidden"), "{forbidden:#}");

    // A server that was killed comes back on its port with all it had.
    let before = cluster.pid();
    cluster.stop();
    assert_eq!(cluster.pid(), None);
    assert!(TcpStream::connect(cluster.addr()).is_err());
    cluster.restart().unwrap();
    assert_ne!(cluster.pid(), before);
    assert_eq!(objects.get("pods", "shop", "cart").unwrap(), read);

    objects.clear().unwrap();
    assert!(objects.get("pods", "shop", "cart").is_err());
    assert!(objects.get("felixconfigurations", "", "default").is_err());
    assert!(objects.get("services", "default", "kubernetes").is_ok());

    let addr = cluster.addr();
    drop(cluster);
    assert!(!folder.exists());
    assert!(TcpStream::connect(addr).is_err());
}
