//! The allow-list in force: what the configuration file and the cluster say together, less what has
//! expired.
//!
//! One task merges both lists, looks at the wall clock, and tells the engine when the outcome has
//! changed. The engine itself knows no wall clock: for it an entry is there or is not.

use std::sync::Arc;
use std::time::Duration;

use detector_core::observation::{Observation, Sense, What};
use detector_core::policy::{AllowList, Allowance};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cli::RunArgs;
use crate::clock;
use crate::config::Config;
use crate::config::reload::{self, Reloads};

/// How often the wall clock is looked at even though nothing expires: it can be set.
const GLANCE: Duration = Duration::from_secs(30);

/// An entry of the allow-list, and how long it is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// What is allowed, to whom, by what, and why.
    pub allowance: Allowance,
    /// From when on it is not allowed any more; `None` where it is for good.
    pub expires: Option<Timestamp>,
}

/// What the cluster says of its part of the allow-list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grants {
    /// These are all entries, the expired ones among them.
    All(Vec<Allowed>),
    /// They cannot be read, for this reason; `None` when they can be again. What was told before
    /// stays in force.
    Blind(Option<Box<str>>),
}

/// The tasks that keep the allow-list. They end when this is dropped.
#[derive(Debug)]
pub struct Policy {
    _tasks: JoinSet<()>,
    reloads: Arc<Reloads>,
}

/// Both lists, and what the engine was told of them.
#[derive(Debug)]
struct Lists {
    configured: Vec<Allowed>,
    granted: Vec<Allowed>,
    told: AllowList,
}

// === impl Allowed ===

impl Allowed {
    /// Whether it has not expired.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether it is about the same addresses and the same service account.
    pub(crate) fn allows_the_same_as(&self, other: &Allowance) -> bool {
        let Allowance { cidr, namespace, service_account, origin: _, reason: _ } = &self.allowance;
        *cidr == other.cidr
            && *namespace == other.namespace
            && *service_account == other.service_account
    }
}

// === impl Policy ===

impl Policy {
    /// Starts to keep the allow-list. The first one is handed back, later ones are told to `tx`.
    /// `grants` is the cluster's part, where the cluster is asked at all.
    pub fn start(
        config: &Config,
        args: &RunArgs,
        grants: Option<mpsc::Receiver<Grants>>,
        tx: &mpsc::Sender<Observation>,
    ) -> (Self, AllowList) {
        let (lists, first) = Lists::new(config.allowed.clone(), Timestamp::now());
        let reloads = Arc::new(Reloads::default());
        let mut tasks = JoinSet::new();
        let (configure, configured) = mpsc::channel(1);
        if let Some(path) = args.config.clone() {
            let reloads = Arc::clone(&reloads);
            tasks.spawn(reload::run(path, args.clone(), config.clone(), reloads, configure));
        }
        tasks.spawn(keep(lists, configured, grants, tx.clone()));
        (Self { _tasks: tasks, reloads }, first)
    }

    /// How often the configuration file was read anew, and with what outcome.
    pub fn reloads(&self) -> &Arc<Reloads> {
        &self.reloads
    }
}

/// Tells of the allow-list until nobody listens.
async fn keep(
    mut lists: Lists,
    mut configured: mpsc::Receiver<Vec<Allowed>>,
    grants: Option<mpsc::Receiver<Grants>>,
    tx: mpsc::Sender<Observation>,
) {
    // Without a cluster nothing is ever granted: a channel that is closed.
    let mut grants = grants.unwrap_or_else(|| mpsc::channel(1).1);
    loop {
        let pause = pause(lists.all(), Timestamp::now());
        let mut sight = None;
        tokio::select! {
            Some(entries) = configured.recv() => lists.configured = entries,
            Some(word) = grants.recv() => match word {
                Grants::All(entries) => lists.granted = entries,
                Grants::Blind(why) => sight = Some(What::Blind(Sense::Allowances, why)),
            },
            () = tokio::time::sleep(pause) => {}
            () = tx.closed() => return,
        }
        // The list first: when the engine hears that it sees again, it must know what is seen.
        let list = lists.news(Timestamp::now()).map(What::AllowList);
        for what in list.into_iter().chain(sight) {
            if tx.send(Observation { at: clock::now(), what }).await.is_err() {
                return;
            }
        }
    }
}

/// How long until the wall clock must be looked at again: until the next of `entries` expires, but
/// never so long that a clock that was set goes unnoticed.
pub(crate) fn pause<'a>(
    entries: impl IntoIterator<Item = &'a Allowed>,
    now: Timestamp,
) -> Duration {
    let left = entries.into_iter().filter_map(|entry| entry.expires);
    let left =
        left.filter(|expires| *expires > now).min().map(|expires| expires.duration_since(now));
    // A millisecond more, so that the timer's rounding does not wake it before the time.
    let left = left.and_then(|left| Duration::try_from(left).ok());
    left.map_or(GLANCE, |left| GLANCE.min(left + Duration::from_millis(1)))
}

// === impl Lists ===

impl Lists {
    /// The configuration's list alone, and what of it is in force.
    fn new(configured: Vec<Allowed>, now: Timestamp) -> (Self, AllowList) {
        let mut lists = Self { configured, granted: Vec::new(), told: AllowList::default() };
        lists.told = lists.in_force(now);
        let first = lists.told.clone();
        (lists, first)
    }

    fn all(&self) -> impl Iterator<Item = &Allowed> {
        self.configured.iter().chain(&self.granted)
    }

    fn in_force(&self, now: Timestamp) -> AllowList {
        let entries = self.all().filter(|entry| entry.is_in_force(now));
        AllowList::new(entries.map(|entry| entry.allowance.clone()).collect())
    }

    /// The list in force, where it is not what was told last.
    fn news(&mut self, now: Timestamp) -> Option<AllowList> {
        let list = self.in_force(now);
        (list != self.told).then(|| {
            self.told = list.clone();
            list
        })
    }
}

#[cfg(test)]
mod tests {
    use detector_core::route::Prefix;

    use super::*;

    /// An entry for one address that expires so many seconds after the epoch.
    fn allowed(address: &str, expires: Option<i64>) -> Allowed {
        let allowance = Allowance {
            cidr: Prefix::host(address.parse().unwrap()),
            namespace: "edge".into(),
            service_account: "gateway".into(),
            origin: "configuration".into(),
            reason: None,
        };
        Allowed { allowance, expires: expires.map(at) }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn list(entries: &[&Allowed]) -> AllowList {
        AllowList::new(entries.iter().map(|entry| entry.allowance.clone()).collect())
    }

    #[test]
    fn what_is_in_force_is_both_lists_less_what_has_expired() {
        let (a, b, c) = (
            allowed("192.0.2.1", None),
            allowed("192.0.2.2", Some(100)),
            allowed("192.0.2.3", Some(50)),
        );
        let (mut lists, first) = Lists::new(vec![a.clone(), c.clone()], at(50));
        assert_eq!(first, list(&[&a]), "at its time it is no longer in force");
        assert_eq!(lists.news(at(50)), None);
        lists.granted = vec![b.clone()];
        assert_eq!(lists.news(at(60)), Some(list(&[&a, &b])));
        assert_eq!(lists.news(at(99)), None);
        assert_eq!(lists.news(at(100)), Some(list(&[&a])));
        // A clock that is set back brings back what has not expired by it.
        assert_eq!(lists.news(at(40)), Some(list(&[&a, &c, &b])));
        lists.configured.clear();
        assert_eq!(lists.news(at(40)), Some(list(&[&b])));
    }

    #[test]
    fn the_clock_is_looked_at_when_something_expires_and_at_least_every_so_often() {
        let soon = Duration::from_millis(5_001);
        let entries = [allowed("192.0.2.1", Some(90)), allowed("192.0.2.2", Some(105))];
        assert_eq!(pause(&entries, at(100)), soon);
        assert_eq!(pause(&entries, at(105)), GLANCE);
        assert_eq!(pause(&entries, at(0)), GLANCE);
        assert_eq!(pause(&[], at(0)), GLANCE);
    }

    #[tokio::test]
    async fn the_engine_hears_the_list_before_it_hears_that_it_is_seen() {
        let (lists, _) = Lists::new(Vec::new(), Timestamp::now());
        let (_configure, configured) = mpsc::channel(1);
        let (grant, grants) = mpsc::channel(4);
        let (tx, mut rx) = mpsc::channel(4);
        let task = tokio::spawn(keep(lists, configured, Some(grants), tx));
        let entry = allowed("192.0.2.1", None);
        grant.send(Grants::Blind(Some("so it is".into()))).await.unwrap();
        grant.send(Grants::All(vec![entry.clone()])).await.unwrap();
        grant.send(Grants::All(vec![entry.clone()])).await.unwrap();
        grant.send(Grants::Blind(None)).await.unwrap();
        let blind = |why| What::Blind(Sense::Allowances, why);
        assert_eq!(rx.recv().await.unwrap().what, blind(Some("so it is".into())));
        assert_eq!(rx.recv().await.unwrap().what, What::AllowList(list(&[&entry])));
        assert_eq!(rx.recv().await.unwrap().what, blind(None));
        drop(rx);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn an_entry_leaves_by_itself_when_its_time_has_come() {
        let mut entry = allowed("192.0.2.1", None);
        entry.expires = Some(Timestamp::now() + Duration::from_millis(300));
        let (lists, first) = Lists::new(vec![entry.clone()], Timestamp::now());
        assert_eq!(first, list(&[&entry]));
        let (tx, mut rx) = mpsc::channel(4);
        let task = tokio::spawn(keep(lists, mpsc::channel(1).1, None, tx));
        let told = tokio::time::timeout(GLANCE, rx.recv()).await.unwrap().unwrap();
        assert_eq!(told.what, What::AllowList(AllowList::default()));
        assert!(!entry.is_in_force(Timestamp::now()));
        drop(rx);
        task.await.unwrap();
    }
}
