//! Questions to a server that answers, refuses, or says nothing.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::script::{self, Asked, Reply, page};
use super::*;

struct Engine {
    questions: mpsc::Sender<Question>,
    answers: mpsc::Receiver<Observation>,
    asked: Asked,
    counters: Arc<Counters>,
}

fn engine(replies: Vec<Reply>) -> Engine {
    let (client, asked) = script::server(replies);
    let (questions, asks) = mpsc::channel(32);
    let (tx, answers) = mpsc::channel(32);
    let counters = Arc::new(Counters::default());
    tokio::spawn(run(client, Arc::clone(&counters), asks, tx));
    Engine { questions, answers, asked, counters }
}

impl Engine {
    async fn ask(&mut self, address: &str) -> Answer {
        self.questions.send(Question { address: address.parse().unwrap() }).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Answer {
        let observation = self.answers.recv().await.expect("the source goes on");
        let What::Answer(answer) = observation.what else { panic!("{observation:?}") };
        assert!(answer.asked <= observation.at);
        answer
    }
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
    let before = clock::now();
    let answer = engine.ask("10.0.0.1").await;
    assert!(answer.asked >= before && answer.asked <= clock::now());
    assert_eq!(answer.address.to_string(), "10.0.0.1");
    let claimants: Vec<String> =
        answer.claimants.unwrap().iter().map(|pod| pod.key.to_string()).collect();
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
    assert_eq!(engine.ask("fd00::1").await.claimants, Ok(vec![]));
    assert!(engine.asked.lock().unwrap()[0].contains("status.podIP%3Dfd00%3A%3A1&"));
    assert_eq!(
        engine.ask("10.0.0.1").await.claimants.unwrap_err().as_ref(),
        "cannot list pods: permission is missing (403): \
         apply the agent's ClusterRole and its binding"
    );
    let too_many = engine.ask("10.0.0.1").await.claimants.unwrap_err();
    assert_eq!(too_many.as_ref(), "more than 500 pods show this address");
    let began = Instant::now();
    let silence = engine.ask("10.0.0.1").await.claimants.unwrap_err();
    assert_eq!(silence.as_ref(), "the API server did not answer within 3 seconds");
    assert_eq!(began.elapsed().as_secs(), 3);
    assert_eq!(engine.counters.counts().unanswered, 3);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_asked_eight_things_at_once() {
    let mut engine = engine(vec![]);
    let began = Instant::now();
    for last in 0..20 {
        let address = format!("10.0.0.{last}").parse().unwrap();
        engine.questions.send(Question { address }).await.unwrap();
    }
    let mut seconds = Vec::new();
    for _ in 0..20 {
        assert!(engine.answer().await.claimants.is_err());
        seconds.push(began.elapsed().as_secs());
    }
    assert_eq!(seconds, [[3; 8].as_slice(), &[6; 8], &[9; 4]].concat());
}
