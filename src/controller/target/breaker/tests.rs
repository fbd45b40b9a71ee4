//! Who waits for a word, and who never does.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

fn asked(deleted: i64) -> Asked<'static> {
    Asked { acknowledged: None, namespace: "shop", deleted_at: at(deleted), own_references: 0, references: 0 }
}

/// Asks for so many Backups, one a second, and says how many went.
fn went(counted: &mut Deletions, many: i64, from: i64, asked: Asked<'_>) -> i64 {
    let mut went = 0;
    for n in 0..many {
        match judge(counted, Asked { deleted_at: at(from), ..asked }, at(from + n)) {
            Verdict::Go(next) => {
                went += 1;
                *counted = next.unwrap_or(counted.clone());
            }
            Verdict::Wait(_, next) => *counted = next.unwrap_or(counted.clone()),
        }
    }
    went
}

fn word(counted: &Deletions, namespace: &str) -> String {
    let since = counted.of(namespace).waiting_since.expect("open").0;
    format!("{namespace}/{since}")
}

#[test]
fn law_10_a_mass_deletion_stops_at_the_limit_and_waits_however_long_nobody_says_yes() {
    let mut counted = Deletions::default();
    assert_eq!(went(&mut counted, 300, 0, asked(0)), limits::DELETIONS_PER_WINDOW);
    let word = word(&counted, "shop");
    let since = counted.of("shop").waiting_since.expect("the breaker is open").0;
    for hours in [1, 2, 24, 1000] {
        assert_eq!(went(&mut counted, 50, hours * 3600, asked(0)), 0, "time alone lets nothing through");
    }
    let (of_another, of_all) = (word.replace("shop/", "erp/"), since.to_string());
    for wrong in ["true", "", "shop/2026-01-01T00:00:00Z", "shop/yes please", &of_another, &of_all] {
        let asked = Asked { acknowledged: Some(wrong), ..asked(0) };
        let expected = Verdict::Wait(Opened { since, whose: Whose::Namespace }, None);
        assert_eq!(judge(&counted, asked, at(9)), expected, "{wrong}");
    }
}

#[test]
fn law_10_an_acknowledgement_lets_go_what_waits_and_is_used_up() {
    let mut counted = Deletions::default();
    went(&mut counted, 300, 0, asked(0));
    let word = word(&counted, "shop");
    let words = format!("erp/2026-01-01T00:00:00Z, {word}");
    let acknowledged = Asked { acknowledged: Some(&words), ..asked(0) };
    let Verdict::Go(Some(next)) = judge(&counted, acknowledged, at(500)) else { panic!("{counted:?}") };
    assert_eq!(next.count, 0, "what was meant does not count for the target any more");
    counted = next;
    for n in 0..280 {
        assert_eq!(judge(&counted, acknowledged, at(501 + n)), Verdict::Go(None), "everything deleted before");
    }
    // The annotation is still there; what is deleted now is counted anew.
    let later = Asked { acknowledged: Some(&words), ..asked(600) };
    assert_eq!(went(&mut counted, 100, 600, later), limits::DELETIONS_PER_WINDOW);
    assert_ne!(self::word(&counted, "shop"), word);
}

/// However much one deletes, whenever its windows begin, and however many of the target's Backups are its own.
#[test]
fn law_11_what_one_namespace_deletes_never_makes_another_wait() {
    let window = limits::DELETION_WINDOW.as_secs() as i64;
    for own in [0, 199, 1000, 5000] {
        for begins in [0, 1, window / 2, window - 300] {
            let mut counted = Deletions::default();
            let mut waited = 0;
            for second in 0..3 * window {
                let now = at(second);
                if second % 600 == 0 {
                    let erp = Asked { namespace: "erp", own_references: 5, references: own + 5, ..asked(second) };
                    match judge(&counted, erp, now) {
                        Verdict::Go(Some(next)) => counted = next,
                        other => panic!("{own} {begins} {second}: {other:?}\n{counted:?}"),
                    }
                }
                if second >= begins {
                    let shop = Asked { own_references: own, references: own + 5, ..asked(second) };
                    match judge(&counted, shop, now) {
                        Verdict::Go(next) => counted = next.unwrap_or(counted),
                        Verdict::Wait(opened, next) => {
                            assert_eq!(opened.whose, Whose::Namespace);
                            waited += 1;
                            counted = next.unwrap_or(counted);
                        }
                    }
                }
            }
            assert!(waited > 0, "{counted:?}");
        }
    }
}

#[test]
fn law_10_a_little_deleted_everywhere_at_once_waits_for_a_word_too() {
    let names: Vec<String> = (0..50).map(|n| format!("ns-{n}")).collect();
    let mut counted = Deletions::default();
    let all = |counted: &mut Deletions, from: i64, acknowledged: Option<&str>| {
        let each = |name: &String| went(counted, 10, from, Asked { namespace: name, acknowledged, ..asked(from) });
        names.iter().map(each).sum::<i64>()
    };
    assert_eq!(all(&mut counted, 0, None), limits::DELETIONS_OF_TARGET_PER_WINDOW);
    let since = counted.waiting_since.clone().expect("open").0;
    assert_eq!(all(&mut counted, 100, Some(&format!("ns-0/{since}"))), 0, "a namespace's word is not the target's");
    assert_eq!(counted.waiting_since.as_ref().map(|t| t.0), Some(since));
    let word = since.to_string();
    let mut later = counted.clone();
    assert_eq!(all(&mut later, 100, Some(&word)), 500, "what was deleted by then");
    assert_eq!(later.namespaces, [], "each namespace is counted anew");
}

#[test]
fn a_slow_trickle_never_waits_and_many_backups_have_a_larger_limit() {
    let mut counted = Deletions::default();
    let window = i64::try_from(limits::DELETION_WINDOW.as_secs()).expect("small");
    for n in 0..200 {
        let went = went(&mut counted, 1, n * window / limits::DELETIONS_PER_WINDOW, asked(0));
        assert_eq!(went, 1, "{n}: {counted:?}");
    }
    let mut counted = Deletions::default();
    let large = Asked { own_references: 4000, references: 5000, ..asked(0) };
    assert_eq!(went(&mut counted, 3000, 0, large), 400);
}

#[test]
fn law_9_namespaces_whose_window_is_over_are_forgotten_and_no_more_than_so_many_are_kept() {
    let mut counted = Deletions::default();
    let many = limits::DELETION_NAMESPACES_MAX as i64 + 10;
    let references = many * 100;
    for n in 0..many {
        let namespace = format!("ns-{n}");
        let asked = Asked { namespace: &namespace, references, ..asked(n) };
        assert_eq!(went(&mut counted, 1, 0, asked), 1);
    }
    assert_eq!((counted.namespaces.len(), counted.count), (limits::DELETION_NAMESPACES_MAX, many));
    let next_day = 24 * 3600;
    assert_eq!(went(&mut counted, 1, next_day, asked(next_day)), 1);
    assert_eq!(counted.namespaces.len(), 1, "{counted:?}");
}
