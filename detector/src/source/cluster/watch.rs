//! One kind of object, listed and then watched, for ever.
//!
//! kube's own watcher recovers in silence: it does not say when a watch that failed is whole again,
//! and so nobody could say how long the detector was blind. This one tells each failure and each
//! recovery. It lists and watches the plain way, since servers without WatchList refuse streamed
//! lists for good; it resumes a broken watch from where it was and lists anew only where the server
//! has forgotten that place.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use kube::api::{Api, ListParams, VersionMatch, WatchEvent, WatchParams};
use kube::runtime::watcher::DefaultBackoff;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use super::counters::Counters;
use super::failure;

/// What is heard of one kind of object. After [`Word::Blind`] comes [`Word::Seeing`], with a
/// [`Word::Reset`] before it where something may have been missed.
#[derive(Debug)]
pub(super) enum Word<T> {
    /// These are all.
    Reset(Vec<T>),
    /// One came or changed.
    Applied(T),
    /// One is gone; this is how it looked last.
    Deleted(T),
    /// The server does not have this kind of object.
    NotServed,
    /// Nothing is heard, for this reason.
    Blind(Box<str>),
    /// All is heard, from now on or again.
    Seeing,
}

/// What to list and watch, and how.
pub(super) struct Scope {
    /// What it is, as in "cannot list and watch ...".
    pub(super) what: String,
    /// The field selector.
    pub(super) fields: Option<String>,
    /// Whether the first listing may come from the server's cache. The cache has an index of pods by
    /// node, etcd has not; and what it lacks, the watch from its version brings.
    pub(super) cached: bool,
    /// Whether the server may lack this kind of object.
    pub(super) optional: bool,
    /// After how long without a word the watch is taken for dead: the server ends each watch after
    /// this time, so that a dead connection is found out.
    pub(super) patience: Duration,
}

/// How many objects a page has. A page is held as text and as objects at once, and a node with the
/// images that it has is 12 KiB of text: this is what a listing of many nodes adds to the agent's
/// memory, since allocators seldom give back.
const PAGE: u32 = 50;
/// The server's end of a watch may take this long to arrive.
const MARGIN: Duration = Duration::from_secs(5);
/// A server that ends each watch at once is treated as one that fails.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// How long until the server is asked again for a kind of object that it does not have.
const NOT_SERVED_PAUSE: Duration = Duration::from_mins(5);

/// Lists and watches the first of `apis` that the server has, for ever. `read` takes each object
/// apart; objects of which it makes nothing are passed over.
pub(super) fn follow<K, T, R>(
    apis: Vec<Api<K>>,
    scope: Scope,
    counters: Arc<Counters>,
    read: R,
) -> impl Stream<Item = Word<T>> + Send
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    T: Send,
    R: FnMut(K) -> Option<T> + Send,
{
    let follower = Follower {
        apis,
        served: 0,
        scope,
        counters,
        read,
        backoff: DefaultBackoff::default(),
        pause: None,
        blind: None,
        listed: false,
        said: VecDeque::new(),
        state: State::List(From::Start),
    };
    // The stream keeps the unfinished step, so a reader may stop waiting for it at any time.
    stream::unfold(follower, |mut follower| async {
        let word = follower.next().await;
        Some((word, follower))
    })
}

struct Follower<K, T, R> {
    apis: Vec<Api<K>>,
    /// Which of `apis` is asked.
    served: usize,
    scope: Scope,
    counters: Arc<Counters>,
    read: R,
    backoff: DefaultBackoff,
    /// To be waited before the next request.
    pause: Option<Duration>,
    /// Why nothing is heard.
    blind: Option<Box<str>>,
    /// Whether there was a listing since something may have been missed.
    listed: bool,
    said: VecDeque<Word<T>>,
    state: State<K>,
}

enum State<K> {
    List(From),
    /// Listed up to this version; to be watched from it.
    Listed(String),
    Watching {
        version: String,
        events: BoxStream<'static, kube::Result<WatchEvent<K>>>,
        since: Instant,
        quiet: bool,
    },
}

/// How fresh a listing must be.
enum From {
    /// As fresh as the scope wants.
    Start,
    /// No older than what was seen before.
    Version(String),
    /// The newest that there is.
    Newest,
}

// === impl Follower ===

impl<K, T, R> Follower<K, T, R>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    R: FnMut(K) -> Option<T>,
{
    async fn next(&mut self) -> Word<T> {
        loop {
            if let Some(word) = self.said.pop_front() {
                return word;
            }
            if let Some(pause) = self.pause.take() {
                sleep(pause).await;
            }
            self.state = match mem::replace(&mut self.state, State::List(From::Newest)) {
                State::List(from) => self.list(from).await,
                State::Listed(version) => self.watch(version).await,
                State::Watching { version, events, since, quiet } => {
                    self.hear(version, events, since, quiet).await
                }
            };
        }
    }

    async fn list(&mut self, from: From) -> State<K> {
        match self.pages(&from).await {
            Ok((objects, version)) => {
                self.counters.hear(&self.scope.what);
                Counters::increment(&self.counters.listings);
                self.said.push_back(Word::Reset(objects));
                self.listed = true;
                State::Listed(version)
            }
            Err(error) if self.scope.optional && failure::is_not_served(&error) => {
                self.served += 1;
                if self.served == self.apis.len() {
                    self.served = 0;
                    self.pause = Some(NOT_SERVED_PAUSE);
                    self.blind = None;
                    self.said.push_back(Word::NotServed);
                }
                State::List(From::Newest)
            }
            Err(error) => {
                self.fail(failure::reason(&self.scope.what, &error));
                State::List(if failure::is_out_of_range(&error) { From::Newest } else { from })
            }
        }
    }

    async fn pages(&mut self, from: &From) -> kube::Result<(Vec<T>, String)> {
        let (resource_version, version_match) = match from {
            From::Start if self.scope.cached => {
                (Some("0".to_owned()), Some(VersionMatch::NotOlderThan))
            }
            From::Version(version) if self.scope.cached => {
                (Some(version.clone()), Some(VersionMatch::NotOlderThan))
            }
            _ => (None, None),
        };
        let mut params = ListParams {
            field_selector: self.scope.fields.clone(),
            // With a limit the server goes past its cache, and kube drops version 0.
            limit: resource_version.is_none().then_some(PAGE),
            resource_version,
            version_match,
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            let page = self.apis[self.served].list(&params).await?;
            objects.extend(page.items.into_iter().filter_map(&mut self.read));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                // The token names the version itself.
                Some(token) => {
                    params.continue_token = Some(token);
                    (params.resource_version, params.version_match) = (None, None);
                }
                None => return Ok((objects, page.metadata.resource_version.unwrap_or_default())),
            }
        }
    }

    async fn watch(&mut self, version: String) -> State<K> {
        let params = WatchParams {
            field_selector: self.scope.fields.clone(),
            timeout: u32::try_from(self.scope.patience.as_secs()).ok(),
            ..WatchParams::default()
        };
        match self.apis[self.served].watch(&params, &version).await {
            Ok(events) => {
                self.counters.hear(&self.scope.what);
                if self.blind.take().is_some() || mem::take(&mut self.listed) {
                    self.said.push_back(Word::Seeing);
                }
                let events = events.boxed();
                State::Watching { version, events, since: Instant::now(), quiet: true }
            }
            Err(error) if self.scope.optional && failure::is_not_served(&error) => {
                State::List(From::Newest)
            }
            Err(error) => {
                self.fail(failure::reason(&self.scope.what, &error));
                if failure::is_out_of_range(&error) {
                    State::List(From::Version(version))
                } else {
                    State::Listed(version)
                }
            }
        }
    }

    async fn hear(
        &mut self,
        version: String,
        mut events: BoxStream<'static, kube::Result<WatchEvent<K>>>,
        since: Instant,
        quiet: bool,
    ) -> State<K> {
        let (word, version) = match timeout(self.scope.patience + MARGIN, events.next()).await {
            Ok(Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                let version = object.resource_version().unwrap_or(version);
                ((self.read)(object).map(Word::Applied), version)
            }
            Ok(Some(Ok(WatchEvent::Deleted(object)))) => {
                let version = object.resource_version().unwrap_or(version);
                ((self.read)(object).map(Word::Deleted), version)
            }
            Ok(Some(Ok(WatchEvent::Bookmark(bookmark)))) => {
                (None, bookmark.metadata.resource_version)
            }
            Ok(Some(Ok(WatchEvent::Error(status)))) => {
                let error = kube::Error::Api(status);
                self.fail(failure::reason(&self.scope.what, &error));
                return if failure::is_out_of_range(&error) {
                    State::List(From::Version(version))
                } else {
                    State::Listed(version)
                };
            }
            Ok(Some(Err(error))) => {
                self.fail(failure::reason(&self.scope.what, &error));
                // An object that cannot be read would come again and again from the same place. Where
                // it is JSON all the same, kube takes it for a bare Status; the server's own errors
                // are events.
                return match error {
                    kube::Error::SerdeError(_) | kube::Error::Api(_) => State::List(From::Newest),
                    _ => State::Listed(version),
                };
            }
            Ok(None) => {
                if quiet && since.elapsed() < SHORTEST_WATCH {
                    let what = &self.scope.what;
                    self.fail(format!("cannot {what}: the API server ends it at once").into());
                }
                return State::Listed(version);
            }
            Err(_) => {
                let what = &self.scope.what;
                self.fail(format!("cannot {what}: the API server has fallen silent").into());
                return State::Listed(version);
            }
        };
        self.counters.hear(&self.scope.what);
        self.said.extend(word);
        State::Watching { version, events, since, quiet: false }
    }

    /// Tells of a failure, unless that very thing was told last, and lets the server breathe.
    fn fail(&mut self, reason: Box<str>) {
        Counters::increment(&self.counters.failures);
        self.pause = self.backoff.next();
        if self.blind.as_ref() != Some(&reason) {
            self.blind = Some(reason.clone());
            self.said.push_back(Word::Blind(reason));
        }
    }
}

#[cfg(test)]
mod tests;
