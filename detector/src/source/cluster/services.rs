//! The Services of the cluster, as far as their addresses and ports go.
//!
//! Load balancers and controllers write labels, annotations and conditions all the time: what does
//! not change an address or a port is not told.

use std::collections::HashMap;
use std::sync::Arc;

use detector_core::claim::{Service, ServiceKey};
use detector_core::observation::{Observation, Sense, What};
use futures::StreamExt as _;
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::counters::Counters;
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, parse, tell};

/// Tells of the Services until nobody listens.
pub(super) async fn run(client: Client, counters: Arc<Counters>, tx: mpsc::Sender<Observation>) {
    let scope = Scope {
        what: "list and watch services".into(),
        fields: None,
        // From the cache they would all come in one page, however many there are.
        cached: false,
        optional: false,
        patience: SLOW_PATIENCE,
    };
    let read = {
        let counters = Arc::clone(&counters);
        move |object| counters.rejections.take(parse::service(&object))
    };
    let words = follow(vec![Api::all(client)], scope, counters, read);
    let mut words = std::pin::pin!(words);
    let mut known = Known::default();
    while let Some(word) = words.next().await {
        if let Some(what) = known.hear(word)
            && tell(&tx, what).await.is_err()
        {
            return;
        }
    }
}

/// What was told of each Service.
#[derive(Default)]
struct Known(HashMap<ServiceKey, Service>);

// === impl Known ===

impl Known {
    /// What is to be told of a word, if anything.
    fn hear(&mut self, word: Word<Service>) -> Option<What> {
        match word {
            Word::Reset(services) => {
                self.0 = services.iter().map(|s| (s.key.clone(), s.clone())).collect();
                Some(What::ServicesReset(services))
            }
            Word::Applied(service) if self.0.get(&service.key) == Some(&service) => None,
            Word::Applied(service) => {
                self.0.insert(service.key.clone(), service.clone());
                Some(What::ServiceApplied(service))
            }
            Word::Deleted(service) => {
                self.0.remove(&service.key);
                Some(What::ServiceDeleted(service.key))
            }
            Word::Blind(reason) => Some(What::Blind(Sense::Services, Some(reason))),
            Word::Seeing => Some(What::Blind(Sense::Services, None)),
            // Said of optional kinds only.
            Word::NotServed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_no_address_is_not_told() {
        let service = |address: [u8; 4], ports: &[u16]| Service {
            key: ServiceKey::new("shop", "cart").unwrap(),
            cluster_addresses: vec![address.into()],
            external_addresses: vec![],
            balancer_addresses: vec![],
            ports: ports.into(),
        };
        let (first, moved) = (service([10, 96, 0, 1], &[80]), service([10, 96, 0, 2], &[80]));
        let mut known = Known::default();
        let all = vec![first.clone()];
        assert_eq!(known.hear(Word::Reset(all.clone())), Some(What::ServicesReset(all)));
        assert_eq!(known.hear(Word::Applied(first.clone())), None);
        for next in [moved, service([10, 96, 0, 1], &[80, 443]), first.clone()] {
            let told = known.hear(Word::Applied(next.clone()));
            assert_eq!(told, Some(What::ServiceApplied(next)));
        }
        let gone = What::ServiceDeleted(first.key.clone());
        assert_eq!(known.hear(Word::Deleted(first.clone())), Some(gone));
        assert_eq!(known.hear(Word::Applied(first.clone())), Some(What::ServiceApplied(first)));
    }
}
