//! What any API server does: stated once, and held against the emulated server and a real one, so
//! that the emulated one cannot drift away.
//!
//! A contract writes by requests, as any client would, and takes versions from the answers: on a
//! real server others write too.

mod reads;
mod watches;
mod writes;

use std::sync::Arc;

use detector_tests::apiserver::ApiServer;
use detector_tests::apiserver::kind::Kind;
use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::Client;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::{client, raw_typed};

/// One of the two servers, without any object of ours.
pub(crate) struct Server {
    pub(crate) client: Client,
    which: Which,
}

enum Which {
    Emulated(ApiServer),
    Real(Arc<Cluster>),
}

type Contract = for<'a> fn(&'a Server) -> BoxFuture<'a, ()>;

/// Makes a test of each contract for the emulated server, and a list of all for the real one, which
/// takes so long to start that it is started once.
macro_rules! contracts {
    ($($room:ident { $($name:ident,)+ })+) => {
        mod emulated {
            $($(
                #[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    super::$room::$name(&super::Server::emulated().await).await;
                }
            )+)+
        }

        const ALL: &[(&str, Contract)] =
            &[$($((stringify!($name), |server| $room::$name(server).boxed()),)+)+];
    };
}

contracts! {
    reads {
        discovery_names_what_is_served,
        what_is_not_served_is_refused,
        lists_select_by_namespace_and_field,
        pages_are_of_one_version_until_history_is_gone,
        versions_are_kept_to_or_refused,
        metadata_alone_is_served_where_it_is_asked_for,
    }
    watches {
        a_watcher_lists_once_and_is_told_the_rest,
        what_starts_to_match_is_added_and_what_stops_is_deleted,
        a_watch_begins_where_it_is_told_to,
        a_watcher_lists_again_when_history_is_gone,
        a_watch_says_at_its_end_how_far_it_has_come,
        initial_events_are_served,
        watchers_page_and_watch_metadata,
        a_watch_of_one_namespace_is_told_of_no_other,
    }
    writes {
        a_write_against_an_old_state_conflicts,
        objects_of_definitions_must_say_what_they_replace,
        what_a_definition_does_not_describe_is_kept,
        a_pod_and_its_status_are_written_apart,
        a_pod_goes_gracefully_and_others_at_once,
        malformed_writes_are_refused,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_keeps_all_contracts() {
    let Some(programs) = Programs::find_or_skip("the contracts with a real API server") else {
        return;
    };
    let cluster = block_in_place(|| {
        let cluster = Cluster::start(programs).unwrap();
        for namespace in ["shop", "bank"] {
            cluster.objects().make_namespace(namespace).unwrap();
        }
        Arc::new(cluster)
    });
    let mut broken = Vec::new();
    for (name, contract) in ALL {
        block_in_place(|| cluster.objects().clear()).unwrap();
        let server = Server::real(&cluster).await;
        let kept = tokio::spawn(async move { contract(&server).await }).await;
        println!("{name}: {}", if kept.is_ok() { "kept" } else { "BROKEN" });
        if kept.is_err() {
            broken.push(name);
        }
    }
    assert!(broken.is_empty(), "a real server does otherwise: {broken:?}");
}

// === impl Server ===

impl Server {
    async fn emulated() -> Self {
        let server = ApiServer::on_loopback().unwrap();
        // As every server that is still supported.
        server.serve_watch_list(true);
        let client = client(&server.kubeconfig()).await;
        Self { client, which: Which::Emulated(server) }
    }

    async fn real(cluster: &Arc<Cluster>) -> Self {
        let client = client(&cluster.kubeconfig(User::Admin, cluster.addr())).await;
        Self { client, which: Which::Real(Arc::clone(cluster)) }
    }

    /// Creates an object; its status, where it brings one, is written after it.
    async fn create(&self, object: Value) -> Value {
        let kind = Kind::of_object(&object).unwrap();
        let (namespace, name) = place(&object);
        let path = kind.path(namespace, "");
        let created = self.ok("POST", &path, "application/json", &object).await;
        match object.get("status") {
            Some(status) => self.set_status(kind.plural, namespace, name, status.clone()).await,
            None => created,
        }
    }

    /// Merges a patch into an object, all but its status.
    async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: Value) -> Value {
        let target = Kind::of_plural(kind).unwrap().path(namespace, name);
        self.ok("PATCH", &target, "application/merge-patch+json", &patch).await
    }

    /// Merges into an object's status.
    async fn set_status(&self, kind: &str, namespace: &str, name: &str, status: Value) -> Value {
        let target = Kind::of_plural(kind).unwrap().path(namespace, name) + "/status";
        let patch = json!({ "status": status });
        self.ok("PATCH", &target, "application/merge-patch+json", &patch).await
    }

    /// Deletes an object at once.
    async fn remove(&self, kind: &str, namespace: &str, name: &str) {
        let path = Kind::of_plural(kind).unwrap().path(namespace, name);
        let at_once = json!({ "gracePeriodSeconds": 0 });
        self.ok("DELETE", &path, "application/json", &at_once).await;
    }

    /// Makes every version that was handed out so far too old.
    fn forget(&self) {
        match &self.which {
            Which::Emulated(server) => server.compact(),
            Which::Real(cluster) => block_in_place(|| cluster.compact()).unwrap(),
        }
    }

    async fn ok(&self, method: &str, path: &str, media_type: &str, body: &Value) -> Value {
        let (code, answer, _) =
            raw_typed(&self.client, method, path, media_type, &body.to_string()).await;
        assert!((200..300).contains(&code), "{method} {path}: {answer}");
        answer
    }
}

fn place(object: &Value) -> (&str, &str) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

/// The version of an object, or of a list.
fn version(object: &Value) -> u64 {
    number(object["metadata"]["resourceVersion"].as_str())
}

fn number(version: Option<&str>) -> u64 {
    version.expect("there is a version").parse().expect("versions are numbers here")
}
