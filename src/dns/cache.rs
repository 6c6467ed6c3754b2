//! Answers kept for the next guest who asks, in wire form. In: answers and failures with the time they came. Out: what is
//! held for a question, fresh or stale. Bounded in bytes; what was asked for once makes room before what is asked for again,
//! so a flood of random names does not push out the hot ones.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answer::{Age, Answer, Question};

/// How long an answer past its lifetime is kept for when no upstream answers (RFC 8767 section 5: one to three days).
const STALE_FOR: Duration = Duration::from_secs(86_400);
/// How long a failure stands (RFC 9520 section 3.2: at least one second): it keeps a guest that asks in a loop from the
/// upstreams, and is over before a stub's next try at 5 s.
const FAILURE_FOR: Duration = Duration::from_secs(2);
/// What an entry costs besides its key and answer: table slot, queue slot, allocations.
const OVERHEAD: usize = 160;

/// What is held for a question.
#[derive(Debug, Clone)]
pub(super) enum Held {
    Fresh(Arc<Answer>, Age),
    /// Past its lifetime. `retry`: the upstreams have not just failed on it, so ask them again.
    Stale {
        answer: Arc<Answer>,
        retry: bool,
    },
    Failed,
}

/// A question as hashed bytes: its name, type, DO and CD.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    bytes: [u8; 258],
    len: usize,
}

impl Key {
    pub(super) fn of(question: &Question) -> Self {
        let name = question.name.as_wire();
        let mut bytes = [0; 258];
        let (front, back) = bytes.split_at_mut(name.len());
        front.copy_from_slice(name);
        back[..2].copy_from_slice(&question.qtype.to_be_bytes());
        back[2] = u8::from(question.dnssec_ok) | u8::from(question.checking_disabled) << 1;
        Self { bytes, len: name.len() + 3 }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[derive(Debug)]
struct Entry {
    answer: Option<(Arc<Answer>, Instant)>,
    failed: Option<Instant>,
    /// Asked for since it was last considered for eviction.
    wanted: bool,
    size: usize,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// Every key once, the next to be considered for eviction in front.
    queue: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct Cache {
    table: Mutex<Table>,
    capacity: usize,
}

impl Cache {
    /// A cache of at most `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { table: Mutex::default(), capacity }
    }

    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Held> {
        let mut table = self.lock();
        let entry = table.entries.get_mut(key.as_bytes())?;
        entry.wanted = true;
        let failed = entry.failed.filter(|at| now.saturating_duration_since(*at) < FAILURE_FOR);
        let Some((answer, since)) = &entry.answer else { return failed.map(|_| Held::Failed) };
        let age = now.saturating_duration_since(*since);
        let lifetime = Duration::from_secs(answer.lifetime().into());
        if age < lifetime {
            // Below a day, so it fits.
            Some(Held::Fresh(answer.clone(), Age::Seconds(age.as_secs() as u32)))
        } else if age < lifetime + STALE_FOR {
            Some(Held::Stale { answer: answer.clone(), retry: failed.is_none() })
        } else {
            failed.map(|_| Held::Failed)
        }
    }

    /// Keeps an answer. One with TTL 0 is for those who asked only (RFC 1035 section 3.2.1), and ends what was held.
    pub(super) fn put(&self, key: &Key, answer: Arc<Answer>, now: Instant) {
        let mut table = self.lock();
        if answer.lifetime() == 0 {
            table.remove(key);
        } else {
            table.store(key, |entry| {
                entry.answer = Some((answer, now));
                entry.failed = None;
            });
            table.evict(self.capacity);
        }
    }

    /// Notes that no upstream could say. An answer held from before stays, to be given stale.
    pub(super) fn put_failure(&self, key: &Key, now: Instant) {
        let mut table = self.lock();
        table.store(key, |entry| entry.failed = Some(now));
        table.evict(self.capacity);
    }

    // A panic while the lock was held could at worst leave a count wrong, never an answer.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn store(&mut self, key: &Key, change: impl FnOnce(&mut Entry)) {
        if !self.entries.contains_key(key.as_bytes()) {
            let key: Arc<[u8]> = key.as_bytes().into();
            self.queue.push_back(key.clone());
            self.entries.insert(key, Entry { answer: None, failed: None, wanted: false, size: 0 });
        }
        let Some(entry) = self.entries.get_mut(key.as_bytes()) else { return };
        change(entry);
        let answer = entry.answer.as_ref().map_or(0, |(answer, _)| answer.size());
        let size = OVERHEAD + key.as_bytes().len() + answer;
        self.bytes = self.bytes - entry.size + size;
        entry.size = size;
    }

    /// Leaves an empty entry, which goes when its turn comes.
    fn remove(&mut self, key: &Key) {
        if self.entries.contains_key(key.as_bytes()) {
            self.store(key, |entry| (entry.answer, entry.failed) = (None, None));
        }
    }

    /// Second chance: from the front, what was wanted since its last turn goes to the back, the rest goes. Each pass
    /// clears a mark or removes an entry, so it ends.
    fn evict(&mut self, capacity: usize) {
        while self.bytes > capacity {
            let Some(key) = self.queue.pop_front() else { return };
            match self.entries.get_mut(&key) {
                Some(entry) if entry.wanted => {
                    entry.wanted = false;
                    self.queue.push_back(key);
                }
                Some(entry) => {
                    self.bytes -= entry.size;
                    self.entries.remove(&key);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::{Verdict, read};
    use super::super::name::Name;
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
        assert!(matches!(held(9 * SECOND), Some(Held::Fresh(_, Age::Seconds(9)))));
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
        assert!(matches!(cache.get(&key("old"), start + SECOND), Some(Held::Stale { retry: false, .. })));
        assert!(matches!(cache.get(&key("old"), start + 3 * SECOND), Some(Held::Stale { retry: true, .. })));
    }

    #[test]
    fn ttl_0_ends_what_was_held() {
        let (cache, start) = (Cache::new(1 << 20), Instant::now());
        cache.put(&key("a"), answer("a", 10), start);
        cache.put(&key("a"), answer("a", 0), start);
        assert!(cache.get(&key("a"), start).is_none());
    }

    #[test]
    fn a_flood_of_names_neither_grows_the_cache_nor_pushes_out_the_hot_one() {
        let (capacity, start) = (100_000, Instant::now());
        let cache = Cache::new(capacity);
        cache.put(&key("hot"), answer("hot", 300), start);
        for n in 0..20_000 {
            let name = format!("n{n}.example");
            cache.put(&key(&name), answer(&name, 300), start);
            if n % 50 == 0 {
                assert!(cache.get(&key("hot"), start).is_some(), "{n}");
            }
        }
        let table = cache.lock();
        assert!(table.bytes <= capacity);
        assert_eq!(table.queue.len(), table.entries.len());
        assert_eq!(table.bytes, table.entries.values().map(|entry| entry.size).sum::<usize>());
    }

    #[test]
    fn do_and_cd_are_other_questions() {
        let plain = question("a");
        let keys = [(false, false), (true, false), (false, true), (true, true)].map(
            |(dnssec_ok, checking_disabled)| {
                Key::of(&Question { dnssec_ok, checking_disabled, ..plain.clone() }).as_bytes().to_vec()
            },
        );
        for (n, one) in keys.iter().enumerate() {
            assert!(keys[n + 1..].iter().all(|other| other != one));
        }
    }
}
