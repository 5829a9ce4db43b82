//! Objects of a real API server, written and read without kubectl: quickly, for tests that write
//! many, and for tidying up.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::apiserver::kind::{KINDS, Kind};

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

/// A client of an API server that may do anything. It knows the kinds of
/// [`KINDS`](crate::apiserver::kind::KINDS).
///
/// Its methods wait for the answer; within a runtime, call them where waiting is allowed.
pub struct Objects {
    client: Client,
    /// There until it is dropped.
    runtime: Option<Runtime>,
    /// Objects that the server made itself, by their uids.
    own: Mutex<BTreeSet<String>>,
}

// === impl Objects ===

impl Objects {
    /// A client by a kubeconfig; the server need not be there yet.
    pub fn connect(kubeconfig: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let kubeconfig = Kubeconfig::from_yaml(kubeconfig)?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            config.default_retry = false;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { client, runtime: Some(runtime), own: Mutex::default() })
    }

    /// Whether the server says that it is ready, and serves those of our kinds that are defined.
    /// It is called ready before: what the definitions made is then still refused with 429.
    pub fn ready(&self) -> Result<()> {
        self.send("GET", "/readyz", JSON, String::new())?;
        for kind in KINDS.iter().filter(|kind| kind.custom) {
            let path = kind.path("", "") + "?limit=1";
            match self.send("GET", &path, JSON, String::new()) {
                Err(error) if code(&error) != Some(404) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Creates an object; its status, where it brings one, is written after it, as whoever is in
    /// charge of it would.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let kind = Kind::of_object(object)?;
        let (namespace, name) = place(object);
        let created = self.ask("POST", &kind.path(namespace, ""), JSON, object)?;
        match object.get("status") {
            Some(status) if kind.status => self.patch_status(kind.plural, namespace, name, status),
            _ => Ok(created),
        }
    }

    /// Creates an object, or replaces it; its status, where it brings one, is written after it.
    pub fn apply(&self, mut object: Value) -> Result<Value> {
        let kind = Kind::of_object(&object)?;
        match self.create(&object) {
            Err(error) if code(&error) == Some(409) => {}
            created => return created,
        }
        let (namespace, name) = place(&object);
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let standing = self.get(kind.plural, &namespace, &name)?;
        object["metadata"]["resourceVersion"] = standing["metadata"]["resourceVersion"].clone();
        let replaced = self.ask("PUT", &kind.path(&namespace, &name), JSON, &object)?;
        match object.get("status") {
            Some(status) if kind.status => {
                self.patch_status(kind.plural, &namespace, &name, status)
            }
            _ => Ok(replaced),
        }
    }

    /// Merges a patch into an object, all but its status.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<Value> {
        let target = Kind::of_plural(kind)?.path(namespace, name);
        self.ask("PATCH", &target, MERGE, patch)
    }

    /// Merges a patch into an object's status.
    pub fn patch_status(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<Value> {
        let path = Kind::of_plural(kind)?.path(namespace, name) + "/status";
        self.ask("PATCH", &path, MERGE, &json!({ "status": status }))
    }

    /// An object as it is now.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        let path = Kind::of_plural(kind)?.path(namespace, name);
        self.ask("GET", &path, JSON, &Value::Null)
    }

    /// Deletes an object at once, without grace.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let path = Kind::of_plural(kind)?.path(namespace, name);
        self.ask("DELETE", &path, JSON, &json!({ "gracePeriodSeconds": 0 })).map(drop)
    }

    /// Asks a pod to end, as whoever deletes it does: its kubelet removes it in the end.
    pub fn terminate(&self, namespace: &str, pod: &str) -> Result<()> {
        let path = Kind::of_plural("pods")?.path(namespace, pod);
        self.ask("DELETE", &path, JSON, &json!({ "gracePeriodSeconds": 30 })).map(drop)
    }

    /// Makes a namespace, where it is not there yet.
    pub fn make_namespace(&self, name: &str) -> Result<()> {
        if self.ask("GET", &format!("/api/v1/namespaces/{name}"), JSON, &Value::Null).is_ok() {
            return Ok(());
        }
        let namespace = json!({ "metadata": { "name": name } });
        self.ask("POST", "/api/v1/namespaces", JSON, &namespace).map(drop)
    }

    /// Takes the objects that are there for the server's own.
    pub fn remember(&self) -> Result<()> {
        let uids: Vec<String> = self.all()?.into_iter().map(|(_, object)| uid(&object)).collect();
        self.own.lock().unwrap_or_else(PoisonError::into_inner).extend(uids);
        Ok(())
    }

    /// Deletes all objects but the server's own. Namespaces stay: nobody here could end one.
    pub fn clear(&self) -> Result<()> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (kind, object) in self.all()? {
            let (namespace, name) = place(&object);
            if !own.contains(&uid(&object)) {
                self.remove(kind.plural, namespace, name)?;
            }
        }
        Ok(())
    }

    fn all(&self) -> Result<Vec<(&'static Kind, Value)>> {
        let mut all = Vec::new();
        for kind in &KINDS {
            let mut list = self.ask("GET", &kind.path("", ""), JSON, &Value::Null)?;
            let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
            all.extend(items.into_iter().map(|object| (kind, object)));
        }
        Ok(all)
    }

    fn ask(&self, method: &str, path: &str, media_type: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send(method, path, media_type, body)?;
        serde_json::from_str(&answer).with_context(|| format!("{method} {path}: {answer}"))
    }

    fn send(&self, method: &str, path: &str, media_type: &str, body: String) -> Result<String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .body(body.into_bytes())?;
        let runtime = self.runtime.as_ref().context("the client is being dropped")?;
        let answer = runtime.block_on(self.client.request_text(request));
        answer.with_context(|| format!("the API server refuses {method} {path}"))
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        // A runtime that is dropped waits for its threads, which is not allowed within another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The HTTP status code of a refusal.
pub fn code(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn place(object: &Value) -> (&str, &str) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}
