//! Answers kept for the next guest who asks, in wire form. In: answers and failures with the time they came. Out: what is
//! held for a question, fresh or stale. Bounded in bytes by S3-FIFO: what is new waits in a short queue and goes from there
//! unless it is asked for again, so a flood of random names passes by the hot ones.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::answer::{Age, Answer, Question};
use super::name::Name;

/// How long an answer past its lifetime is kept for when no upstream answers (RFC 8767 section 5: one to three days).
const STALE_FOR: Duration = Duration::from_secs(86_400);
/// How long a failure stands (RFC 9520 section 3.2: at least one second): it keeps a guest that asks in a loop from the
/// upstreams, and is over before a stub's next try at 5 s.
const FAILURE_FOR: Duration = Duration::from_secs(2);
/// After a failure a stale answer is given without waiting for so long (RFC 8767 section 5, failure recheck timer); upstreams are
/// asked again before, without the guest.
const RECHECK: Duration = Duration::from_secs(30);
/// What an entry costs besides its key and answer: table and queue slots, allocations, and the gaps that come and go between them
/// in a daemon at work. Measured: `bench/run dns` has the daemon's memory beside the cache's size
/// (`rss_mib_after_1500000_names`); the test `a_full_cache_takes_no_more_memory_than_it_may` has the cache alone.
const OVERHEAD: usize = 640;
/// Parts with a lock each, so that a scan of one (a flush, a look for people) never holds up the guests for long, however large
/// the cache: of some 2 MiB each, within these.
const PART: usize = 2 << 20;
const PARTS: (usize, usize) = (16, 4_096);
/// Entries that go in one turn when there is less room from now on.
const TURN: usize = 1_024;
/// A cache smaller than this is one part.
const SMALL: usize = 1 << 20;
/// The short queue's part of the bytes: one of so many.
const PROBATION: usize = 10;
/// Requests that are remembered at most; more say nothing new.
const MOST_WANTED: u32 = 3;
/// An answer asked for as often as this is fetched anew before it ends, in the last tenth of its lifetime.
const PREFETCH_FROM: u32 = 3;

/// What is held for a question.
#[derive(Debug, Clone)]
pub(super) enum Held {
    Fresh {
        answer: Arc<Answer>,
        age: Age,
        /// It is often asked for and about to end: fetch it anew. Told once.
        renew: bool,
    },
    /// Past its lifetime.
    Stale {
        answer: Arc<Answer>,
        /// For how long.
        over: Duration,
        /// Upstreams have not failed on it of late, so a fresh one is worth waiting for.
        wait: bool,
        /// They have not just failed on it, so ask them again.
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
        Self::new(&question.name, question.qtype, question.dnssec_ok, question.checking_disabled)
    }

    /// For the fact that a name does not exist, whatever the type: under type 0, which nobody can ask for. With DO or without
    /// is the same fact.
    pub(super) fn of_nxdomain(name: &Name, question: &Question) -> Self {
        Self::new(name, 0, false, question.checking_disabled)
    }

    fn new(name: &Name, qtype: u16, dnssec_ok: bool, checking_disabled: bool) -> Self {
        let name = name.as_wire();
        let mut bytes = [0; 258];
        let (front, back) = bytes.split_at_mut(name.len());
        front.copy_from_slice(name);
        back[..2].copy_from_slice(&qtype.to_be_bytes());
        back[2] = u8::from(dnssec_ok) | u8::from(checking_disabled) << 1;
        Self { bytes, len: name.len() + 3 }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The name and type that a key was made of.
fn asked(key: &[u8]) -> Option<(Name, u16)> {
    let qtype = key.get(key.len().checked_sub(3)?..)?.first_chunk::<2>()?;
    Some((Name::read(key)?, u16::from_be_bytes(*qtype)))
}

#[derive(Debug)]
struct Entry {
    answer: Option<(Arc<Answer>, Instant)>,
    failed: Option<Instant>,
    /// How often it was asked for since it was last considered for eviction.
    wanted: u32,
    /// How often it was asked for while held.
    hits: u32,
    renewing: bool,
    in_main: bool,
    size: usize,
}

#[derive(Debug, Default)]
struct Shard {
    entries: HashMap<Arc<[u8]>, Entry, RandomState>,
    /// Each key is in one of the queues once, the next to be considered for eviction in front.
    probation: VecDeque<Arc<[u8]>>,
    main: VecDeque<Arc<[u8]>>,
    /// Hashes of what went from `probation` not long ago: asked for again, it was worth keeping.
    ghosts: HashSet<u64>,
    ghost_queue: VecDeque<u64>,
    probation_bytes: usize,
    bytes: usize,
}

pub(super) struct Cache {
    shards: Vec<Mutex<Shard>>,
    /// Bytes of each part.
    capacity: AtomicUsize,
}

/// How full the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheUse {
    pub entries: u64,
    pub bytes: u64,
    pub capacity: u64,
}

impl Cache {
    /// A cache of at most `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        let shards = if capacity < SMALL { 1 } else { (capacity / PART).clamp(PARTS.0, PARTS.1) };
        let capacity = AtomicUsize::new(capacity / shards);
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), capacity }
    }

    /// Holds `capacity` bytes from now on. What is too much goes at once, in turns that guests do not notice.
    pub(super) fn resize(&self, capacity: usize) {
        let capacity = capacity / self.shards.len();
        self.capacity.store(capacity, Relaxed);
        for shard in &self.shards {
            while lock(shard).shrink(capacity, TURN) {}
        }
    }

    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Held> {
        let mut shard = self.shard(key);
        let entry = shard.entries.get_mut(key.as_bytes())?;
        entry.wanted = (entry.wanted + 1).min(MOST_WANTED);
        entry.hits = entry.hits.saturating_add(1);
        let held = entry.held(now);
        entry.renewing |= matches!(held, Some(Held::Fresh { renew: true, .. }));
        held
    }

    /// The same for who only looks: it counts as no request, and what is told once is still to be told.
    pub(super) fn peek(&self, key: &Key, now: Instant) -> Option<Held> {
        self.shard(key).entries.get(key.as_bytes())?.held(now)
    }

    /// Keeps an answer. One with TTL 0 is for those who asked only (RFC 1035 section 3.2.1), and ends what was held.
    pub(super) fn put(&self, key: &Key, answer: Arc<Answer>, now: Instant) {
        self.put_if(key, answer, now, || true);
    }

    /// The same if it `holds`, which is asked while nobody else can change what is held: what a `retain` after some change
    /// would forget does not come in behind it.
    pub(super) fn put_if(&self, key: &Key, answer: Arc<Answer>, now: Instant, holds: impl FnOnce() -> bool) {
        let mut shard = self.shard(key);
        if !holds() {
            return;
        }
        let held = Some((answer, now)).filter(|(answer, _)| answer.lifetime() > 0);
        // What was held goes without its place in a queue, which it has until its turn comes.
        if held.is_some() || shard.entries.contains_key(key.as_bytes()) {
            shard.store(key, self.capacity.load(Relaxed), |entry| {
                entry.answer = held;
                (entry.failed, entry.renewing) = (None, false);
            });
        }
    }

    /// Notes that no upstream could say. An answer held from before stays, to be given stale.
    #[cfg(test)]
    fn put_failure(&self, key: &Key, now: Instant) {
        self.put_failure_if(key, now, || true);
    }

    /// The same, as `put_if`.
    pub(super) fn put_failure_if(&self, key: &Key, now: Instant, holds: impl FnOnce() -> bool) {
        let mut shard = self.shard(key);
        if holds() {
            shard.store(key, self.capacity.load(Relaxed), |entry| {
                (entry.failed, entry.renewing) = (Some(now), false);
            });
        }
    }

    /// Notes that no answer came in the time that a guest waits where there is a stale one: the next need not wait as well. What
    /// still comes ends that.
    pub(super) fn note_late(&self, key: &Key, now: Instant) {
        if let Some(entry) = self.shard(key).entries.get_mut(key.as_bytes()) {
            entry.failed = Some(now);
        }
    }

    /// Forgets one answer.
    pub(super) fn forget(&self, key: &Key) {
        let mut shard = self.shard(key);
        // What was held goes without its place in a queue, which it has until its turn comes.
        if shard.entries.contains_key(key.as_bytes()) {
            shard.store(key, self.capacity.load(Relaxed), |entry| entry.answer = None);
        }
    }

    /// Forgets `name` and all below it; how many answers that were.
    pub(super) fn flush(&self, name: &Name) -> u64 {
        self.retain(|held, _, _| !held.is_in(name))
    }

    /// Forgets what `keep` does not want, by name, type and answer (none where only a failure is held); how many that were. Each part
    /// is gone through once.
    pub(super) fn retain(&self, keep: impl Fn(&Name, u16, Option<&Answer>) -> bool) -> u64 {
        self.shards.iter().map(|shard| lock(shard).retain(&keep)).sum()
    }

    pub(super) fn usage(&self) -> CacheUse {
        let mut usage = CacheUse {
            capacity: (self.capacity.load(Relaxed) * self.shards.len()) as u64,
            ..CacheUse::default()
        };
        for shard in &self.shards {
            let shard = lock(shard);
            usage.entries += shard.entries.len() as u64;
            usage.bytes += shard.bytes as u64;
        }
        usage
    }

    /// The `most` questions asked for most often while held: name, type, times.
    pub(super) fn top(&self, most: usize) -> Vec<(Name, u16, u32)> {
        let mut top: Vec<(u32, Arc<[u8]>)> = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            top.extend(shard.entries.iter().map(|(key, entry)| (entry.hits, key.clone())));
            drop(shard);
            top.sort_by_key(|(hits, _)| std::cmp::Reverse(*hits));
            top.truncate(most);
        }
        let question = |(hits, key): (u32, Arc<[u8]>)| asked(&key).map(|(name, qtype)| (name, qtype, hits));
        top.into_iter().filter_map(question).filter(|(_, qtype, hits)| *qtype != 0 && *hits > 0).collect()
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        // The name's bytes are as good as a hash for this: nothing depends on the parts being of one size.
        let sum = key
            .as_bytes()
            .iter()
            .fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        lock(&self.shards[sum % self.shards.len()])
    }
}

impl Entry {
    fn held(&self, now: Instant) -> Option<Held> {
        let failed_within = |time| self.failed.is_some_and(|at| now.saturating_duration_since(at) < time);
        let failed = failed_within(FAILURE_FOR).then_some(Held::Failed);
        let Some((answer, since)) = &self.answer else { return failed };
        let age = now.saturating_duration_since(*since);
        let lifetime = Duration::from_secs(answer.lifetime().into());
        if age < lifetime {
            let renew = !self.renewing && self.hits >= PREFETCH_FROM && lifetime - age < lifetime / 10;
            // Below a week, so it fits.
            Some(Held::Fresh { answer: answer.clone(), age: Age::Seconds(age.as_secs() as u32), renew })
        } else if age < lifetime + STALE_FOR {
            let (wait, retry) = (!failed_within(RECHECK), failed.is_none());
            Some(Held::Stale { answer: answer.clone(), over: age - lifetime, wait, retry })
        } else {
            failed
        }
    }
}

impl Shard {
    fn store(&mut self, key: &Key, capacity: usize, change: impl FnOnce(&mut Entry)) {
        if !self.entries.contains_key(key.as_bytes()) {
            let key: Arc<[u8]> = key.as_bytes().into();
            let in_main = self.ghosts.remove(&self.hash(&key));
            if in_main { &mut self.main } else { &mut self.probation }.push_back(key.clone());
            let entry =
                Entry { answer: None, failed: None, wanted: 0, hits: 0, renewing: false, in_main, size: 0 };
            self.entries.insert(key, entry);
        }
        let Some(entry) = self.entries.get_mut(key.as_bytes()) else { return };
        change(entry);
        let answer = entry.answer.as_ref().map_or(0, |(answer, _)| answer.size());
        let size = OVERHEAD + key.as_bytes().len() + answer;
        self.bytes = self.bytes - entry.size + size;
        if !entry.in_main {
            self.probation_bytes = self.probation_bytes - entry.size + size;
        }
        entry.size = size;
        self.shrink(capacity, usize::MAX);
    }

    /// Lets go what is too much, in so many steps at most; whether there is more to do.
    fn shrink(&mut self, capacity: usize, steps: usize) -> bool {
        (0..steps).all(|_| self.bytes > capacity && self.evict(capacity))
    }

    fn retain(&mut self, keep: &impl Fn(&Name, u16, Option<&Answer>) -> bool) -> u64 {
        let Self { entries, probation, main, probation_bytes, bytes, .. } = self;
        let before = entries.len();
        entries.retain(|key, entry| {
            let answer = entry.answer.as_ref().map(|(answer, _)| &**answer);
            let kept = asked(key).is_some_and(|(name, qtype)| keep(&name, qtype, answer));
            if !kept {
                *bytes -= entry.size;
                if !entry.in_main {
                    *probation_bytes -= entry.size;
                }
            }
            kept
        });
        for queue in [probation, main] {
            queue.retain(|key| entries.contains_key(key));
        }
        (before - entries.len()) as u64
    }

    /// One step of S3-FIFO: from `probation`, what was asked for again goes on to `main`, the rest goes and is remembered by
    /// its hash; from `main`, what was asked for since its last turn gets another. `false` when nothing is left. Each step
    /// takes an entry away, moves it on for good, or lowers its count, so it ends.
    fn evict(&mut self, capacity: usize) -> bool {
        let young = self.probation_bytes > capacity / PROBATION || self.main.is_empty();
        let queue = if young { &mut self.probation } else { &mut self.main };
        let Some(key) = queue.pop_front() else { return false };
        let Some(entry) = self.entries.get_mut(&key) else { return true };
        match (young, entry.wanted) {
            (true, 1..) => {
                (entry.in_main, entry.wanted) = (true, 0);
                self.probation_bytes -= entry.size;
                self.main.push_back(key);
            }
            (false, 1..) => {
                entry.wanted -= 1;
                self.main.push_back(key);
            }
            (_, 0) => {
                self.bytes -= entry.size;
                if young {
                    self.probation_bytes -= entry.size;
                }
                self.entries.remove(&key);
                if young {
                    self.remember(&key);
                }
            }
        }
        true
    }

    fn hash(&self, key: &[u8]) -> u64 {
        self.entries.hasher().hash_one(key)
    }

    fn remember(&mut self, key: &Arc<[u8]>) {
        let hash = self.hash(key);
        self.ghosts.insert(hash);
        self.ghost_queue.push_back(hash);
        while self.ghost_queue.len() > self.entries.len() {
            if let Some(oldest) = self.ghost_queue.pop_front() {
                self.ghosts.remove(&oldest);
            }
        }
    }
}

// A panic while the lock was held could at worst leave a count wrong, never an answer.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
