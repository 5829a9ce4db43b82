//! IP pools, and whether Calico's IPAM gives addresses at all.
//!
//! Calico's IPAM keeps its record in IPAMBlocks. Where there is not a single one, or no such kind of
//! object, the record can prove nothing: another IPAM gives pods their addresses (host-local, a
//! cloud's), or none has given any yet. That is asked with a LIST of one object, once the pools are
//! known, when they change, and from time to time as long as there is none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use detector_core::claim::{Ipam, Pool};
use detector_core::observation::{Observation, Sense, What};
use futures::StreamExt as _;
use kube::api::{DynamicObject, ListParams};
use kube::runtime::utils::Backoff as _;
use kube::runtime::watcher::DefaultBackoff;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::counters::Counters;
use super::sight::Sight;
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, calico, failure, parse, tell};

/// How often is looked for blocks while there are none.
const WITHOUT_BLOCKS: Duration = Duration::from_mins(3);

/// The parts of the sense.
const POOLS: usize = 0;
const BLOCKS: usize = 1;

/// Tells of the pools until nobody listens.
pub(super) async fn run(client: Client, counters: Arc<Counters>, tx: mpsc::Sender<Observation>) {
    let scope = Scope {
        what: "list and watch ippools".into(),
        fields: None,
        cached: false,
        optional: true,
        patience: SLOW_PATIENCE,
    };
    let read = {
        let counters = Arc::clone(&counters);
        move |object: DynamicObject| {
            // A pool that cannot be read any more is none, not what it was before.
            Some((object.name_any(), counters.rejections.take(parse::pool(&object))))
        }
    };
    let apis = calico::apis(&client, "IPPool", "ippools");
    let words = follow(apis, scope, Arc::clone(&counters), read);
    let mut words = std::pin::pin!(words);
    let blocks = calico::apis(&client, "IPAMBlock", "ipamblocks");
    let mut backoff = DefaultBackoff::default();
    let mut known = Known::new();
    // When is looked for blocks.
    let mut look: Option<Instant> = None;
    loop {
        let told = tokio::select! {
            word = words.next() => {
                let Some(word) = word else { return };
                let told = known.hear(word);
                let changed = told.iter().any(|what| matches!(what, What::Pools(_)));
                if changed || (look.is_none() && known.ipam == Ipam::Unknown) {
                    look = Some(Instant::now());
                }
                told
            }
            () = at(look) => {
                let found = has_blocks(&blocks).await;
                let pause = if let Ok(has_blocks) = &found {
                    backoff.reset();
                    (!has_blocks).then_some(WITHOUT_BLOCKS)
                } else {
                    Counters::increment(&counters.failures);
                    backoff.next()
                };
                look = pause.map(|pause| Instant::now() + pause);
                known.find(found)
            }
        };
        for what in told {
            if tell(&tx, what).await.is_err() {
                return;
            }
        }
    }
}

/// Sleeps until then; for ever where there is no such time.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Whether there is any block, in the first group that has such objects.
async fn has_blocks(apis: &[Api<DynamicObject>]) -> Result<bool, Box<str>> {
    for api in apis {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(page) => return Ok(!page.items.is_empty()),
            Err(error) if failure::is_not_served(&error) => {}
            Err(error) => return Err(failure::reason("list ipamblocks", &error)),
        }
    }
    Ok(false)
}

/// What was told.
struct Known {
    /// By name; `None` for a pool that cannot be read.
    pools: BTreeMap<String, Option<Pool>>,
    told: Option<Vec<Pool>>,
    ipam: Ipam,
    sight: Sight<2>,
}

// === impl Known ===

impl Known {
    fn new() -> Self {
        let pools = BTreeMap::new();
        Self { pools, told: None, ipam: Ipam::Unknown, sight: Sight::new(Sense::Pools) }
    }

    /// What is to be told of a word.
    fn hear(&mut self, word: Word<(String, Option<Pool>)>) -> Vec<What> {
        self.sight.hear(POOLS, &word);
        let complete = match word {
            Word::Reset(pools) => {
                self.pools = pools.into_iter().collect();
                true
            }
            Word::Applied((name, pool)) => {
                self.pools.insert(name, pool);
                true
            }
            Word::Deleted((name, _)) => {
                self.pools.remove(&name);
                true
            }
            Word::NotServed => {
                self.pools.clear();
                true
            }
            Word::Blind(_) | Word::Seeing => false,
        };
        let mut told = Vec::new();
        let pools: Vec<Pool> = self.pools.values().flatten().cloned().collect();
        if complete && self.told.as_ref() != Some(&pools) {
            self.told = Some(pools.clone());
            told.push(What::Pools(pools));
        }
        told.extend(self.sight.news());
        told
    }

    /// What is to be told after a look for blocks.
    fn find(&mut self, found: Result<bool, Box<str>>) -> Vec<What> {
        let mut told = Vec::new();
        match found {
            Ok(has_blocks) => {
                self.sight.sees(BLOCKS);
                let ipam = if has_blocks { Ipam::Calico } else { Ipam::Other };
                if ipam != self.ipam {
                    self.ipam = ipam;
                    told.push(What::Ipam(ipam));
                }
            }
            Err(reason) => self.sight.blind(BLOCKS, reason),
        }
        told.extend(self.sight.news());
        told
    }
}

#[cfg(test)]
mod tests;
