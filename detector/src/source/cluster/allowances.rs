//! The part of the allow-list that is kept in the cluster: FloatingIPAllowance objects.
//!
//! A new version of an object that makes no sense does not take away what its last good version
//! allowed: a typing error must not raise an alarm for each floating IP there is. What an agent has
//! never seen valid is not in force. A deletion ends it in either case.
//!
//! Where the definition of the kind is not installed there are none, and nothing is said of it.

pub mod object;
mod status;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{BoxFuture, OptionFuture};
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use self::object::Object;
use self::status::{Desk, Note, Outcome};
use super::counters::Counters;
use super::rejection::{Reason, Rejection};
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, failure};
use crate::config::MOST_ALLOWED;
use crate::policy::{Allowed, Grants, pause};

/// Who wrote a status, as the API server's record of fields has it.
const MANAGER: &str = "route-hijack-detector";

/// A write under way: to which object, and how it ends.
type Writing = BoxFuture<'static, (Box<str>, Outcome)>;

/// How many objects a page of a list has, for somebody who looks once.
const PAGE: u32 = 500;

/// All allowances as they are now, for somebody who looks once: what each allows, or why it allows
/// nothing. `None` where there is no such kind; an error is one line that says what to do.
pub(crate) async fn list(
    client: Client,
) -> Result<Option<Vec<Result<Allowed, Rejection>>>, Box<str>> {
    let api = Api::<DynamicObject>::all_with(client, &object::resource());
    let mut params = ListParams::default().limit(PAGE);
    let mut read = Vec::new();
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            Err(error) if failure::is_not_served(&error) => return Ok(None),
            Err(error) => {
                let what = format!("list {}", object::PLURAL);
                let remedy = "give this account the right to list them";
                return Err(failure::reason_with(&what, &error, remedy));
            }
        };
        // Whoever deletes one means it, even where something holds the deletion up.
        let stay = page.items.iter().filter(|item| item.metadata.deletion_timestamp.is_none());
        read.extend(stay.map(object::allowed));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(Some(read)),
        }
    }
}

/// Tells of the allowances until nobody listens, and writes their statuses.
pub(super) async fn run(client: Client, counters: Arc<Counters>, tx: mpsc::Sender<Grants>) {
    let api = Api::<DynamicObject>::all_with(client, &object::resource());
    let scope = Scope {
        what: format!("list and watch {}", object::PLURAL),
        fields: None,
        cached: false,
        optional: true,
        patience: SLOW_PATIENCE,
    };
    let read = {
        let counters = Arc::clone(&counters);
        move |object: DynamicObject| {
            let read = Object::read(&object);
            if read.is_none() {
                let rejection = Rejection::new(object::KIND, "metadata", Reason::Malformed, "");
                counters.rejections.report([rejection]);
            }
            read
        }
    };
    let words = follow(vec![api.clone()], scope, Arc::clone(&counters), read);
    let mut words = std::pin::pin!(words);
    let mut known = Known::new(Arc::clone(&counters));
    let mut desk = Desk::default();
    let mut writing: OptionFuture<Writing> = None.into();
    let mut idle = true;
    loop {
        // Also looked at when the clock was set and nothing else happened.
        let mut wait = pause(known.valid(), Timestamp::now());
        if idle && let Some(due) = desk.pause(Instant::now()) {
            wait = wait.min(due);
        }
        tokio::select! {
            word = words.next() => {
                let Some(word) = word else { return };
                for grants in known.hear(word) {
                    if tx.send(grants).await.is_err() {
                        return;
                    }
                }
            }
            Some((name, outcome)) = &mut writing, if !idle => {
                idle = true;
                desk.done(&name, outcome, Instant::now());
            }
            () = sleep(wait) => {}
        }
        let (now, clock) = (Timestamp::now(), Instant::now());
        desk.plan(known.objects(), now, clock);
        if idle && let Some(note) = desk.due(known.objects(), now, clock) {
            writing = Some(write(api.clone(), note, Arc::clone(&counters)).boxed()).into();
            idle = false;
        }
    }
}

/// Writes a status.
async fn write(
    api: Api<DynamicObject>,
    note: Note,
    counters: Arc<Counters>,
) -> (Box<str>, Outcome) {
    let Note { name, patch } = note;
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let outcome = match api.patch_status(&name, &params, &Patch::Merge(patch)).await {
        Ok(_) => {
            Counters::increment(&counters.statuses);
            Outcome::Written
        }
        Err(kube::Error::Api(status)) if status.code == 409 => Outcome::Outdated,
        Err(kube::Error::Api(status)) if status.code == 404 => Outcome::Absent,
        Err(error) => {
            let forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
            let why = failure::reason("write the status of floatingipallowances", &error);
            if Counters::increment(&counters.unwritten) == 0 {
                warn!("{why}; allowances are in force all the same, this is said once");
            } else {
                debug!("{why}");
            }
            if forbidden { Outcome::Forbidden } else { Outcome::Failed }
        }
    };
    (name, outcome)
}

/// An object, and what of it is in force.
struct Kept {
    object: Object,
    /// What the last valid version allowed.
    valid: Option<Allowed>,
}

/// The objects, by name.
struct Known {
    objects: BTreeMap<Box<str>, Kept>,
    told: Vec<Allowed>,
    counters: Arc<Counters>,
}

// === impl Known ===

impl Known {
    fn new(counters: Arc<Counters>) -> Self {
        Self { objects: BTreeMap::new(), told: Vec::new(), counters }
    }

    fn objects(&self) -> impl Iterator<Item = &Object> {
        self.objects.values().map(|kept| &kept.object)
    }

    /// All that the objects allow, the expired among them.
    fn valid(&self) -> impl Iterator<Item = &Allowed> {
        self.objects.values().filter_map(|kept| kept.valid.as_ref())
    }

    /// What is to be told after a word about the objects.
    fn hear(&mut self, word: Word<Object>) -> Vec<Grants> {
        let sight = match word {
            Word::Reset(objects) => {
                let mut old = std::mem::take(&mut self.objects);
                for object in objects {
                    let earlier = old.remove(&object.name);
                    self.take(object, earlier);
                }
                None
            }
            Word::Applied(object) => {
                let earlier = self.objects.remove(&object.name);
                self.take(object, earlier);
                None
            }
            Word::Deleted(object) => {
                self.objects.remove(&object.name);
                None
            }
            Word::NotServed => {
                self.objects.clear();
                Some(Grants::Blind(None))
            }
            Word::Blind(why) => Some(Grants::Blind(Some(why))),
            Word::Seeing => Some(Grants::Blind(None)),
        };
        self.news().into_iter().chain(sight).collect()
    }

    /// Takes an object in the place of its earlier version.
    fn take(&mut self, object: Object, earlier: Option<Kept>) {
        // An object made anew under the same name inherits nothing.
        let earlier = earlier.filter(|earlier| earlier.object.uid == object.uid);
        let valid = match &object.meaning {
            // Whoever deletes it means it, even where something holds the deletion up.
            _ if object.going => None,
            Ok(allowed) => Some(allowed.clone()),
            Err(problem) => {
                let told = earlier.as_ref().is_some_and(|e| e.object.is_version_of(&object));
                let valid = earlier.and_then(|earlier| earlier.valid);
                // A mere change of the status says nothing new.
                if !told {
                    let stays = if valid.is_some() {
                        "; its last valid version stays in force"
                    } else {
                        ""
                    };
                    let text = format!("{}{stays}", problem.text);
                    let name = object::shown_name(&object.name);
                    let rejection = Rejection::in_words(&name, problem.field, &text);
                    self.counters.rejections.report([rejection]);
                }
                valid
            }
        };
        self.objects.insert(object.name.clone(), Kept { object, valid });
    }

    /// The list, where it is not what was told last.
    fn news(&mut self) -> Option<Grants> {
        // Most words are about statuses and change nothing.
        if self.valid().take(MOST_ALLOWED).eq(&self.told) {
            return None;
        }
        let list: Vec<Allowed> = self.valid().take(MOST_ALLOWED).cloned().collect();
        if let Some(first) = self.valid().nth(MOST_ALLOWED) {
            let text = format!("is one entry too many: at most {MOST_ALLOWED} are taken, by name");
            let rejection = Rejection::in_words(&first.allowance.origin, "spec", &text);
            self.counters.rejections.report([rejection]);
        }
        self.told.clone_from(&list);
        Some(Grants::All(list))
    }
}

#[cfg(test)]
mod tests;
