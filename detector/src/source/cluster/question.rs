//! Questions of the engine: who has which address of a block, and which pods of the cluster show an
//! address?
//!
//! **A block** is one GET of an IPAMBlock by its name, without a resource version: the answer is as
//! fresh as etcd, and no cache can be behind it. Its name is its prefix (libcalico-go/lib/names,
//! cidr.go).
//!
//! **Claimants** are one LIST over all namespaces with the field selector `status.podIP`, as fresh.
//! The API server holds the selector against each pod it has, which costs it a scan, so questions
//! are for what is suspicious and few run at once.
//!
//! The selector sees the *first* address of a pod only (pkg/apis/core/v1/conversion.go in
//! Kubernetes; `status.podIPs` is no selector). An address that pods have as their second, IPv6 in
//! most dual-stack clusters, is therefore answered by the pods that have it as their first: often
//! none. An empty answer for such an address is no proof that it is free.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use detector_core::claim::Block;
use detector_core::observation::{Answer, Observation, Question, Reply, What};
use detector_core::route::Prefix;
use detector_core::workload::Pod;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1 as api;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::counters::Counters;
use super::{calico, failure, parse, tell};
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
    let asker = Asker {
        blocks: calico::apis(&client, "IPAMBlock", "ipamblocks"),
        served: AtomicUsize::new(0),
        pods: Api::all(client),
        counters,
    };
    let questions = stream::unfold(questions, |mut questions| async {
        Some((questions.recv().await?, questions))
    });
    let answers = questions.map(|question| asker.ask(question)).buffer_unordered(AT_ONCE);
    let mut answers = std::pin::pin!(answers);
    while let Some(answer) = answers.next().await {
        if tell(&tx, What::Answer(answer)).await.is_err() {
            return;
        }
    }
}

/// Who asks, and whom.
struct Asker {
    /// By group.
    blocks: Vec<Api<DynamicObject>>,
    /// Which of `blocks` had such objects when it was asked last.
    served: AtomicUsize,
    pods: Api<api::Pod>,
    counters: Arc<Counters>,
}

// === impl Asker ===

impl Asker {
    async fn ask(&self, question: Question) -> Answer {
        Counters::increment(&self.counters.questions);
        let asked = clock::now();
        let answered = timeout(PATIENCE, async {
            match question {
                Question::Block(cidr) => Reply::Block(cidr, self.block(cidr).await),
                Question::Claimants(address) => {
                    Reply::Claimants(address, self.claimants(address).await)
                }
            }
        });
        let reply = answered.await.unwrap_or_else(|_| {
            Reply::failed(question, "the API server did not answer within 3 seconds".into())
        });
        if matches!(&reply, Reply::Block(_, Err(_)) | Reply::Claimants(_, Err(_))) {
            Counters::increment(&self.counters.unanswered);
        }
        Answer { asked, reply }
    }

    async fn block(&self, cidr: Prefix) -> Result<Option<Block>, Box<str>> {
        Counters::increment(&self.counters.block_questions);
        let name = block_name(cidr);
        let first = self.served.load(Ordering::Relaxed);
        for index in (0..self.blocks.len()).map(|offset| (first + offset) % self.blocks.len()) {
            match self.blocks[index].get(&name).await {
                Ok(object) => {
                    self.served.store(index, Ordering::Relaxed);
                    let parsed = parse::block(&object, cidr).map_err(|rejection| {
                        let why = format!("{rejection}; look at it with calicoctl ipam check");
                        self.counters.rejections.report([rejection]);
                        why
                    })?;
                    self.counters.rejections.report(parsed.rejections);
                    return Ok(parsed.value);
                }
                Err(error) if failure::is_absent(&error, &name) => {
                    self.served.store(index, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(error) if failure::is_not_served(&error) => {}
                Err(error) => return Err(failure::reason("get ipamblocks", &error)),
            }
        }
        let groups = calico::GROUPS.map(|(group, version)| format!("{group}/{version}"));
        let groups = groups.join(" nor ");
        Err(format!(
            "cannot get ipamblocks: the API server serves them neither in {groups}: \
             install Calico's resource definitions"
        )
        .into())
    }

    async fn claimants(&self, address: IpAddr) -> Result<Vec<Pod>, Box<str>> {
        let fields = format!("status.podIP={address}");
        let params = ListParams::default().fields(&fields).limit(MOST_CLAIMANTS);
        let list = self.pods.list(&params).await;
        let list = list.map_err(|error| failure::reason("list pods", &error))?;
        if list.metadata.continue_.as_deref().is_some_and(|token| !token.is_empty()) {
            return Err(format!("more than {MOST_CLAIMANTS} pods show this address").into());
        }
        let pods = list.items.iter();
        Ok(pods
            .filter_map(|object| self.counters.rejections.take(parse::pod(object)))
            .filter(|pod: &Pod| pod.addresses.contains(&address))
            .collect())
    }
}

/// The name of a block's object (`CIDRToName` in libcalico-go/lib/names/cidr.go).
pub(crate) fn block_name(cidr: Prefix) -> String {
    cidr.to_string().replace(['.', ':', '/'], "-")
}

#[cfg(test)]
mod tests;
