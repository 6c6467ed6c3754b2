use std::ops::Index;

/// What a guest has sent and received since its VM was created, as the guest sees it: rx is what it received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    /// On the way to the guest, its download limit's drops among them.
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
}

/// What the kernel has counted on a VM's port, since whenever it began to count each: raw material for `Counters`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading(pub [u64; Reading::LEN]);

/// The places of a `Reading`, in the guest's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    RxBytes,
    TxBytes,
    RxPackets,
    TxPackets,
    RxDropped,
    TxDropped,
    RxErrors,
    TxErrors,
    /// Dropped by the queue that limits the guest's download: begins again when that is removed and made anew.
    RxLimited,
}

impl Reading {
    pub const LEN: usize = 9;
}

impl Index<Counter> for Reading {
    type Output = u64;
    fn index(&self, counter: Counter) -> &u64 {
        &self.0[counter as usize]
    }
}

impl From<Reading> for Counters {
    fn from(reading: Reading) -> Self {
        Self {
            rx_bytes: reading[Counter::RxBytes],
            tx_bytes: reading[Counter::TxBytes],
            rx_packets: reading[Counter::RxPackets],
            tx_packets: reading[Counter::TxPackets],
            rx_dropped: reading[Counter::RxDropped].saturating_add(reading[Counter::RxLimited]),
            tx_dropped: reading[Counter::TxDropped],
            rx_errors: reading[Counter::RxErrors],
            tx_errors: reading[Counter::TxErrors],
        }
    }
}
