//! Many writes at once, so that a cluster of thousands of pods stands within a minute.

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::apiserver::kind::Kind;

/// Writes that are under way at once.
const AT_ONCE: usize = 32;

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    method: &'static str,
    path: String,
    media_type: &'static str,
    body: Value,
}

/// Clients that write at once.
pub struct Crowd {
    client: Client,
    runtime: Runtime,
}

// === impl Write ===

impl Write {
    /// Creates an object, all but its status.
    pub fn create(object: Value) -> Result<Self> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let path = Kind::of_object(&object)?.path(namespace, "");
        Ok(Self { method: "POST", path, media_type: "application/json", body: object })
    }

    /// Creates an object of a kind that the table of kinds does not have, at the path of its list.
    pub fn create_at(path: String, object: Value) -> Self {
        Self { method: "POST", path, media_type: "application/json", body: object }
    }

    /// Merges a patch into an object.
    pub fn patch(kind: &str, namespace: &str, name: &str, body: Value) -> Result<Self> {
        let path = Kind::of_plural(kind)?.path(namespace, name);
        Ok(Self { method: "PATCH", path, media_type: "application/merge-patch+json", body })
    }

    /// Merges a patch into an object's status.
    pub fn status(kind: &str, namespace: &str, name: &str, status: &Value) -> Result<Self> {
        let mut write = Self::patch(kind, namespace, name, json!({ "status": status }))?;
        write.path += "/status";
        Ok(write)
    }

    /// Deletes an object at once.
    pub fn remove(kind: &str, namespace: &str, name: &str) -> Result<Self> {
        let path = Kind::of_plural(kind)?.path(namespace, name);
        let body = json!({ "gracePeriodSeconds": 0 });
        Ok(Self { method: "DELETE", path, media_type: "application/json", body })
    }
}

// === impl Crowd ===

impl Crowd {
    /// Clients by a kubeconfig.
    pub fn connect(kubeconfig: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            anyhow::Ok(Client::try_from(
                Config::from_custom_kubeconfig(kubeconfig, &options).await?,
            )?)
        })?;
        Ok(Self { client, runtime })
    }

    /// Makes all these writes, many at once: those of one list in their order.
    pub fn write(&self, lists: impl IntoIterator<Item = Vec<Write>>) -> Result<()> {
        let all = stream::iter(lists.into_iter().map(|list| async {
            for write in list {
                let what = format!("the API server refuses {} {}", write.method, write.path);
                let request = Request::builder()
                    .method(write.method)
                    .uri(write.path)
                    .header("content-type", write.media_type)
                    .body(write.body.to_string().into_bytes())?;
                self.client.request_text(request).await.context(what)?;
            }
            anyhow::Ok(())
        }));
        self.runtime.block_on(all.buffer_unordered(AT_ONCE).try_collect())
    }
}
