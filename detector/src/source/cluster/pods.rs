//! The pods of this node.

use std::sync::Arc;

use detector_core::observation::{Observation, Sense, What};
use detector_core::workload::NodeName;
use futures::StreamExt as _;
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::counters::Counters;
use super::watch::{Scope, Word, follow};
use super::{PATIENCE, parse, tell};

/// Tells of the pods of `node` until nobody listens.
pub(super) async fn run(
    client: Client,
    node: NodeName,
    counters: Arc<Counters>,
    tx: mpsc::Sender<Observation>,
) {
    let scope = Scope {
        what: "list and watch pods".into(),
        // The only selector of pods for which the API server has an index.
        fields: Some(format!("spec.nodeName={node}")),
        cached: true,
        optional: false,
        patience: PATIENCE,
    };
    let read = {
        let counters = Arc::clone(&counters);
        move |object| counters.rejections.take(parse::pod(&object))
    };
    let words = follow(vec![Api::all(client)], scope, counters, read);
    let mut words = std::pin::pin!(words);
    while let Some(word) = words.next().await {
        let what = match word {
            Word::Reset(pods) => What::PodsReset(pods),
            Word::Applied(pod) => What::PodApplied(pod),
            Word::Deleted(pod) => What::PodDeleted(pod.key, pod.uid),
            Word::Blind(reason) => What::Blind(Sense::Pods, Some(reason)),
            Word::Seeing => What::Blind(Sense::Pods, None),
            // Said of optional kinds only.
            Word::NotServed => continue,
        };
        if tell(&tx, what).await.is_err() {
            return;
        }
    }
}
