//! Questions to a server that answers, refuses, or says nothing.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::script::{self, Asked, page};
use super::*;

struct Engine {
    questions: mpsc::Sender<Question>,
    answers: mpsc::Receiver<Observation>,
    asked: Asked,
    counters: Arc<Counters>,
}

fn engine(replies: Vec<script::Reply>) -> Engine {
    let (client, asked) = script::server(replies);
    let (questions, asks) = mpsc::channel(32);
    let (tx, answers) = mpsc::channel(32);
    let counters = Arc::new(Counters::default());
    tokio::spawn(run(client, Arc::clone(&counters), asks, tx));
    Engine { questions, answers, asked, counters }
}

impl Engine {
    async fn ask(&mut self, address: &str) -> Result<Vec<Pod>, Box<str>> {
        let address = address.parse().unwrap();
        self.questions.send(Question::Claimants(address)).await.unwrap();
        match self.answer().await.reply {
            Reply::Claimants(of, claimants) if of == address => claimants,
            other => panic!("{other:?}"),
        }
    }

    async fn ask_block(&mut self, cidr: &str) -> Result<Option<Block>, Box<str>> {
        let cidr = prefix(cidr);
        self.questions.send(Question::Block(cidr)).await.unwrap();
        match self.answer().await.reply {
            Reply::Block(of, block) if of == cidr => block,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self) -> Answer {
        let observation = self.answers.recv().await.expect("the source goes on");
        let What::Answer(answer) = observation.what else { panic!("{observation:?}") };
        assert!(answer.asked <= observation.at);
        answer
    }
}

fn prefix(text: &str) -> Prefix {
    text.parse::<ipnet::IpNet>().unwrap().into()
}

/// A block of four addresses, the first of which is a pod's.
fn block(cidr: &str) -> script::Reply {
    let secondary = json!({"pod": "cart", "namespace": "shop", "node": "n1"});
    script::Reply::Whole(
        200,
        json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
            "metadata": {"name": "a"},
            "spec": {
                "cidr": cidr, "affinity": "host:n1", "allocations": [0, null, null, null],
                "attributes": [{"handle_id": "h", "secondary": secondary}],
            },
        }),
    )
}

/// How a server says that it has the kind, but no object of the name.
fn no_such(name: &str) -> script::Reply {
    let details = json!({"name": name, "group": "crd.projectcalico.org", "kind": "ipamblocks"});
    script::Reply::Whole(
        404,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "not found", "reason": "NotFound", "details": details, "code": 404,
        }),
    )
}

fn pod(name: &str, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "metadata": {"namespace": "a", "name": name, "uid": name},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"podIP": addresses[0], "podIPs": ips},
    })
}

#[tokio::test(start_paused = true)]
async fn an_answer_names_those_who_show_the_address() {
    let mut engine = engine(vec![page(
        "9",
        "",
        &[
            pod("b", &["10.0.0.1"]),
            pod("c", &["10.0.0.1", "fd00::1"]),
            // What the server should not have sent is no answer.
            pod("d", &["10.0.0.2"]),
            json!({"metadata": {"name": "no uid"}}),
        ],
    )]);
    let claimants = engine.ask("10.0.0.1").await.unwrap();
    let claimants: Vec<String> = claimants.iter().map(|pod| pod.key.to_string()).collect();
    assert_eq!(claimants, ["a/b", "a/c"]);
    // Without a resource version: what etcd has, not what a cache remembers.
    let asked = engine.asked.lock().unwrap().join(" ");
    assert_eq!(asked, "/api/v1/pods?&fieldSelector=status.podIP%3D10.0.0.1&limit=500");
    let counts = engine.counters.counts();
    assert_eq!((counts.questions, counts.unanswered, counts.rejections), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_an_answer_and_failure_is_none() {
    let full = page("9", "more", &[pod("b", &["10.0.0.1"])]);
    let mut engine = engine(vec![page("9", "", &[]), script::failure(403), full]);
    assert_eq!(engine.ask("fd00::1").await, Ok(vec![]));
    assert!(engine.asked.lock().unwrap()[0].contains("status.podIP%3Dfd00%3A%3A1&"));
    assert_eq!(
        engine.ask("10.0.0.1").await.unwrap_err().as_ref(),
        "cannot list pods: permission is missing (403): \
         apply the agent's ClusterRole and its binding"
    );
    let too_many = engine.ask("10.0.0.1").await.unwrap_err();
    assert_eq!(too_many.as_ref(), "more than 500 pods show this address");
    let began = Instant::now();
    let silence = engine.ask("10.0.0.1").await.unwrap_err();
    assert_eq!(silence.as_ref(), "the API server did not answer within 3 seconds");
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(engine.counters.counts().unanswered, 3);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_asked_eight_things_at_once() {
    let mut engine = engine(vec![]);
    let began = Instant::now();
    for last in 0..20 {
        let address = [10, 0, 0, last].into();
        let question = match last % 2 {
            0 => Question::Claimants(address),
            _ => Question::Block(Prefix::host(address)),
        };
        engine.questions.send(question).await.unwrap();
    }
    let mut seconds = Vec::new();
    for _ in 0..20 {
        let reply = engine.answer().await.reply;
        assert!(matches!(reply, Reply::Block(_, Err(_)) | Reply::Claimants(_, Err(_))));
        seconds.push(began.elapsed().as_secs());
    }
    assert_eq!(seconds, [[3; 8].as_slice(), &[6; 8], &[9; 4]].concat());
}

#[test]
fn a_block_is_named_by_its_prefix() {
    for (cidr, name) in [
        ("10.244.1.64/26", "10-244-1-64-26"),
        ("10.0.0.1/32", "10-0-0-1-32"),
        ("fd00::/122", "fd00---122"),
        ("fd00:10:244::1:40/122", "fd00-10-244--1-40-122"),
        // Go leaves a single zero as it is, and shortens the first of two equal rows.
        ("2001:db8:0:1:1:1:1:0/122", "2001-db8-0-1-1-1-1-0-122"),
        ("2001:db8:0:0:1:0:0:0/122", "2001-db8-0-0-1---122"),
        ("2001:db8:0:0:1:1:0:0/122", "2001-db8--1-1-0-0-122"),
    ] {
        assert_eq!(block_name(prefix(cidr)), name, "{cidr}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_is_asked_for_by_its_name_and_past_every_cache() {
    let mut engine = engine(vec![block("10.0.0.0/30"), no_such("10-0-0-4-30")]);
    let before = clock::now();
    engine.questions.send(Question::Block(prefix("10.0.0.0/30"))).await.unwrap();
    let answer = engine.answer().await;
    assert!(answer.asked >= before && answer.asked <= clock::now());
    let Reply::Block(_, Ok(Some(block))) = answer.reply else { panic!("{answer:?}") };
    assert_eq!((block.cidr, block.allocations.len()), (prefix("10.0.0.0/30"), 1));
    assert_eq!(engine.ask_block("10.0.0.4/30").await, Ok(None));
    let path = "/apis/crd.projectcalico.org/v1/ipamblocks";
    let expected = [format!("{path}/10-0-0-0-30"), format!("{path}/10-0-0-4-30")];
    let asked: Vec<String> = engine.asked.lock().unwrap().clone();
    let asked: Vec<&str> = asked.iter().map(|path| path.trim_end_matches('?')).collect();
    assert_eq!(asked, expected);
    let counts = engine.counters.counts();
    assert_eq!((counts.questions, counts.block_questions, counts.unanswered), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_group_that_has_blocks_is_remembered() {
    let mut engine = engine(vec![
        script::failure(404),
        block("10.0.0.0/30"),
        block("10.0.0.4/30"),
        script::failure(404),
        script::failure(404),
    ]);
    assert!(engine.ask_block("10.0.0.0/30").await.unwrap().is_some());
    assert!(engine.ask_block("10.0.0.4/30").await.unwrap().is_some());
    let why = engine.ask_block("10.0.0.8/30").await.unwrap_err();
    assert_eq!(
        why.as_ref(),
        "cannot get ipamblocks: the API server serves them neither in crd.projectcalico.org/v1 \
         nor projectcalico.org/v3: install Calico's resource definitions"
    );
    let asked: Vec<String> = engine.asked.lock().unwrap().clone();
    let groups = asked.iter().map(|path| path.split('/').nth(2).unwrap());
    let (v1, v3) = ("crd.projectcalico.org", "projectcalico.org");
    assert_eq!(groups.collect::<Vec<_>>(), [v1, v3, v3, v3, v1]);
}

#[tokio::test(start_paused = true)]
async fn no_block_is_no_answer_where_nobody_could_say() {
    let mut engine = engine(vec![
        script::failure(403),
        script::failure(500),
        block("10.0.0.4/30"),
        no_such("another"),
        no_such("another"),
    ]);
    let mut why = Vec::new();
    for _ in 0..5 {
        why.push(engine.ask_block("10.0.0.0/30").await.unwrap_err());
    }
    let expected = [
        "cannot get ipamblocks: permission is missing (403): \
         apply the agent's ClusterRole and its binding",
        "cannot get ipamblocks: the API server says 500: so it is",
        "ipamblock a: spec.cidr is not what was asked for: \"10.0.0.4/30\"; \
         look at it with calicoctl ipam check",
        "cannot get ipamblocks: the API server serves them neither in crd.projectcalico.org/v1 \
         nor projectcalico.org/v3: install Calico's resource definitions",
        "the API server did not answer within 3 seconds",
    ];
    assert_eq!(why.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), expected);
    let counts = engine.counters.counts();
    assert_eq!((counts.block_questions, counts.unanswered, counts.rejections), (5, 5, 1));
}
