//! GET, LIST and what the server says about itself.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, VersionMatch};
use serde_json::json;

use super::{Server, number, version};
use crate::{code, config_map, config_maps, pod, pods, raw};

pub(super) async fn discovery_names_what_is_served(server: &Server) {
    let client = &server.client;
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let core = client.list_core_api_resources("v1").await.unwrap();
    let names: Vec<_> = core.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert!(names.contains(&"pods") && names.contains(&"pods/status"), "{names:?}");
    let groups = client.list_api_groups().await.unwrap().groups;
    assert!(groups.iter().any(|group| group.name == "crd.projectcalico.org"));
    let calico = client.list_api_group_resources("crd.projectcalico.org/v1").await.unwrap();
    assert!(calico.resources.iter().any(|resource| resource.kind == "IPAMBlock"));
    assert_eq!(raw(client, "GET", "/readyz", "").await.1, json!("ok"));
}

pub(super) async fn what_is_not_served_is_refused(server: &Server) {
    server.create(pod("a", "n1", "10.0.0.1")).await;
    for (path, expected) in [
        ("/api/v1/namespaces/shop/pods/b", 404),
        ("/api/v1/pods?fieldSelector=spec.nodename%3Dn1", 400),
        ("/api/v1/pods?resourceVersion=soon", 400),
        ("/api/v1/pods?resourceVersionMatch=Exact", 422),
        ("/api/v1/pods?resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("/api/v1/pods?resourceVersion=1&resourceVersionMatch=Newer", 422),
        ("/api/v1/pods?continue=nonsense", 400),
        ("/api/v1/pods?limit=some", 400),
        ("/api/v1/pods?watch=true&resourceVersion=1&resourceVersionMatch=NotOlderThan", 422),
        ("/api/v1/pods?watch=true&sendInitialEvents=true", 422),
        ("/api/v1/namespaces/shop/configmaps/a/status", 404),
    ] {
        let (code, status, _) = raw(&server.client, "GET", path, "").await;
        assert_eq!((code, &status["kind"]), (expected, &json!("Status")), "{path}: {status}");
        assert_eq!(status["code"], expected, "{path}");
    }
    // No limit, not a wrong one.
    assert_eq!(raw(&server.client, "GET", "/api/v1/pods?limit=-1", "").await.0, 200);
    // No such group: there is nobody to say so in JSON.
    assert_eq!(raw(&server.client, "GET", "/apis/projectcalico.org/v3/ippools", "").await.0, 404);
}

pub(super) async fn lists_select_by_namespace_and_field(server: &Server) {
    for (name, node, ip) in
        [("a", "n1", "10.0.0.1"), ("b", "n2", "10.0.0.2"), ("c", "n1", "10.0.0.3")]
    {
        server.create(pod(name, node, ip)).await;
    }
    let mut elsewhere = pod("d", "n1", "10.0.0.4");
    elsewhere["metadata"]["namespace"] = json!("bank");
    server.create(elsewhere).await;
    let two = json!({ "podIPs": [{ "ip": "10.0.0.3" }, { "ip": "fd00::3" }] });
    let newest = version(&server.set_status("pods", "shop", "c", two).await);

    let everywhere: Api<Pod> = Api::all(server.client.clone());
    let names = async |api: &Api<Pod>, fields: &str| {
        let list = api.list(&ListParams::default().fields(fields)).await.unwrap();
        assert!(number(list.metadata.resource_version.as_deref()) >= newest);
        list.items.into_iter().map(|pod| pod.metadata.name.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(&everywhere, "").await, ["d", "a", "b", "c"]);
    assert_eq!(names(&pods(&server.client), "").await, ["a", "b", "c"]);
    assert_eq!(names(&everywhere, "spec.nodeName=n1").await, ["d", "a", "c"]);
    assert_eq!(names(&everywhere, "spec.nodeName=n1,metadata.namespace!=bank").await, ["a", "c"]);
    assert_eq!(names(&everywhere, "status.podIP=10.0.0.3").await, ["c"]);
    assert!(names(&everywhere, "status.podIP=fd00::3").await.is_empty());
}

pub(super) async fn pages_are_of_one_version_until_history_is_gone(server: &Server) {
    let api = config_maps(&server.client);
    for name in ["a", "b", "c", "d", "e"] {
        server.create(config_map(name, "old")).await;
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    let version = first.metadata.resource_version.clone();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));

    server.remove("configmaps", "shop", "c").await;
    server.patch("configmaps", "shop", "d", json!({ "data": { "key": "new" } })).await;
    let token = first.metadata.continue_.unwrap();
    let next = ListParams::default().limit(2).continue_token(&token);
    let second = api.list(&next).await.unwrap();
    let seen: Vec<_> = second
        .items
        .iter()
        .map(|map| (map.metadata.name.as_deref(), map.data.as_ref().unwrap()["key"].as_str()))
        .collect();
    assert_eq!(seen, [(Some("c"), "old"), (Some("d"), "old")]);
    assert_eq!(second.metadata.resource_version, version);

    let last = ListParams::default().limit(2).continue_token(&second.metadata.continue_.unwrap());
    let third = api.list(&last).await.unwrap();
    assert_eq!((third.items.len(), third.metadata.continue_), (1, None));

    server.forget();
    assert_eq!(code(api.list(&next).await), 410);
}

pub(super) async fn versions_are_kept_to_or_refused(server: &Server) {
    let api = config_maps(&server.client);
    let old = version(&server.create(config_map("a", "old")).await);
    let changed = json!({ "data": { "key": "new" } });
    let new = version(&server.patch("configmaps", "shop", "a", changed).await);
    assert!(old < new);

    let exact = ListParams::default().at(&old.to_string()).matching(VersionMatch::Exact);
    let list = api.list(&exact).await.unwrap();
    assert_eq!(list.items[0].data.as_ref().unwrap()["key"], "old");
    assert_eq!(list.metadata.resource_version, Some(old.to_string()));
    // Not older than.
    let newest = api.list(&ListParams::default().at(&new.to_string())).await.unwrap();
    assert_eq!(newest.items[0].data.as_ref().unwrap()["key"], "new");

    let ahead = format!("/api/v1/configmaps?resourceVersion={}", new + 1_000_000);
    let (code, status, retry) = raw(&server.client, "GET", &ahead, "").await;
    assert_eq!((code, retry.as_str()), (504, "1"));
    assert_eq!(status["details"]["retryAfterSeconds"], 1);
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

pub(super) async fn metadata_alone_is_served_where_it_is_asked_for(server: &Server) {
    server.create(pod("a", "n1", "10.0.0.1")).await;
    let api = pods(&server.client);
    let list = api.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].metadata.name.as_deref(), Some("a"));
    let one = api.get_metadata("a").await.unwrap();
    assert_eq!(one.types.unwrap().kind, "PartialObjectMetadata");
    assert_eq!(one.metadata.uid, list.items[0].metadata.uid);
}
