//! What stays in force of objects that change.

use serde_json::{Value, json};

use super::*;

fn object(name: &str, uid: &str, generation: i64, cidr: &str) -> Object {
    let object = json!({
        "metadata": {"name": name, "uid": uid, "generation": generation},
        "spec": {
            "cidr": cidr, "namespace": "edge", "serviceAccount": "gateway", "reason": "so it is",
        },
    });
    Object::read(&serde_json::from_value(object).unwrap()).unwrap()
}

fn known() -> Known {
    Known::new(Arc::default())
}

/// What is told of a word: the addresses, or that and why nothing is seen.
fn hear(known: &mut Known, word: Word<Object>) -> Vec<Value> {
    let told = known.hear(word).into_iter();
    told.map(|grants| match grants {
        Grants::All(list) => list.iter().map(|e| e.allowance.cidr.to_string()).collect(),
        Grants::Blind(why) => json!({ "blind": why }),
    })
    .collect()
}

fn rejections(known: &Known) -> u64 {
    known.counters.counts().rejections
}

#[test]
fn an_invalid_version_leaves_the_last_valid_one_in_force() {
    let mut known = known();
    let applied = |known: &mut Known, generation, cidr| {
        hear(known, Word::Applied(object("a", "u", generation, cidr)))
    };
    assert_eq!(applied(&mut known, 1, "192.0.2.1"), [json!(["192.0.2.1/32"])]);
    assert!(applied(&mut known, 2, "192.0.2.1/28").is_empty());
    assert_eq!(rejections(&known), 1);
    // Its status was written: nothing new.
    assert!(applied(&mut known, 2, "192.0.2.1/28").is_empty());
    assert_eq!(rejections(&known), 1);
    assert!(applied(&mut known, 3, "nonsense").is_empty());
    assert_eq!(rejections(&known), 2);
    // A listing after a cut watch changes nothing about that.
    let reset = vec![object("a", "u", 3, "nonsense")];
    assert!(hear(&mut known, Word::Reset(reset)).is_empty());
    assert_eq!(applied(&mut known, 4, "192.0.2.2"), [json!(["192.0.2.2/32"])]);
    assert!(applied(&mut known, 5, "nonsense").is_empty());
    let gone = Word::Deleted(object("a", "u", 5, "nonsense"));
    assert_eq!(hear(&mut known, gone), [json!([])]);
}

#[test]
fn what_was_never_valid_is_not_in_force_and_a_namesake_inherits_nothing() {
    let mut known = known();
    assert!(hear(&mut known, Word::Applied(object("a", "u", 1, "nonsense"))).is_empty());
    assert_eq!(rejections(&known), 1);
    hear(&mut known, Word::Applied(object("a", "u", 2, "192.0.2.1")));
    let made_anew = vec![object("a", "another", 1, "nonsense"), object("b", "v", 1, "192.0.2.2")];
    assert_eq!(hear(&mut known, Word::Reset(made_anew)), [json!(["192.0.2.2/32"])]);
    assert_eq!(hear(&mut known, Word::Reset(vec![])), [json!([])]);
}

#[test]
fn a_deletion_that_is_held_up_counts() {
    let mut known = known();
    hear(&mut known, Word::Applied(object("a", "u", 1, "192.0.2.1")));
    let going = Object { going: true, ..object("a", "u", 2, "192.0.2.1") };
    assert_eq!(hear(&mut known, Word::Applied(going)), [json!([])]);
}

#[test]
fn blindness_takes_nothing_away_but_a_kind_that_is_gone_does() {
    let mut known = known();
    let reset = vec![object("a", "u", 1, "192.0.2.1")];
    assert_eq!(hear(&mut known, Word::Reset(reset)), [json!(["192.0.2.1/32"])]);
    assert_eq!(hear(&mut known, Word::Blind("why".into())), [json!({"blind": "why"})]);
    assert_eq!(hear(&mut known, Word::Seeing), [json!({"blind": null})]);
    assert_eq!(known.valid().count(), 1);
    assert_eq!(hear(&mut known, Word::NotServed), [json!([]), json!({"blind": null})]);
    assert_eq!(hear(&mut known, Word::NotServed), [json!({"blind": null})]);
}

#[test]
fn no_more_than_can_be_judged_is_taken() {
    let mut known = known();
    let objects = (0..MOST_ALLOWED + 3).map(|i| {
        let cidr = format!("10.0.{}.{}", i / 256, i % 256);
        object(&format!("a{i:05}"), "u", 1, &cidr)
    });
    let Some(Grants::All(list)) = known.hear(Word::Reset(objects.collect())).pop() else {
        panic!("a list is told")
    };
    assert_eq!((list.len(), rejections(&known)), (MOST_ALLOWED, 1));
}
