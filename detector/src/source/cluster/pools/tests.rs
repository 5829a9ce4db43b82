//! Pools, and whether there are blocks, from a server that has them, lacks them, or fails.

use detector_core::claim::Spread;
use serde_json::{Value, json};

use super::super::script::{self, Asked, Reply, page};
use super::*;

fn object(name: &str, cidr: &str, version: &str) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
        "metadata": {"name": name, "resourceVersion": version}, "spec": {"cidr": cidr},
    })
}

fn pool(name: &str, cidr: &str) -> Pool {
    let cidr: ipnet::IpNet = cidr.parse().unwrap();
    Pool { name: name.into(), cidr: cidr.into(), block_length: 26, spread: Spread::Bgp }
}

fn blind(reason: &str) -> What {
    What::Blind(Sense::Pools, Some(reason.into()))
}

const SEEING: What = What::Blind(Sense::Pools, None);

/// The source on a scripted server. The replies are given in the order of the requests, which is
/// certain as long as each waits for the one before.
fn source(replies: Vec<Reply>) -> (mpsc::Receiver<Observation>, Asked, Arc<Counters>) {
    let (client, asked) = script::server(replies);
    let (tx, rx) = mpsc::channel(32);
    let counters = Arc::new(Counters::default());
    tokio::spawn(run(client, Arc::clone(&counters), tx));
    (rx, asked, counters)
}

async fn next(rx: &mut mpsc::Receiver<Observation>) -> What {
    rx.recv().await.expect("the source goes on").what
}

fn known() -> Known {
    Known::new()
}

#[test]
fn each_change_that_matters_tells_all_pools() {
    let mut known = known();
    let (a, b) = (pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16"));
    let some = |pool: &Pool| (pool.name.to_string(), Some(pool.clone()));
    let told = known.hear(Word::Reset(vec![some(&b)]));
    assert_eq!(told, [What::Pools(vec![b.clone()])]);
    let told = known.hear(Word::Applied(some(&a)));
    assert_eq!(told, [What::Pools(vec![a.clone(), b.clone()])]);
    assert_eq!(known.hear(Word::Applied(some(&a))), []);
    assert_eq!(known.hear(Word::Reset(vec![some(&b), some(&a)])), []);
    // A pool that cannot be read any more is none.
    assert_eq!(known.hear(Word::Applied(("b".into(), None))), [What::Pools(vec![a.clone()])]);
    assert_eq!(known.hear(Word::Deleted(("b".into(), None))), []);
    assert_eq!(known.hear(Word::Blind("x".into())), [blind("x")]);
    assert_eq!(known.hear(Word::NotServed), [What::Pools(vec![])]);
}

#[test]
fn it_sees_when_pools_and_blocks_are_known() {
    let mut known = known();
    assert_eq!(known.hear(Word::Reset(vec![])), [What::Pools(vec![])]);
    assert_eq!(known.find(Err("x".into())), [blind("x")]);
    assert_eq!(known.find(Ok(false)), [What::Ipam(Ipam::Other), SEEING]);
    assert_eq!(known.find(Ok(false)), []);
    assert_eq!(known.find(Ok(true)), [What::Ipam(Ipam::Calico)]);
    // What was found stays true while nobody can look.
    assert_eq!(known.find(Err("y".into())), [blind("y")]);
    assert_eq!(known.find(Ok(true)), [SEEING]);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_with_blocks_is_calicos() {
    // The look for blocks and the watch begin at once, and either may be first.
    let both = || page("9", "", &[json!({"metadata": {"name": "10-0-0-0-26"}})]);
    let (mut rx, asked, counters) =
        source(vec![page("7", "", &[object("a", "10.0.0.0/16", "1")]), both(), both()]);
    assert_eq!(next(&mut rx).await, What::Pools(vec![pool("a", "10.0.0.0/16")]));
    assert_eq!(next(&mut rx).await, What::Ipam(Ipam::Calico));
    assert_eq!(next(&mut rx).await, SEEING);
    let asked = asked.lock().unwrap();
    assert_eq!(asked[0], "/apis/crd.projectcalico.org/v1/ippools?&limit=50");
    let look = "/apis/crd.projectcalico.org/v1/ipamblocks?&limit=1".to_owned();
    assert_eq!(asked.iter().filter(|request| **request == look).count(), 1, "{asked:?}");
    assert_eq!(counters.counts().rejections, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_served_is_no_reason_to_be_blind() {
    // Pools and blocks in two groups each.
    let replies = (0..4).map(|_| script::failure(404));
    let (mut rx, asked, counters) = source(replies.collect());
    assert_eq!(next(&mut rx).await, What::Pools(vec![]));
    assert_eq!(next(&mut rx).await, What::Ipam(Ipam::Other));
    assert_eq!(next(&mut rx).await, SEEING);
    let asked: Vec<String> = asked.lock().unwrap().clone();
    assert!(asked[3].starts_with("/apis/projectcalico.org/v3/ipamblocks"), "{asked:?}");
    assert_eq!(counters.counts().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_blinds_until_it_is_over_and_is_not_hammered() {
    let no = || script::failure(403);
    let one = page("9", "", &[json!({"metadata": {"name": "10-0-0-0-26"}})]);
    // No pools are served, so that the watch asks for nothing for five minutes.
    let absent = || script::failure(404);
    let (mut rx, asked, counters) = source(vec![absent(), absent(), no(), no(), no(), one]);
    let began = Instant::now();
    assert_eq!(next(&mut rx).await, What::Pools(vec![]));
    let why = "cannot list ipamblocks: permission is missing (403): \
               apply the agent's ClusterRole and its binding";
    assert_eq!(next(&mut rx).await, blind(why));
    assert_eq!(next(&mut rx).await, What::Ipam(Ipam::Calico));
    assert_eq!(next(&mut rx).await, SEEING);
    // 0.8 s, 1.6 s and 3.2 s, with jitter.
    assert!((2..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!((asked.lock().unwrap().len(), counters.counts().failures), (6, 3));
}

#[tokio::test(start_paused = true)]
async fn an_empty_record_is_looked_at_again() {
    let nothing = || page("9", "", &[]);
    let one = page("9", "", &[json!({"metadata": {"name": "10-0-0-0-26"}})]);
    // No pools are served, so that the watch asks for nothing for five minutes.
    let absent = || script::failure(404);
    let (mut rx, _, _) = source(vec![absent(), absent(), nothing(), one]);
    let began = Instant::now();
    assert_eq!(next(&mut rx).await, What::Pools(vec![]));
    assert_eq!(next(&mut rx).await, What::Ipam(Ipam::Other));
    assert_eq!(next(&mut rx).await, SEEING);
    assert_eq!(began.elapsed().as_secs(), 0);
    assert_eq!(next(&mut rx).await, What::Ipam(Ipam::Calico));
    assert_eq!(began.elapsed(), WITHOUT_BLOCKS);
}

#[tokio::test(start_paused = true)]
async fn a_new_pool_is_a_reason_to_look_again() {
    let nothing = || page("9", "", &[]);
    let one = || page("9", "", &[json!({"metadata": {"name": "10-0-0-0-26"}})]);
    let absent = || script::failure(404);
    // Five minutes without pools, two looks for blocks meanwhile, then there are pools.
    let mut replies = vec![absent(), absent(), nothing(), nothing()];
    replies.extend([page("7", "", &[object("a", "10.0.0.0/16", "1")]), one(), one()]);
    let (mut rx, _, _) = source(replies);
    for _ in 0..3 {
        next(&mut rx).await;
    }
    assert_eq!(next(&mut rx).await, What::Pools(vec![pool("a", "10.0.0.0/16")]));
    let began = Instant::now();
    assert_eq!(next(&mut rx).await, What::Ipam(Ipam::Calico));
    assert_eq!(began.elapsed().as_secs(), 0);
}
