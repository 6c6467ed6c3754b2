//! Counters to text: OpenMetrics as the crate writes it, or the older Prometheus format made of it. In: the parts. Out: one
//! page, of one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::by_network::{self, ByNetwork, Totals};
use super::{Histogram, Latency};
use crate::dhcp;
use crate::dns::{DnsControl, Latencies};
use crate::events::Events;
use crate::logging;
use crate::manager::Manager;
use crate::model::{LeaseState, NetworkName, VmId};
use crate::stats::Snapshot;

/// What is measured.
#[derive(Clone)]
pub struct Source {
    pub started_at: SystemTime,
    pub manager: Manager,
    pub events: Events,
    pub dhcp: Arc<dhcp::Counters>,
    pub dns: Vec<DnsControl>,
    /// How long it takes to make a VM's network, and to remove it.
    pub bind: Arc<Histogram>,
    pub unbind: Arc<Histogram>,
    /// Whether each VM has series of its own; may change while we run.
    pub vm_labels: Arc<AtomicBool>,
    pub by_network: Networks,
}

/// What each network's guests have sent and received since the service began. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Networks(Arc<Mutex<ByNetwork>>);

/// The two formats that Prometheus reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What the reader of a page said it takes.
    pub(super) fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

type Labels = Vec<(&'static str, String)>;
/// Values that have been counted already, by their labels.
type Counts = Family<Labels, prometheus_client::metrics::counter::Counter>;
type Gauges = Family<Labels, Gauge<u64, AtomicU64>>;

impl Source {
    /// Counts from here on what guests of networks send and receive.
    pub async fn begin(&self) {
        let Ok(snapshot) = self.manager.stats().all().await else { return };
        self.by_network().begin(self.vms(&snapshot));
    }

    fn vms<'a>(&'a self, of: &'a Snapshot) -> impl Iterator<Item = (VmId, NetworkName, Totals)> + 'a {
        of.counters.iter().filter_map(|(vm_id, counters)| {
            let network = self.manager.get(vm_id)?.vm.network.clone();
            Some((vm_id.clone(), network, by_network::totals(counters)))
        })
    }

    // A panic while it was held cannot leave it half changed: adding does not fail.
    fn by_network(&self) -> MutexGuard<'_, ByNetwork> {
        self.by_network.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page as OpenMetrics has it.
    #[cfg(feature = "otlp")]
    pub(crate) async fn page_of_all(&self) -> Result<String, fmt::Error> {
        self.page(Format::OpenMetrics).await
    }

    pub(super) async fn page(&self, format: Format) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("guestnet");
        self.service(&mut registry);
        self.networks(&mut registry);
        self.guests(&mut registry).await;
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(match format {
            Format::OpenMetrics => page,
            Format::Prometheus => older(&page),
        })
    }

    fn service(&self, registry: &mut Registry) {
        registry.register("build", "The service", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        let started = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        registry.register_with_unit(
            "start_time",
            "When the service started",
            Unit::Seconds,
            ConstGauge::new(started),
        );
        let (resident, files) = (resident_bytes(), open_files());
        registry.register_with_unit(
            "resident_memory",
            "Memory the service has",
            Unit::Bytes,
            ConstGauge::new(resident),
        );
        registry.register("open_files", "Files and sockets the service has open", ConstGauge::new(files));
        let lost = ConstCounter::new(logging::lost());
        registry.register("log_lines_lost", "Lines of the log that were not taken in time", lost);
        for (name, help, histogram) in [
            ("bind_duration", "Time to make a VM's network", self.bind.snapshot()),
            ("unbind_duration", "Time to remove a VM's network", self.unbind.snapshot()),
            ("dhcp_answer_duration", "Time to answer a DHCP request", self.dhcp.answer_time()),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram);
        }
        let events = Counts::default();
        for (kind, count) in self.events.counts() {
            add(&events, vec![("kind", kind.as_str().to_owned())], count);
        }
        registry.register("events", "What happened to guests and host, by kind", events);

        let counts = self.dhcp.snapshot();
        registry.register("dhcp_frames", "Frames that DHCP servers took", ConstCounter::new(counts.received));
        let outcomes = Counts::default();
        for (name, count) in counts.named().filter(|(name, _)| *name != "received") {
            add(&outcomes, vec![("outcome", name.to_owned())], count);
        }
        registry.register("dhcp_outcomes", "What became of DHCP requests", outcomes);
    }

    fn networks(&self, registry: &mut Registry) {
        let (vms, free, leases) = (Gauges::default(), Gauges::default(), Gauges::default());
        for status in self.manager.networks() {
            let of = || vec![("network", status.network.name.to_string())];
            vms.get_or_create(&of()).set(status.vm_count.into());
            free.get_or_create(&of()).set(status.free_addresses);
            let held = self.manager.leases(Some(&status.network.name)).unwrap_or_default();
            let bound = held.iter().filter(|(_, view)| view.state == LeaseState::Bound).count();
            leases.get_or_create(&of()).set(bound as u64);
        }
        registry.register("vms", "VMs that have a network", vms);
        registry.register("free_addresses", "Addresses that can still be given", free);
        registry.register("leases_bound", "Guests that hold a DHCP lease", leases);

        let (queries, outcomes) = (Counts::default(), Counts::default());
        for dns in &self.dns {
            let (network, counts) = (dns.network().to_string(), dns.counters());
            add(&queries, vec![("network", network.clone())], counts.queries);
            for (outcome, count) in counts.named().into_iter().filter(|(name, _)| *name != "queries") {
                add(&outcomes, vec![("network", network.clone()), ("outcome", outcome.into())], count);
            }
        }
        registry.register("dns_queries", "DNS queries of guests", queries);
        registry.register("dns_outcomes", "What became of DNS queries", outcomes);
        for dns in &self.dns {
            let labels = [("network".into(), dns.network().to_string().into())].into_iter();
            registry.sub_registry_with_labels(labels).register_with_unit(
                "dns_answer_duration",
                "Time to answer a DNS query; its sum is estimated from the buckets",
                Unit::Seconds,
                latency(&dns.latency()),
            );
        }
    }

    /// By network, and by VM only when asked for: series that come and go with VMs are what fills a Prometheus.
    async fn guests(&self, registry: &mut Registry) {
        let Ok(snapshot) = self.manager.stats().all().await else { return };
        let label = |network: &NetworkName| ("network", network.to_string());
        let totals: BTreeMap<Labels, Totals> = if self.vm_labels.load(Ordering::Relaxed) {
            let of_vm = |(vm_id, network, totals): (VmId, NetworkName, Totals)| {
                (vec![label(&network), ("vm_id", vm_id.to_string())], totals)
            };
            self.vms(&snapshot).map(of_vm).collect()
        } else {
            let mut by_network = self.by_network();
            by_network
                .add(self.vms(&snapshot))
                .iter()
                .map(|(network, totals)| (vec![label(network)], *totals))
                .collect()
        };
        for (at, (name, help)) in [
            ("guest_receive_bytes", "Bytes that guests have received"),
            ("guest_transmit_bytes", "Bytes that guests have sent"),
            ("guest_receive_packets", "Packets that guests have received"),
            ("guest_transmit_packets", "Packets that guests have sent"),
            ("guest_receive_drop", "Packets to guests that were dropped"),
            ("guest_transmit_drop", "Packets of guests that were dropped"),
            ("guest_receive_errs", "Packets to guests that were in error"),
            ("guest_transmit_errs", "Packets of guests that were in error"),
        ]
        .into_iter()
        .enumerate()
        {
            let counts = Counts::default();
            for (labels, total) in &totals {
                add(&counts, labels.clone(), total[at]);
            }
            registry.register(name, help, counts);
        }
    }
}

/// The resolver counts in powers of two of a microsecond, and no sum: three quarters of each bucket's bound stand for it.
#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn latency(counted: &Latencies) -> Latency {
    let bound = |at: usize| (1u64 << at) as f64 / 1e6;
    let last = counted.0.len() - 1;
    let bucket = |(at, count): (usize, &u64)| (if at == last { f64::INFINITY } else { bound(at) }, *count);
    Latency {
        buckets: counted.0.iter().enumerate().map(bucket).collect(),
        count: counted.0.iter().sum(),
        sum_seconds: counted.0.iter().enumerate().map(|(at, count)| bound(at) * 0.75 * *count as f64).sum(),
    }
}

fn add(counts: &Counts, labels: Labels, count: u64) {
    counts.get_or_create(&labels).inc_by(count);
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum_seconds, self.count, &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// The format before OpenMetrics: a counter's family is called as its samples are, an info is a gauge, no units, no end.
fn older(page: &str) -> String {
    let kind = |line: &str, kind: &str| {
        let name = line.strip_prefix("# TYPE ")?.strip_suffix(kind)?;
        Some(name.trim_end().to_owned())
    };
    let suffixes: BTreeMap<String, &str> = page
        .lines()
        .filter_map(|line| {
            kind(line, " counter")
                .map(|name| (name, "_total"))
                .or_else(|| Some((kind(line, " info")?, "_info")))
        })
        .collect();
    let mut older = String::with_capacity(page.len());
    for line in page.lines().filter(|line| !line.starts_with("# UNIT ") && *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let suffix = suffixes.get(name).copied().unwrap_or_default();
                let rest = if rest == "info" { "gauge" } else { rest };
                older.push_str(&format!("# {what} {name}{suffix} {rest}\n"));
            }
            _ => {
                older.push_str(line);
                older.push('\n');
            }
        }
    }
    older
}

/// Zero where /proc does not say.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * u64::try_from(page_size).unwrap_or(4_096)
}

fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_as_their_samples_and_has_no_end() {
        let page = "# HELP a_b Bytes.\n# TYPE a_b counter\n# UNIT a_b b\na_b_total{x=\"1\"} 3\n# HELP b V.\n# TYPE b info\n\
                    b_info{v=\"1\"} 1\n# HELP c G.\n# TYPE c gauge\nc 1\n# EOF\n";
        let wanted = "# HELP a_b_total Bytes.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 3\n# HELP b_info V.\n\
                      # TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c G.\n# TYPE c gauge\nc 1\n";
        assert_eq!(older(page), wanted);
    }
}
