//! A line on standard error for work that takes longer than a second; none where nobody sees it come and go.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

pub(super) struct Progress {
    what: &'static str,
    total: usize,
    begun: Instant,
    shown: bool,
    is_terminal: bool,
}

impl Progress {
    /// `what` is done `total` times.
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        Self { what, total, begun: Instant::now(), shown: false, is_terminal: io::stderr().is_terminal() }
    }

    pub(super) fn at(&mut self, done: usize) {
        if self.is_terminal && self.begun.elapsed() > Duration::from_secs(1) {
            self.shown = true;
            let left = self.begun.elapsed().mul_f64(ratio(self.total.saturating_sub(done), done));
            // A terminal that is gone shows nothing.
            let _ = write!(
                io::stderr(),
                "\r\x1b[K{} {done} of {}, {} s left",
                self.what,
                self.total,
                left.as_secs()
            );
        }
    }
}

fn ratio(left: usize, done: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "an estimate for people")]
    let (left, done) = (left as f64, done.max(1) as f64);
    left / done
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
