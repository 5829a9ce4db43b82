//! Who writes, when, what, and how seldom.

use serde_json::json;

use super::*;

fn object(generation: i64, cidr: &str, status: &Value) -> Object {
    let object = json!({
        "metadata": {
            "name": "edge", "uid": "u", "resourceVersion": "7", "generation": generation,
        },
        "spec": {
            "cidr": cidr, "namespace": "edge", "serviceAccount": "gateway", "reason": "so it is",
            "expires": "2030-01-31T18:00:00Z",
        },
        "status": status,
    });
    Object::read(&serde_json::from_value(object).unwrap()).unwrap()
}

fn good(generation: i64) -> Object {
    object(generation, "192.0.2.1", &Value::Null)
}

/// The object after its status was written.
fn written(object: &Object, patch: &Value) -> Object {
    Object { status: Status::read(&patch["status"]), ..object.clone() }
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

/// What is written within so long, one write after the other, if nobody hears of it.
fn writes(
    desk: &mut Desk,
    object: &Object,
    now: Timestamp,
    start: Instant,
    span: Duration,
) -> usize {
    let mut count = 0;
    let mut clock = start;
    while clock < start + span {
        desk.plan([object].into_iter(), now, clock);
        count += usize::from(desk.due([object].into_iter(), now, clock).is_some());
        clock += Duration::from_millis(100);
    }
    count
}

const NOW: &str = "2029-01-01T00:00:00Z";

#[tokio::test]
async fn a_write_waits_at_random_and_is_dropped_when_somebody_else_was_faster() {
    let (now, start) = (at(NOW), Instant::now());
    let object = good(1);
    let mut pauses = Vec::new();
    for _ in 0..50 {
        let mut desk = Desk::default();
        desk.plan([&object].into_iter(), now, start);
        assert_eq!(desk.due([&object].into_iter(), now, start), None);
        pauses.push(desk.pause(start).unwrap());
    }
    let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
    assert!(*least >= Duration::from_millis(500) && *most < Duration::from_secs(10));
    assert!(*most > *least, "not all at once");

    let mut desk = Desk::default();
    desk.plan([&object].into_iter(), now, start);
    let told = written(&object, &patch(&object, Verdict::Accepted, now));
    let later = start + Duration::from_secs(11);
    desk.plan([&told].into_iter(), now, later);
    assert_eq!(desk.due([&told].into_iter(), now, later), None);
    assert_eq!(desk.pause(later), None);
}

#[tokio::test]
async fn nothing_is_written_twice_in_a_while() {
    let (now, start) = (at(NOW), Instant::now());
    let mut desk = Desk::default();
    let ten_minutes = HOLD + Duration::from_secs(10);
    assert_eq!(writes(&mut desk, &good(1), now, start, HOLD), 1);
    // A new generation is a new thing to say.
    assert_eq!(writes(&mut desk, &good(2), now, start + ten_minutes, HOLD), 1);

    // Somebody who keeps saying otherwise is answered no more often.
    let mut desk = Desk::default();
    let object = good(1);
    let right = written(&object, &patch(&object, Verdict::Accepted, now));
    let wrong = written(&object, &patch(&object, Verdict::Expired, now));
    let mut count = 0;
    for second in 0..HOLD.as_secs() {
        let clock = start + Duration::from_secs(second);
        let seen = if second % 2 == 0 { &wrong } else { &right };
        desk.plan([seen].into_iter(), now, clock);
        count += usize::from(desk.due([seen].into_iter(), now, clock).is_some());
    }
    assert!(count <= 1, "{count}");
}

#[tokio::test]
async fn a_conflict_is_dropped_a_failure_tried_again_and_a_missing_right_not_soon() {
    let (now, start) = (at(NOW), Instant::now());
    let object = good(1);
    let later = start + Duration::from_secs(10);
    let soon = |outcome| {
        let mut desk = Desk::default();
        desk.plan([&object].into_iter(), now, start);
        assert!(desk.due([&object].into_iter(), now, later).is_some());
        desk.done("edge", outcome, later);
        desk.plan([&object].into_iter(), now, later);
        assert_eq!(desk.due([&object].into_iter(), now, later), None);
        desk.pause(later).unwrap()
    };
    assert!(soon(Outcome::Outdated) <= Duration::from_secs(10));
    assert!((Duration::from_mins(2)..HOLD).contains(&soon(Outcome::Failed)));
    assert_eq!(soon(Outcome::Forbidden), HOLD);
    assert_eq!(soon(Outcome::Written), HOLD);
    assert_eq!(soon(Outcome::Absent), HOLD);
}

#[test]
fn a_status_says_what_is_so_and_why() {
    let now = at(NOW);
    let good = good(4);
    let patch_of = |object: &Object, now| patch(object, Verdict::of(object, now), now);
    assert_eq!(
        patch_of(&good, now),
        json!({
            "metadata": {"resourceVersion": "7"},
            "status": {"observedGeneration": 4, "conditions": [{
                "type": "Accepted", "status": "True", "reason": "Accepted",
                "message": "in force until 2030-01-31T18:00:00Z",
                "observedGeneration": 4, "lastTransitionTime": NOW,
            }]},
        })
    );
    let expired = patch_of(&good, at("2030-01-31T18:00:00Z"));
    let condition = &expired["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Expired")));
    let bad = object(5, "192.0.2.1/28", &Value::Null);
    let condition = &patch_of(&bad, now)["status"]["conditions"][0];
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Invalid")));
    let message = condition["message"].as_str().unwrap();
    assert!(message.starts_with("spec.cidr \"192.0.2.1/28\" has host bits set"), "{message}");
}

#[test]
fn what_others_say_and_since_when_is_kept() {
    let then = "2028-01-01T00:00:00Z";
    let foreign = json!({"type": "Reviewed", "status": "True"});
    let own = json!({
        "type": "Accepted", "status": "True", "reason": "Accepted", "lastTransitionTime": then,
    });
    let status = json!({"observedGeneration": 1, "conditions": [own, foreign]});
    let patch = patch(&object(2, "192.0.2.1", &status), Verdict::Accepted, at(NOW));
    let conditions = &patch["status"]["conditions"];
    assert_eq!(conditions[0], foreign);
    assert_eq!(conditions[1]["lastTransitionTime"], then);
    assert_eq!(conditions[2], Value::Null);
}
