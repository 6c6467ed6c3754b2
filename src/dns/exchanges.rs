//! Exchanges with upstreams, shared out. In: questions, each with the shares of the guests that wait for it. Out: a permit for
//! each exchange, by the rule of `fair`, so that one with few under way finds some whatever others do. What is given back goes
//! to who has fewest. A question to several upstreams is several exchanges.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::fair::Portions;

/// Exchanges that a guest may have under way: this part of all, which is two for each of its places.
pub(super) const GUEST_PART: usize = 4;
/// Guests of whose shares a question is asked, at most: of those that wait for it, the ones with fewest under way when they came.
const PAYERS: usize = 8;

#[derive(Debug)]
pub(super) struct Exchanges {
    portions: Portions,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    free: usize,
    /// Shares that somebody waits at.
    waiting: Vec<Arc<Share>>,
}

/// A guest's exchanges, and its questions under way. Changed under the table's lock only, but for the latter.
#[derive(Debug, Default)]
pub(super) struct Share {
    under_way: AtomicUsize,
    queue: Mutex<VecDeque<Turn>>,
    pub(super) flights: AtomicUsize,
}

/// Told once, whichever share's turn comes first.
type Turn = Arc<Mutex<Option<oneshot::Sender<Permit>>>>;

/// Leave for one exchange, given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    exchanges: Arc<Exchanges>,
    share: Arc<Share>,
}

/// Who a question is asked for: any of them that has exchanges left pays, so that nobody's answer hangs on what another has
/// under way.
#[derive(Debug)]
pub(super) struct Payers {
    exchanges: Arc<Exchanges>,
    joined: Mutex<Joined>,
}

#[derive(Debug)]
struct Joined {
    shares: Vec<Arc<Share>>,
    turns: Vec<Turn>,
    last: Instant,
}

impl Exchanges {
    pub(super) fn new(most: usize) -> Self {
        let table = Mutex::new(Table { free: most, waiting: vec![] });
        Self { portions: Portions { all: most, most: (most / GUEST_PART).max(1) }, table }
    }

    pub(super) fn share(&self) -> Arc<Share> {
        Arc::default()
    }

    /// Gives what is free to those who wait, who has fewest first.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let next = lock(&self.table).next(&self.portions);
            let Some((tell, share)) = next else { return };
            // Who has just stopped waiting gives it back.
            drop(tell.send(Permit { exchanges: self.clone(), share }));
        }
    }
}

impl Table {
    fn take(&mut self, share: &Share) {
        self.free -= 1;
        share.under_way.fetch_add(1, Relaxed);
    }

    fn wait(&mut self, share: &Arc<Share>, turn: Turn) {
        let mut queue = lock(&share.queue);
        if queue.is_empty() {
            self.waiting.push(share.clone());
        }
        queue.push_back(turn);
    }

    fn next(&mut self, portions: &Portions) -> Option<(oneshot::Sender<Permit>, Arc<Share>)> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.retain(|share| {
            let mut queue = lock(&share.queue);
            while queue.front().is_some_and(|turn| !is_open(turn)) {
                queue.pop_front();
            }
            !queue.is_empty()
        });
        let share = self.waiting.iter().min_by_key(|share| share.under_way.load(Relaxed))?.clone();
        if !portions.may_have_more(share.under_way.load(Relaxed), self.free) {
            return None;
        }
        let turn = lock(&share.queue).pop_front()?;
        let tell = lock(&turn).take()?;
        if lock(&share.queue).is_empty() {
            self.waiting.retain(|other| !Arc::ptr_eq(other, &share));
        }
        self.take(&share);
        Some((tell, share))
    }
}

/// Whether somebody still waits for it.
fn is_open(turn: &Turn) -> bool {
    lock(turn).as_ref().is_some_and(|tell| !tell.is_closed())
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut table = lock(&self.exchanges.table);
        table.free += 1;
        self.share.under_way.fetch_sub(1, Relaxed);
        let idle = table.waiting.is_empty();
        drop(table);
        if !idle {
            self.exchanges.hand_out();
        }
    }
}

impl Payers {
    pub(super) fn new(exchanges: &Arc<Exchanges>, share: &Arc<Share>) -> Self {
        let joined = Joined { shares: vec![share.clone()], turns: vec![], last: Instant::now() };
        Self { exchanges: exchanges.clone(), joined: Mutex::new(joined) }
    }

    /// Another waits for the question.
    pub(super) fn join(&self, share: &Arc<Share>) {
        let mut table = lock(&self.exchanges.table);
        let mut joined = lock(&self.joined);
        joined.last = Instant::now();
        if joined.shares.iter().any(|known| Arc::ptr_eq(known, share)) {
            return;
        }
        let under_way = |share: &Share| share.under_way.load(Relaxed);
        if joined.shares.len() < PAYERS {
            joined.shares.push(share.clone());
        } else {
            let most = joined.shares.iter_mut().max_by_key(|payer| under_way(payer));
            match most.filter(|payer| under_way(payer) > under_way(share)) {
                // The turns it waits for stay in its queue, until it or another is told.
                Some(payer) => *payer = share.clone(),
                None => return,
            }
        }
        for turn in joined.turns.iter().filter(|turn| is_open(turn)) {
            table.wait(share, turn.clone());
        }
        drop((table, joined));
        self.exchanges.hand_out();
    }

    /// Leave for an exchange, when one of the payers may have one more.
    pub(super) async fn permit(&self) -> Permit {
        let told = {
            let mut table = lock(&self.exchanges.table);
            let mut joined = lock(&self.joined);
            let (portions, free) = (&self.exchanges.portions, table.free);
            let mut shares = joined.shares.iter();
            let able = shares.find(|share| portions.may_have_more(share.under_way.load(Relaxed), free));
            if let Some(share) = able.cloned() {
                table.take(&share);
                return Permit { exchanges: self.exchanges.clone(), share };
            }
            let (tell, told) = oneshot::channel();
            let turn = Turn::new(Mutex::new(Some(tell)));
            joined.turns.retain(is_open);
            joined.turns.push(turn.clone());
            for share in &joined.shares {
                table.wait(share, turn.clone());
            }
            told
        };
        match told.await {
            Ok(permit) => permit,
            // Its sender stands in a queue until it is told.
            Err(_) => std::future::pending().await,
        }
    }

    /// The same, or none when for `patience` after the last one joined no turn has come: nobody waits any more.
    pub(super) async fn permit_within(&self, patience: Duration) -> Option<Permit> {
        let mut permit = std::pin::pin!(self.permit());
        loop {
            let until = lock(&self.joined).last + patience;
            match timeout_at(until, permit.as_mut()).await {
                Ok(permit) => return Some(permit),
                Err(_) if lock(&self.joined).last + patience > until => {}
                Err(_) => return None,
            }
        }
    }
}

// Counts and queues are changed in one go, so a panic elsewhere leaves them right.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// All that a guest with questions of its own can get at once.
    fn take_all(exchanges: &Arc<Exchanges>, share: &Arc<Share>) -> Vec<Permit> {
        std::iter::from_fn(|| Payers::new(exchanges, share).permit().now_or_never()).collect()
    }

    #[test]
    fn many_greedy_guests_leave_exchanges_for_one_that_asks_little() {
        for greedy in [8, 50, 400] {
            let exchanges = Arc::new(Exchanges::new(4_096));
            let shares: Vec<_> = (0..greedy).map(|_| exchanges.share()).collect();
            let taken: Vec<_> = shares.iter().map(|share| take_all(&exchanges, share)).collect();
            let quiet = exchanges.share();
            assert!(!take_all(&exchanges, &quiet).is_empty(), "{greedy}");
            // A guest alone has no more than its part.
            assert_eq!(taken[0].len(), 1_024);
        }
    }

    #[test]
    fn what_is_given_back_goes_to_who_has_fewest() {
        let exchanges = Arc::new(Exchanges::new(16));
        let (many, few) = (exchanges.share(), exchanges.share());
        let mut taken = take_all(&exchanges, &many);
        let others: Vec<_> = (0..6).map(|_| take_all(&exchanges, &exchanges.share())).collect();
        let (of_many, of_few) = (Payers::new(&exchanges, &many), Payers::new(&exchanges, &few));
        let held = take_all(&exchanges, &few);
        assert!(held.len() < taken.len());
        let (mut first, mut second) = (Box::pin(of_many.permit()), Box::pin(of_few.permit()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        taken.pop();
        drop(others);
        let (first, second) = (first.now_or_never(), second.now_or_never());
        assert!(second.is_some() && first.is_some());
        drop((first, second, held, taken));
        let table = lock(&exchanges.table);
        assert_eq!((table.free, table.waiting.len()), (16, 0));
    }

    #[test]
    fn a_question_is_paid_for_by_whoever_of_its_askers_can() {
        let exchanges = Arc::new(Exchanges::new(32));
        let (busy, free) = (exchanges.share(), exchanges.share());
        let taken = take_all(&exchanges, &busy);
        let payers = Payers::new(&exchanges, &busy);
        let mut permit = Box::pin(payers.permit());
        assert!(permit.as_mut().now_or_never().is_none());
        payers.join(&free);
        let permit = permit.now_or_never().expect("the other's");
        assert!(Arc::ptr_eq(&permit.share, &free));
        // Its turn at the first is over with that: who comes next there has the next.
        let next = Payers::new(&exchanges, &busy);
        let mut waits = Box::pin(next.permit());
        assert!(waits.as_mut().now_or_never().is_none());
        drop(taken);
        assert!(waits.now_or_never().is_some());
    }

    #[test]
    fn one_who_can_pay_does_whoever_joined_before() {
        let exchanges = Arc::new(Exchanges::new(1_024));
        let busy: Vec<_> = (0..8).map(|_| exchanges.share()).collect();
        let taken: Vec<_> = busy.iter().map(|share| take_all(&exchanges, share)).collect();
        let payers = Payers::new(&exchanges, &busy[0]);
        busy[1..].iter().for_each(|share| payers.join(share));
        let mut permit = Box::pin(payers.permit());
        assert!(permit.as_mut().now_or_never().is_none());
        let free = exchanges.share();
        payers.join(&free);
        let permit = permit.now_or_never().expect("the ninth's");
        assert!(Arc::ptr_eq(&permit.share, &free));
        // Its next exchange too.
        let next = payers.permit().now_or_never().expect("the ninth's");
        assert!(Arc::ptr_eq(&next.share, &free));
        drop(taken);
    }

    #[tokio::test]
    async fn who_waits_is_waited_for_from_when_it_came() {
        const PATIENCE: Duration = Duration::from_millis(300);
        let exchanges = Arc::new(Exchanges::new(8));
        let (busy, late) = (exchanges.share(), exchanges.share());
        let taken = take_all(&exchanges, &busy);
        let payers = Payers::new(&exchanges, &busy);
        let begun = Instant::now();
        let joining = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            // It has nothing to give either.
            let _all = take_all(&exchanges, &late);
            payers.join(&late);
            tokio::time::sleep(Duration::from_secs(20)).await;
        };
        tokio::select! {
            permit = payers.permit_within(PATIENCE) => assert!(permit.is_none()),
            () = joining => panic!("it waits on"),
        }
        assert!(begun.elapsed() >= Duration::from_millis(500));
        drop(taken);
    }
}
