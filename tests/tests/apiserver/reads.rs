//! GET, LIST and what the server says about itself.

use detector_tests::apiserver::traffic::Verb;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::{code, config_map, config_maps, pod, pods, raw, server};

#[tokio::test]
async fn discovery_names_what_is_served() {
    let (_server, client) = server().await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "31");
    let core = client.list_core_api_resources("v1").await.unwrap();
    let names: Vec<_> = core.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert!(names.contains(&"pods") && names.contains(&"pods/status"), "{names:?}");
    let groups = client.list_api_groups().await.unwrap().groups;
    assert!(groups.iter().any(|group| group.name == "crd.projectcalico.org"));
    let calico = client.list_api_group_resources("crd.projectcalico.org/v1").await.unwrap();
    assert!(calico.resources.iter().any(|resource| resource.kind == "IPAMBlock"));
    assert_eq!(raw(&client, "GET", "/readyz", "").await.1, json!("ok"));
}

#[tokio::test]
async fn what_is_not_served_is_refused_and_remembered() {
    let (server, client) = server().await;
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    for (method, path, expected) in [
        ("GET", "/api/v1/namespaces/shop/pods/b", 404),
        ("GET", "/api/v1/pods?fieldSelector=spec.nodename%3Dn1", 400),
        ("GET", "/api/v1/pods?labelSelector=app%3Dx", 400),
        ("GET", "/api/v1/pods?resourceVersion=soon", 400),
        ("GET", "/api/v1/pods?resourceVersionMatch=Exact", 422),
        (
            "GET",
            "/api/v1/pods?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            422,
        ),
        ("DELETE", "/api/v1/namespaces/shop/pods", 405),
        ("GET", "/api/v1/secrets", 404),
        ("GET", "/apis/projectcalico.org/v3/ippools", 404),
    ] {
        let (code, status, _) = raw(&client, method, path, "").await;
        assert_eq!((code, &status["kind"]), (expected, &json!("Status")), "{method} {path}");
        assert_eq!(status["code"], expected, "{method} {path}");
    }
    let unknown = ["/api/v1/secrets", "/apis/projectcalico.org/v3/ippools"];
    assert_eq!(server.traffic().now().unknown_paths(), unknown);
    assert_eq!(server.traffic().now().refused(422), 2);
}

#[tokio::test]
async fn lists_select_by_namespace_and_field() {
    let (server, client) = server().await;
    for (name, node, ip) in
        [("a", "n1", "10.0.0.1"), ("b", "n2", "10.0.0.2"), ("c", "n1", "10.0.0.3")]
    {
        server.apply(pod(name, node, ip)).unwrap();
    }
    let mut elsewhere = pod("d", "n1", "10.0.0.4");
    elsewhere["metadata"]["namespace"] = json!("bank");
    server.apply(elsewhere).unwrap();
    let two = json!({ "status": { "podIPs": [{ "ip": "10.0.0.3" }, { "ip": "fd00::3" }] } });
    server.patch("pods", "shop", "c", &two).unwrap();

    let everywhere: Api<Pod> = Api::all(client.clone());
    let names = async |api: &Api<Pod>, fields: &str| {
        let list = api.list(&ListParams::default().fields(fields)).await.unwrap();
        assert_eq!(list.metadata.resource_version, Some(server.version().to_string()));
        list.items.into_iter().map(|pod| pod.metadata.name.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names(&everywhere, "").await, ["d", "a", "b", "c"]);
    assert_eq!(names(&pods(&client), "").await, ["a", "b", "c"]);
    assert_eq!(names(&everywhere, "spec.nodeName=n1").await, ["d", "a", "c"]);
    assert_eq!(names(&everywhere, "spec.nodeName=n1,metadata.namespace!=bank").await, ["a", "c"]);
    assert_eq!(names(&everywhere, "status.podIP=10.0.0.3").await, ["c"]);
    assert!(names(&everywhere, "status.podIP=fd00::3").await.is_empty());
    assert_eq!(server.traffic().now().requests(Verb::List, "pods"), 6);
    assert!(server.traffic().now().bytes() > 0);
}

#[tokio::test]
async fn pages_are_of_one_version_until_history_is_gone() {
    let (server, client) = server().await;
    let api = config_maps(&client);
    for name in ["a", "b", "c", "d", "e"] {
        server.apply(config_map(name, "old")).unwrap();
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    let version = first.metadata.resource_version.clone();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));

    server.remove("configmaps", "shop", "c").unwrap();
    server.apply(config_map("d", "new")).unwrap();
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

    server.compact();
    assert_eq!(code(api.list(&next).await), 410);
}

#[tokio::test]
async fn versions_are_kept_to_or_refused() {
    let (server, client) = server().await;
    let api = config_maps(&client);
    server.apply(config_map("a", "old")).unwrap();
    let old = server.version();
    server.apply(config_map("a", "new")).unwrap();

    let exact = ListParams::default().at(&old.to_string()).matching(kube::api::VersionMatch::Exact);
    let list = api.list(&exact).await.unwrap();
    assert_eq!(list.items[0].data.as_ref().unwrap()["key"], "old");
    assert_eq!(list.metadata.resource_version, Some(old.to_string()));
    let newest = api.list(&ListParams::default().at(&old.to_string())).await.unwrap();
    assert_eq!(newest.items[0].data.as_ref().unwrap()["key"], "new");

    let ahead = format!("/api/v1/configmaps?resourceVersion={}", server.version() + 1);
    let (code, status, retry) = raw(&client, "GET", &ahead, "").await;
    assert_eq!((code, retry.as_str()), (504, "1"));
    assert_eq!(status["details"]["retryAfterSeconds"], 1);
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn metadata_alone_is_served_where_it_is_asked_for() {
    let (server, client) = server().await;
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    let list = pods(&client).list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(list.items[0].metadata.name.as_deref(), Some("a"));
    let one = pods(&client).get_metadata("a").await.unwrap();
    assert_eq!(one.types.unwrap().kind, "PartialObjectMetadata");
    assert_eq!(one.metadata.uid, list.items[0].metadata.uid);
}
