//! Questions of the engine: which pods of the cluster show this address?
//!
//! Each is one LIST over all namespaces with the field selector `status.podIP`, without a resource
//! version: the answer is as fresh as etcd, and no cache can be behind it. The API server holds the
//! selector against each pod it has, which costs it a scan, so questions are for what is suspicious
//! and few run at once.
//!
//! The selector sees the *first* address of a pod only (pkg/apis/core/v1/conversion.go in
//! Kubernetes; `status.podIPs` is no selector). An address that pods have as their second, IPv6 in
//! most dual-stack clusters, is therefore answered by the pods that have it as their first: often
//! none. An empty answer for such an address is no proof that it is free.

use std::sync::Arc;
use std::time::Duration;

use detector_core::observation::{Answer, Observation, Question, Reply, What};
use detector_core::workload::Pod;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1 as api;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::counters::Counters;
use super::{failure, parse, tell};
use crate::clock;

/// How many questions are asked at once.
const AT_ONCE: usize = 8;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Finished pods go on showing an address that others had since. Beyond this many pods nobody could
/// say anything sensible about the address.
const MOST_CLAIMANTS: u32 = 500;

/// Answers questions until nobody asks or nobody listens.
pub(super) async fn run(
    client: Client,
    counters: Arc<Counters>,
    questions: mpsc::Receiver<Question>,
    tx: mpsc::Sender<Observation>,
) {
    let api: Api<api::Pod> = Api::all(client);
    let asked = stream::unfold(questions, |mut questions| async {
        Some((questions.recv().await?, questions))
    });
    let answers = asked.map(|question| ask(&api, question, &counters)).buffer_unordered(AT_ONCE);
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        if tell(&tx, What::Answer(answer)).await.is_err() {
            return;
        }
    }
}

async fn ask(api: &Api<api::Pod>, question: Question, counters: &Counters) -> Answer {
    let Question::Claimants(address) = question else {
        let why = "blocks are not read yet".into();
        return Answer { asked: clock::now(), reply: Reply::failed(question, why) };
    };
    let asked = clock::now();
    Counters::increment(&counters.questions);
    let fields = format!("status.podIP={address}");
    let params = ListParams::default().fields(&fields).limit(MOST_CLAIMANTS);
    let claimants = match timeout(PATIENCE, api.list(&params)).await {
        Err(_) => Err("the API server did not answer within 3 seconds".into()),
        Ok(Err(error)) => Err(failure::reason("list pods", &error)),
        Ok(Ok(list))
            if list.metadata.continue_.as_deref().is_some_and(|token| !token.is_empty()) =>
        {
            Err(format!("more than {MOST_CLAIMANTS} pods show this address").into())
        }
        Ok(Ok(list)) => Ok(list
            .items
            .iter()
            .filter_map(|object| counters.rejections.take(parse::pod(object)))
            .filter(|pod: &Pod| pod.addresses.contains(&address))
            .collect()),
    };
    if claimants.is_err() {
        Counters::increment(&counters.unanswered);
    }
    Answer { asked, reply: Reply::Claimants(address, claimants) }
}

#[cfg(test)]
mod tests;
