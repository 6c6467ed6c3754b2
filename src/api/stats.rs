//! Statistics over the API: once, or as a stream that the reader sets the pace of. In: whose, and how often. Out: totals.
//! A reader that is slow misses answers; none is ever kept for it.

use std::sync::Arc;
use std::time::Duration;

use connectrpc::ConnectError;
use futures_util::stream::{self, Stream};
use tokio::time::MissedTickBehavior;

use super::errors::{internal, no_vm};
use super::wire::{self, FieldError};
use crate::manager::Manager;
use crate::model::{Counters, Invalid, VmId};
use crate::proto::guestnet::v1;
use crate::stats::{Snapshot, Stats};

/// The shortest and the longest interval of a watch, in milliseconds.
const INTERVALS: std::ops::RangeInclusive<u32> = 100..=3_600_000;

/// Those named, which have to be there now; none named means all.
pub(super) fn chosen(manager: &Manager, vm_ids: &[&str]) -> Result<Vec<VmId>, ConnectError> {
    let check = |text: &&str| {
        let vm_id = wire::vm_id(text)?;
        match manager.get(&vm_id) {
            Some(_) => Ok(vm_id),
            None => Err(no_vm(&vm_id)),
        }
    };
    vm_ids.iter().map(check).collect()
}

pub(super) fn interval(asked: Option<u32>) -> Result<Duration, FieldError> {
    let milliseconds = asked.unwrap_or(1_000);
    if INTERVALS.contains(&milliseconds) {
        Ok(Duration::from_millis(milliseconds.into()))
    } else {
        Err(FieldError::new("interval_ms", Invalid::new(milliseconds, "an interval of 100 to 3600000 ms")))
    }
}

pub(super) async fn read(stats: &Stats, vm_ids: &[VmId]) -> Result<Arc<Snapshot>, ConnectError> {
    let read = if vm_ids.is_empty() { stats.all().await } else { stats.of(vm_ids).await };
    read.map_err(|error| internal("COUNTERS_UNREADABLE", error))
}

/// A stream of totals: counts when the reader asks for the next answer, at most once in an interval.
pub(super) fn watch(
    stats: Stats,
    vm_ids: Vec<VmId>,
    interval: Duration,
) -> impl Stream<Item = Result<v1::WatchNetworkStatsResponse, ConnectError>> + Send {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    stream::unfold(Some((stats, vm_ids, ticks)), |watching| async move {
        let (stats, vm_ids, mut ticks) = watching?;
        ticks.tick().await;
        match read(&stats, &vm_ids).await {
            Ok(snapshot) => Some((Ok(watch_response(&snapshot)), Some((stats, vm_ids, ticks)))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

pub(super) fn response(snapshot: &Snapshot) -> v1::GetNetworkStatsResponse {
    v1::GetNetworkStatsResponse {
        stats: network_stats(snapshot),
        collected_at: wire::timestamp(snapshot.at).into(),
        ..Default::default()
    }
}

fn watch_response(snapshot: &Snapshot) -> v1::WatchNetworkStatsResponse {
    v1::WatchNetworkStatsResponse {
        stats: network_stats(snapshot),
        collected_at: wire::timestamp(snapshot.at).into(),
        ..Default::default()
    }
}

fn network_stats(snapshot: &Snapshot) -> Vec<v1::NetworkStats> {
    let of = |(vm_id, counters): (&VmId, &Counters)| v1::NetworkStats {
        vm_id: vm_id.to_string(),
        rx_bytes: counters.rx_bytes,
        tx_bytes: counters.tx_bytes,
        rx_packets: counters.rx_packets,
        tx_packets: counters.tx_packets,
        rx_dropped: counters.rx_dropped,
        tx_dropped: counters.tx_dropped,
        rx_errors: counters.rx_errors,
        tx_errors: counters.tx_errors,
        ..Default::default()
    };
    snapshot.counters.iter().map(of).collect()
}
