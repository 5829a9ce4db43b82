//! An API server for tests: the part of kube-apiserver that a node agent meets, on loopback.
//!
//! What it promises is what a client can observe of a real server without the WatchList feature
//! (1.31 and older, or the feature switched off): one growing resourceVersion for all objects,
//! lists that can be paged and continued, watches that start exactly where a list ended, 410 as an
//! event inside a stream that began with 200, field selectors that turn a change into ADDED or
//! DELETED, graceful deletion of pods, and a `status` subresource that takes annotations as well.
//!
//! What of this a real server does too is stated in `tests/tests/apiserver/contract`, which is held
//! against both.
//!
//! What it leaves out, and says so when it is asked: authentication, admission, label selectors,
//! JSON patch, server-side apply, dry runs, protobuf. Finalizers do not hold up a deletion,
//! and any namespace is taken to be there.
//!
//! Reading order: [`kind`] (what is served), `store` (versions and history), `write` (what a write
//! may touch), `read` and `watch` (what a reader is told), `server` (HTTP), [`fault`] and
//! [`traffic`] (what only a test can ask for).

mod discovery;
pub mod fault;
pub mod kind;
mod object;
mod options;
mod read;
pub mod refusal;
mod selector;
mod server;
mod shape;
mod store;
mod target;
pub mod traffic;
mod watch;
mod write;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use serde_json::Value;

use self::fault::Faults;
use self::kind::Kind;
use self::refusal::Refusal;
use self::store::{Key, Store};
use self::traffic::Traffic;
use crate::door::Door;

/// A running API server. It stops, and closes all its connections, when it is dropped.
///
/// Every method may be called from any thread, with or without a runtime. A write is in the
/// history, and on its way to every watch, when the call returns.
pub struct ApiServer {
    addr: SocketAddr,
    world: Arc<World>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the connections and the test share.
struct World {
    store: Mutex<Store>,
    traffic: Arc<Traffic>,
    faults: Faults,
}

// === impl ApiServer ===

impl ApiServer {
    /// Serves on a listener, which may have been bound in another network namespace.
    pub fn start(listener: TcpListener) -> Result<Self> {
        let addr = listener.local_addr().context("cannot read the listener's address")?;
        listener.set_nonblocking(true).context("cannot make the listener non-blocking")?;
        let (orders, ordered) = tokio::sync::mpsc::unbounded_channel();
        let world = Arc::new(World {
            store: Mutex::new(Store::new()),
            traffic: Arc::new(Traffic::default()),
            faults: Faults::new(orders),
        });
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the API server's runtime")?;
        let door = {
            let _inside = runtime.enter();
            Door::new(listener, addr)?
        };
        let shared = Arc::clone(&world);
        let thread = std::thread::Builder::new()
            .name("apiserver".to_owned())
            .spawn(move || runtime.block_on(server::serve(door, shared, ordered, stopped)))
            .context("cannot start the API server's thread")?;
        Ok(Self { addr, world, stop: Some(stop), thread: Some(thread) })
    }

    /// Serves on a free port of 127.0.0.1.
    pub fn on_loopback() -> Result<Self> {
        Self::start(TcpListener::bind("127.0.0.1:0").context("cannot bind a port of loopback")?)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A kubeconfig file for this server: plain HTTP, no credentials, namespace `default`.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster:\n    server: http://{}\n\
             users:\n- name: nobody\n  user: {{}}\n\
             contexts:\n- name: test\n  context:\n    cluster: test\n    user: nobody\n",
            self.addr
        )
    }

    /// Creates an object, or replaces all of it, status included.
    ///
    /// The uid and the creation time stay, unless the object brings a uid of its own that differs:
    /// then the old object is deleted first, as when a StatefulSet makes a pod anew.
    pub fn apply(&self, object: Value) -> Result<Value, Refusal> {
        write::apply(&mut self.world.store(), object)
    }

    /// Merges a JSON merge patch (RFC 7386) into any part of an object.
    ///
    /// `kind` is the plural, such as `pods`; `namespace` is empty for objects of the cluster.
    pub fn patch(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value, Refusal> {
        write::patch_all(&mut self.world.store(), &key(kind, namespace, name)?, patch)
    }

    /// Replaces an object's status, and nothing else of it.
    pub fn set_status(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<Value, Refusal> {
        let key = key(kind, namespace, name)?;
        write::set_status(&mut self.world.store(), &key, status)
    }

    /// Deletes a pod with its own grace period: it stays, with a deletionTimestamp, until
    /// [`ApiServer::remove`] plays the kubelet's part.
    pub fn terminate(&self, namespace: &str, pod: &str) -> Result<Value, Refusal> {
        let key = key("pods", namespace, pod)?;
        write::delete(&mut self.world.store(), &key, &write::Deletion::default())
    }

    /// Deletes an object at once, without grace.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<Value, Refusal> {
        let key = key(kind, namespace, name)?;
        write::delete(&mut self.world.store(), &key, &write::Deletion::at_once())
    }

    /// An object as it is now.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = key(kind, namespace, name).ok()?;
        self.world.store().get(&key).map(|object| object.as_ref().clone())
    }

    /// The newest resourceVersion.
    pub fn version(&self) -> u64 {
        self.world.store().version()
    }

    /// Forgets all history: every version that was handed out so far is too old to watch or to
    /// continue from. Watches that are open go on.
    pub fn compact(&self) {
        self.world.store().compact();
    }

    /// Sends a bookmark on every open watch that allows them.
    pub fn bookmark(&self) {
        self.world.store().bookmark();
    }

    /// Sends a line, which need not be JSON, on every open watch of a kind.
    pub fn write_line(&self, kind: &str, line: &str) -> Result<(), Refusal> {
        let kind = Kind::of_plural(kind)?;
        self.world.store().write_line(kind, line);
        Ok(())
    }

    /// Makes the server one with the WatchList feature (on by default from 1.34), or without.
    pub fn serve_watch_list(&self, on: bool) {
        self.world.store().watch_list = on;
    }

    /// What has been asked and answered so far.
    pub fn traffic(&self) -> &Traffic {
        &self.world.traffic
    }

    /// What can be made to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.world.faults
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Both fail only when the thread is gone already, and then there is nothing to stop.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl World ===

impl World {
    /// Locks the store. A writer that panicked did so before it committed anything.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(kind: &str, namespace: &str, name: &str) -> Result<Key, Refusal> {
    Ok(Key::new(Kind::of_plural(kind)?, namespace, name))
}
