//! All objects, their versions, and the history that lists and watches are served from.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::kind::Kind;
use super::object::{meta, set_meta, time_after};
use super::refusal::Refusal;

/// How many changes are kept. More than a test makes by accident, so that only
/// [`Store::compact`] makes a version too old.
const HISTORY: usize = 100_000;

/// Which object. Ordered as etcd orders them, which is the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    plural: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// One version: what an object was before, and what it is after.
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) at: Instant,
    pub(super) key: Key,
    /// None when the change created the object.
    pub(super) before: Option<Arc<Value>>,
    /// None when the change deleted the object.
    pub(super) after: Option<Arc<Value>>,
}

/// What an open watch is told, in this order.
pub(super) enum Delivery {
    /// An object that stands when the watch opens.
    Standing(Arc<Value>),
    /// All that stood has been told.
    StandingEnds(u64),
    /// Something changed.
    Change(Arc<Change>),
    /// Nothing changed up to this version.
    Bookmark(u64),
    /// Bytes that a test put there.
    Line(String),
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Start {
    /// With all that stands, then its changes.
    Standing,
    /// The same, with a bookmark in between.
    StandingThenBookmark,
    /// With the first change after a version.
    After(u64),
}

pub(super) struct Store {
    /// Whether watches may ask for their initial state (the WatchList feature).
    pub(super) watch_list: bool,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Arc<Change>>,
    /// The version of the newest change.
    version: u64,
    /// Changes up to and including this one are forgotten.
    compacted: u64,
    /// How many uids were given.
    uids: u64,
    watches: Vec<(&'static str, mpsc::UnboundedSender<Delivery>)>,
}

// === impl Key ===

impl Key {
    pub(super) fn new(kind: &Kind, namespace: &str, name: &str) -> Self {
        Self { plural: kind.plural, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(super) fn is_of(&self, kind: &Kind) -> bool {
        self.plural == kind.plural
    }

    /// The kind, which is in the table because [`Key::new`] took it from there.
    pub(super) fn kind(&self) -> Result<&'static Kind, Refusal> {
        Kind::of_plural(self.plural)
    }
}

// === impl Store ===

impl Store {
    pub(super) fn new() -> Self {
        // 0 means "any version" to every client, so the first version is 1.
        Self {
            watch_list: false,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            version: 1,
            compacted: 0,
            uids: 0,
            watches: Vec::new(),
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The object, or 404.
    pub(super) fn existing(&self, key: &Key) -> Result<Arc<Value>, Refusal> {
        match self.get(key) {
            Some(object) => Ok(Arc::clone(object)),
            None => Err(Refusal::not_found(key.kind()?, &key.name)),
        }
    }

    /// Writes an object. Gives it a uid and a creation time where it has none, a version unless
    /// nothing changed, and a custom one its generation.
    pub(super) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        let before = self.objects.get(&key).cloned();
        if key.kind().is_ok_and(|kind| kind.custom) {
            let generation = generation(&key, before.as_deref(), &object);
            set_meta(&mut object, "generation", json!(generation));
        }
        if let Some(before) = &before {
            set_meta(&mut object, "resourceVersion", json!(meta(before, "resourceVersion")));
            if **before == object {
                return Arc::clone(before);
            }
        }
        if meta(&object, "uid").is_empty() {
            self.uids += 1;
            let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
            set_meta(&mut object, "uid", json!(uid));
        }
        if meta(&object, "creationTimestamp").is_empty() {
            set_meta(&mut object, "creationTimestamp", time_after(Duration::ZERO));
        }
        self.version += 1;
        let object = Arc::new(at_version(object, self.version));
        self.objects.insert(key.clone(), Arc::clone(&object));
        self.record(key, before, Some(Arc::clone(&object)));
        object
    }

    /// Takes an object away and gives its last state.
    pub(super) fn take(&mut self, key: &Key) -> Result<Arc<Value>, Refusal> {
        let before = self.existing(key)?;
        self.objects.remove(key);
        self.version += 1;
        self.record(key.clone(), Some(Arc::clone(&before)), None);
        Ok(before)
    }

    fn record(&mut self, key: Key, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        let change =
            Arc::new(Change { version: self.version, at: Instant::now(), key, before, after });
        self.watches.retain(|(plural, watch)| {
            if *plural == change.key.plural {
                watch.send(Delivery::Change(Arc::clone(&change))).is_ok()
            } else {
                !watch.is_closed()
            }
        });
        self.history.push_back(change);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.compacted = oldest.version;
        }
    }

    /// The objects of a kind in the order of their keys, as they stood at a version.
    pub(super) fn at(
        &self,
        kind: &Kind,
        version: u64,
    ) -> Result<BTreeMap<&Key, &Arc<Value>>, Refusal> {
        if version < self.compacted {
            return Err(Refusal::expired(format!(
                "the resourceVersion {version} is too old; the oldest is {}",
                self.compacted
            )));
        }
        let mut objects: BTreeMap<_, _> =
            self.objects.iter().filter(|(key, _)| key.is_of(kind)).collect();
        let later = self.history.iter().rev().take_while(|change| change.version > version);
        for change in later.filter(|change| change.key.is_of(kind)) {
            match &change.before {
                Some(before) => objects.insert(&change.key, before),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// Opens a watch of a kind: what it gives is complete and in order from its start on.
    pub(super) fn watch(
        &mut self,
        kind: &Kind,
        start: Start,
    ) -> Result<mpsc::UnboundedReceiver<Delivery>, Refusal> {
        let (sender, receiver) = mpsc::unbounded_channel();
        // The receiver lives until this function returns, so no send of it can fail.
        let tell = |delivery| {
            let _ = sender.send(delivery);
        };
        match start {
            Start::Standing | Start::StandingThenBookmark => {
                let standing = self.objects.iter().filter(|(key, _)| key.is_of(kind));
                standing.for_each(|(_, object)| tell(Delivery::Standing(Arc::clone(object))));
                if start == Start::StandingThenBookmark {
                    tell(Delivery::StandingEnds(self.version));
                }
            }
            Start::After(version) if version < self.compacted => {
                let newest = self.compacted;
                let message = format!("too old resource version: {version} ({newest})");
                return Err(Refusal::expired(message));
            }
            Start::After(version) => self
                .history
                .iter()
                .filter(|change| change.version > version && change.key.is_of(kind))
                .for_each(|change| tell(Delivery::Change(Arc::clone(change)))),
        }
        self.watches.push((kind.plural, sender));
        Ok(receiver)
    }

    /// Forgets the history. A version is spent on it, as if an object that nobody looks at had
    /// been written, so that the newest version that anybody was told is too old as well.
    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.history.clear();
    }

    /// Puts a bookmark into every watch.
    pub(super) fn bookmark(&mut self) {
        let version = self.version;
        self.watches.retain(|(_, watch)| watch.send(Delivery::Bookmark(version)).is_ok());
    }

    /// Puts a line of bytes into every watch of a kind.
    pub(super) fn write_line(&mut self, kind: &Kind, line: &str) {
        self.watches.retain(|(plural, watch)| {
            *plural != kind.plural || watch.send(Delivery::Line(line.to_owned())).is_ok()
        });
    }
}

/// The object with a version written into it.
pub(super) fn at_version(mut object: Value, version: u64) -> Value {
    set_meta(&mut object, "resourceVersion", json!(version.to_string()));
    object
}

/// Which generation of its content a custom object is: metadata never counts, the status not where
/// it is written apart (`customResourceStrategy.PrepareForUpdate`).
fn generation(key: &Key, before: Option<&Value>, object: &Value) -> u64 {
    let content = |object: &Value| {
        let mut content = object.clone();
        content["metadata"] = Value::Null;
        if key.kind().is_ok_and(|kind| kind.status) {
            content["status"] = Value::Null;
        }
        content
    };
    match before {
        None => 1,
        Some(before) => {
            let earlier = before["metadata"]["generation"].as_u64().unwrap_or(1);
            earlier + u64::from(content(before) != content(object))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_map(store: &mut Store, name: &str, data: &str) -> u64 {
        let kind = Kind::of_plural("configmaps").unwrap();
        let object = json!({ "metadata": { "name": name }, "data": { "key": data } });
        store.put(Key::new(kind, "default", name), object);
        store.version()
    }

    fn names_at(store: &Store, version: u64) -> Vec<(String, String)> {
        let objects = store.at(Kind::of_plural("configmaps").unwrap(), version).unwrap();
        let text = |object: &Value| object["data"]["key"].as_str().unwrap().to_owned();
        objects.iter().map(|(key, object)| (key.name.clone(), text(object))).collect()
    }

    #[test]
    fn every_version_can_be_read_back() {
        let mut store = Store::new();
        let kind = Kind::of_plural("configmaps").unwrap();
        let first = config_map(&mut store, "b", "1");
        let second = config_map(&mut store, "a", "1");
        let third = config_map(&mut store, "b", "2");
        store.take(&Key::new(kind, "default", "a")).unwrap();
        let pair = |name: &str, data: &str| (name.to_owned(), data.to_owned());
        assert_eq!(names_at(&store, 1), []);
        assert_eq!(names_at(&store, first), [pair("b", "1")]);
        assert_eq!(names_at(&store, second), [pair("a", "1"), pair("b", "1")]);
        assert_eq!(names_at(&store, third), [pair("a", "1"), pair("b", "2")]);
        assert_eq!(names_at(&store, store.version()), [pair("b", "2")]);
    }

    #[test]
    fn a_write_of_the_same_makes_no_version() {
        let mut store = Store::new();
        let key = Key::new(Kind::of_plural("configmaps").unwrap(), "default", "a");
        let first = store.put(key.clone(), json!({ "metadata": { "name": "a" } }));
        let version = store.version();
        assert!(Arc::ptr_eq(&first, &store.put(key, first.as_ref().clone())));
        assert_eq!(store.version(), version);
    }

    #[test]
    fn compaction_makes_the_newest_known_version_too_old() {
        let mut store = Store::new();
        let known = config_map(&mut store, "a", "1");
        let kind = Kind::of_plural("configmaps").unwrap();
        assert!(store.watch(kind, Start::After(known)).is_ok());
        store.compact();
        assert_eq!(store.watch(kind, Start::After(known)).unwrap_err().code, 410);
        assert_eq!(store.at(kind, known).unwrap_err().code, 410);
        assert!(store.watch(kind, Start::After(store.version())).is_ok());
    }
}
