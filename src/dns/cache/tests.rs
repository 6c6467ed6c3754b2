use super::super::answer::{Verdict, read};
use super::super::name::Name;
use super::super::tests::resident;
use super::*;

fn question(name: &str) -> Question {
    let name = Name::from_text(name).unwrap();
    Question { name, qtype: 1, dnssec_ok: false, checking_disabled: false }
}

fn key(name: &str) -> Key {
    Key::of(&question(name))
}

fn answer(name: &str, ttl: u32) -> Arc<Answer> {
    let question = question(name);
    let mut bytes = b"\0\x07\x81\x80\0\x01\0\x01\0\0\0\0".to_vec();
    bytes.extend_from_slice(question.name.as_wire());
    bytes.extend_from_slice(b"\0\x01\0\x01\xc0\x0c\0\x01\0\x01");
    bytes.extend_from_slice(&ttl.to_be_bytes());
    bytes.extend_from_slice(b"\0\x04\x01\x02\x03\x04");
    match read(&bytes, 7, &question) {
        Verdict::Answer(answer) => Arc::new(answer),
        other => panic!("{other:?}"),
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_answer_ages_goes_stale_and_goes() {
    let (cache, start) = (Cache::new(1 << 20), Instant::now());
    cache.put(&key("a"), answer("a", 10), start);
    let held = |after| cache.get(&key("a"), start + after);
    assert!(matches!(held(9 * SECOND), Some(Held::Fresh { age: Age::Seconds(9), .. })));
    assert!(matches!(held(10 * SECOND), Some(Held::Stale { retry: true, .. })));
    assert!(held(STALE_FOR + 10 * SECOND).is_none());
    assert!(cache.get(&key("b"), start).is_none());
}

#[test]
fn a_failure_stands_for_two_seconds_and_keeps_the_stale_answer() {
    let (cache, start) = (Cache::new(1 << 20), Instant::now());
    cache.put_failure(&key("new"), start);
    assert!(matches!(cache.get(&key("new"), start + SECOND), Some(Held::Failed)));
    assert!(cache.get(&key("new"), start + 2 * SECOND).is_none());

    cache.put(&key("old"), answer("old", 1), start);
    cache.put_failure(&key("old"), start + SECOND);
    let stale = |after| match cache.get(&key("old"), start + after * SECOND) {
        Some(Held::Stale { wait, retry, .. }) => (wait, retry),
        other => panic!("{other:?}"),
    };
    // Asked for again after two seconds, and worth waiting for after thirty.
    assert_eq!(
        (stale(1), stale(3), stale(30), stale(31)),
        ((false, false), (false, true), (false, true), (true, true))
    );
}

#[test]
fn ttl_0_ends_what_was_held() {
    let (cache, start) = (Cache::new(1 << 20), Instant::now());
    cache.put(&key("a"), answer("a", 10), start);
    cache.put(&key("a"), answer("a", 0), start);
    assert!(cache.get(&key("a"), start).is_none());
}

#[test]
fn a_full_cache_takes_no_more_memory_than_it_may() {
    const MIB: usize = 16;
    let (cache, now) = (Cache::new(MIB << 20), Instant::now());
    let before = resident();
    for n in 0..300_000 {
        let name = format!("name-{n}.bench.example");
        cache.put(&key(&name), answer(&name, 3_600), now);
    }
    let (took, usage) = (resident() - before, cache.usage());
    assert!(usage.bytes > usage.capacity * 9 / 10, "{usage:?}");
    assert!(took <= MIB << 10, "{took} KiB for {usage:?}");
}

#[test]
fn a_flood_of_names_neither_grows_the_cache_nor_pushes_out_the_hot_one() {
    for capacity in [100_000, 4 << 20] {
        let (cache, start) = (Cache::new(capacity), Instant::now());
        let rounds = capacity / 20;
        cache.put(&key("hot"), answer("hot", 300), start);
        for n in 0..rounds {
            let name = format!("n{n}.example");
            cache.put(&key(&name), answer(&name, 300), start);
            // Often enough to be seen before a tenth of the cache has gone by, and hardly ever after.
            if n < 20 || n % (rounds / 4) == 0 {
                assert!(cache.get(&key("hot"), start).is_some(), "{n} of {rounds}");
            }
        }
        assert!(cache.usage().bytes <= capacity as u64);
        for shard in &cache.shards {
            let shard = lock(shard);
            assert_eq!(shard.probation.len() + shard.main.len(), shard.entries.len());
            assert_eq!(shard.bytes, shard.entries.values().map(|entry| entry.size).sum::<usize>());
            let young = shard.entries.values().filter(|entry| !entry.in_main);
            assert_eq!(shard.probation_bytes, young.map(|entry| entry.size).sum::<usize>());
            assert!(shard.ghosts.len() <= shard.entries.len());
        }
    }
}

#[test]
fn a_name_that_comes_back_after_it_went_is_kept() {
    // Room for some 150 names, and as many are remembered after they went.
    let (cache, start) = (Cache::new(120_000), Instant::now());
    let flood = |from: usize| {
        for n in from..from + 300 {
            let name = format!("n{n}.example");
            cache.put(&key(&name), answer(&name, 300), start);
        }
    };
    cache.put(&key("back"), answer("back", 300), start);
    flood(0);
    cache.put(&key("back"), answer("back", 300), start);
    flood(1_000);
    assert!(cache.get(&key("back"), start).is_some());
}

#[test]
fn a_name_often_asked_for_is_renewed_once_before_it_ends() {
    let (cache, start) = (Cache::new(1 << 20), Instant::now());
    cache.put(&key("hot"), answer("hot", 100), start);
    let renew = |after| match cache.get(&key("hot"), start + after * SECOND) {
        Some(Held::Fresh { renew, .. }) => renew,
        other => panic!("{other:?}"),
    };
    assert_eq!([1, 2, 50, 91, 92].map(renew), [false, false, false, true, false]);
    cache.put(&key("hot"), answer("hot", 100), start + 93 * SECOND);
    assert!(!renew(94));
}

#[test]
fn a_flush_takes_a_name_and_all_below_it() {
    let (cache, start) = (Cache::new(4 << 20), Instant::now());
    for name in ["example", "a.example", "b.a.example", "xexample", "com"] {
        cache.put(&key(name), answer(name, 300), start);
    }
    assert_eq!(cache.flush(&Name::from_text("example").unwrap()), 3);
    assert!(cache.get(&key("a.example"), start).is_none() && cache.get(&key("xexample"), start).is_some());
    assert_eq!(cache.flush(&Name::root()), 2);
    assert_eq!(cache.usage().bytes, 0);
}

/// With a search of the queue for each entry it takes many minutes.
#[test]
fn a_flush_of_a_full_cache_goes_through_it_once() {
    let (cache, start) =
        (Cache { shards: vec![Mutex::default()], capacity: (256 << 20).into() }, Instant::now());
    for n in 0..200_000 {
        let name = format!("n{n}.example");
        cache.put(&key(&name), answer(&name, 300), start);
    }
    let begun = Instant::now();
    assert_eq!(cache.flush(&Name::root()), 200_000);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(cache.usage().bytes, 0);
    for shard in &cache.shards {
        let shard = lock(shard);
        assert_eq!((shard.probation.len() + shard.main.len(), shard.probation_bytes), (0, 0));
    }
}

#[test]
fn a_cache_takes_another_size_while_it_holds_answers() {
    let (cache, start) = (Cache::new(32 << 20), Instant::now());
    let fill = || {
        for n in 0..40_000 {
            let name = format!("n{n}.example");
            cache.put(&key(&name), answer(&name, 300), start);
        }
        cache.usage()
    };
    let before = fill();
    assert_eq!((before.entries, before.capacity), (40_000, 32 << 20));
    cache.resize(4 << 20);
    let smaller = cache.usage();
    assert!(smaller.bytes <= 4 << 20 && smaller.entries > 1_000, "{smaller:?}");
    cache.resize(64 << 20);
    assert_eq!(fill().entries, 40_000);
}

#[test]
fn do_and_cd_are_other_questions() {
    let plain = question("a");
    let keys =
        [(false, false), (true, false), (false, true), (true, true)].map(|(dnssec_ok, checking_disabled)| {
            Key::of(&Question { dnssec_ok, checking_disabled, ..plain.clone() }).as_bytes().to_vec()
        });
    for (n, one) in keys.iter().enumerate() {
        assert!(keys[n + 1..].iter().all(|other| other != one));
    }
}
