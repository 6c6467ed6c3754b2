//! A guest's share of the server: a token bucket. PURE. Far above what any client sends, so that what is left out is a
//! flood's, and the cost of a flood is receiving it.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::SystemTime;

/// Requests a second of one guest that are answered.
const PER_SECOND: u32 = 4_000;
const BURST: u32 = 1_000;

#[derive(Debug)]
pub(super) struct Share {
    left: u32,
    /// When it was last filled up.
    filled: SystemTime,
}

impl Default for Share {
    fn default() -> Self {
        Self { left: BURST, filled: SystemTime::UNIX_EPOCH }
    }
}

impl Share {
    /// Whether one more request is within the share.
    pub(super) fn takes(&mut self, now: SystemTime) -> bool {
        // A clock that was set back fills it up.
        let since = now.duration_since(self.filled).map_or(u128::from(u32::MAX), |since| since.as_micros());
        let more = since * u128::from(PER_SECOND) / 1_000_000;
        if more > 0 {
            self.left = u32::try_from(more).map_or(BURST, |more| self.left.saturating_add(more).min(BURST));
            self.filled = now;
        }
        let takes = self.left > 0;
        self.left = self.left.saturating_sub(1);
        takes
    }
}
