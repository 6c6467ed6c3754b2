//! A line on standard error for work that takes longer than a second; none where nobody sees it come and go.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

/// Shown each second, also while one call takes long.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Progress {
    work: Arc<Mutex<Work>>,
    showing: Option<JoinHandle<()>>,
}

struct Work {
    what: &'static str,
    total: usize,
    done: usize,
    begun: Instant,
    is_shown: bool,
    is_over: bool,
}

impl Progress {
    /// `what` is done `total` times.
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        let work = Work { what, total, done: 0, begun: Instant::now(), is_shown: false, is_over: false };
        let work = Arc::new(Mutex::new(work));
        let showing = io::stderr().is_terminal().then(|| tokio::spawn(show(work.clone())));
        Self { work, showing }
    }

    pub(super) fn at(&self, done: usize) {
        open(&self.work).done = done;
    }
}

async fn show(work: Arc<Mutex<Work>>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let mut work = open(&work);
        if work.is_over {
            return;
        }
        work.is_shown = true;
        // A terminal that is gone shows nothing.
        let _ = write!(io::stderr(), "\r\x1b[K{}", line(&work, work.begun.elapsed()));
    }
}

fn line(work: &Work, elapsed: Duration) -> String {
    let Work { what, total, done, .. } = *work;
    let so_far = format!("{what} {done} of {total}");
    let left = elapsed.as_secs() * (total.saturating_sub(done) as u64);
    left.checked_div(done as u64).map_or(so_far.clone(), |left| format!("{so_far}, {left} s left"))
}

// A number is all that is changed under the lock.
fn open(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Progress {
    fn drop(&mut self) {
        let Some(showing) = &self.showing else { return };
        let mut work = open(&self.work);
        work.is_over = true;
        showing.abort();
        if work.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_once_something_is_done() {
        let work = |done| Work {
            what: "made",
            total: 120,
            done,
            begun: Instant::now(),
            is_shown: false,
            is_over: false,
        };
        assert_eq!(line(&work(0), Duration::from_secs(2)), "made 0 of 120");
        assert_eq!(line(&work(40), Duration::from_secs(4)), "made 40 of 120, 8 s left");
    }
}
