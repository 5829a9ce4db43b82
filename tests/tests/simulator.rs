//! A short run of the simulator; the long one is `cargo xtask simulate`.

use detector_tests::simulator::{KINDS, Theme, run};

/// Tells stories of one theme; gives what ended wrong.
fn tell(theme: Theme, stories: u64) -> Vec<String> {
    let outcomes = (0..stories).map(|seed| (seed, run(seed, theme, false)));
    let wrong = outcomes.filter_map(|(seed, outcome)| Some((seed, outcome.failure?)));
    wrong.map(|(seed, failure)| format!("--seed {seed} --story {theme}: {failure}")).collect()
}

#[test]
fn legitimate_lives_raise_nothing() {
    assert_eq!(tell(Theme::Peace, 400), [""; 0]);
}

#[test]
fn every_attack_is_found_with_its_attacker_and_its_victim() {
    for kind in KINDS {
        assert_eq!(tell(Theme::Attack(kind), 40), [""; 0]);
    }
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for theme in [Theme::Peace, Theme::Attack(KINDS[0])] {
        let (first, second) = (run(7, theme, true), run(7, theme, true));
        assert!(first.log.len() > 100);
        assert_eq!(first.log, second.log);
    }
}
