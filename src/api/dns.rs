//! The resolvers by API. In: requests. Out: what the resolvers say, or an error with the code that the proto promises.

use std::cmp::Reverse;
use std::net::IpAddr;

use connectrpc::{ConnectError, ErrorCode};
use hickory_proto::rr::RecordType;

use super::errors::{internal, no_vm, refusal_at, store_facts};
use super::wire::{self, FieldError};
use crate::dns::{DnsAdmin, DnsAdminError, DnsControl, DnsCounters, GuestReport, UpstreamReport};
use crate::manager::Manager;
use crate::model::{DnsName, DnsRecord, Domain, Invalid, NetworkName};
use crate::proto::guestnet::v1;

/// Seconds of a record that says nothing else.
const RECORD_TTL: u32 = 60;
/// Guests and names in statistics that ask for no number.
const TOP: u32 = 10;

impl From<DnsAdminError> for ConnectError {
    fn from(error: DnsAdminError) -> Self {
        let (code, reason, field) = match &error {
            DnsAdminError::NoResolver(_) => (ErrorCode::NotFound, "NO_RESOLVER", Some("network_id")),
            DnsAdminError::Record(_) => (ErrorCode::InvalidArgument, "INVALID_RECORD", Some("value")),
            DnsAdminError::Store(error) => {
                let (code, reason) = store_facts(error);
                (code, reason, None)
            }
            DnsAdminError::Reload(_) => (ErrorCode::FailedPrecondition, "UNREADABLE_FILE", None),
            DnsAdminError::BrokenOff => (ErrorCode::Internal, "BROKEN_OFF", None),
        };
        refusal_at(code, reason, field, vec![], &error.to_string())
    }
}

pub(super) async fn set_record(
    dns: &DnsAdmin,
    manager: &Manager,
    request: v1::SetDnsRecordRequest,
) -> Result<v1::SetDnsRecordResponse, ConnectError> {
    let network = wire::network_id(request.network_id.as_deref())?;
    let name = dns.one(network.as_ref())?.network();
    let record = DnsRecord {
        name: owner(&request.name, &name, manager)?,
        rtype: request.r#type.to_ascii_uppercase(),
        value: request.value,
        ttl: request.ttl.unwrap_or(RECORD_TTL),
    };
    let record = dns.set_record(network.as_ref(), record).await?;
    Ok(v1::SetDnsRecordResponse { record: record_of(&name, &record).into(), ..Default::default() })
}

pub(super) async fn delete_record(
    dns: &DnsAdmin,
    manager: &Manager,
    request: v1::DeleteDnsRecordRequest,
) -> Result<v1::DeleteDnsRecordResponse, ConnectError> {
    let network = wire::network_id(request.network_id.as_deref())?;
    let name = owner(&request.name, &dns.one(network.as_ref())?.network(), manager)?;
    let (rtype, value) = (request.r#type.as_deref(), request.value.as_deref());
    let deleted = dns.delete_records(network.as_ref(), &name, rtype, value).await?;
    Ok(v1::DeleteDnsRecordResponse { deleted, ..Default::default() })
}

pub(super) fn list_records(
    dns: &DnsAdmin,
    network: Option<&str>,
) -> Result<v1::ListDnsRecordsResponse, ConnectError> {
    let records = dns.records(wire::network_id(network)?.as_ref())?;
    let records = records.iter().map(|(network, record)| record_of(network, record)).collect();
    Ok(v1::ListDnsRecordsResponse { records, ..Default::default() })
}

pub(super) fn flush(
    dns: &DnsAdmin,
    network: Option<&str>,
    name: Option<&str>,
) -> Result<v1::FlushDnsCacheResponse, ConnectError> {
    let name: DnsName = wire::parse("name", name.unwrap_or("."))?;
    let flushed =
        dns.of(wire::network_id(network)?.as_ref())?.iter().map(|control| control.flush(&name)).sum();
    Ok(v1::FlushDnsCacheResponse { flushed, ..Default::default() })
}

pub(super) async fn query(
    dns: &DnsAdmin,
    manager: &Manager,
    vm_id: &str,
    name: &str,
    rtype: Option<&str>,
) -> Result<v1::QueryDnsResponse, ConnectError> {
    let vm_id = wire::vm_id(vm_id)?;
    let name: DnsName = wire::parse("name", name)?;
    let text = rtype.unwrap_or("A").to_ascii_uppercase();
    let expected = "a record type, like A or HTTPS";
    let rtype: RecordType =
        text.parse().map_err(|_| FieldError::new("type", Invalid::new(&text, expected)))?;
    let binding = manager.get(&vm_id).ok_or_else(|| no_vm(&vm_id))?;
    let control = dns.one(Some(&binding.vm.network))?;
    let explained = control.explain(IpAddr::V4(binding.vm.address), &name, rtype).await;
    let explained = explained.ok_or_else(|| internal("NO_ANSWER", "the resolver gave no answer"))?;
    Ok(v1::QueryDnsResponse {
        rcode: explained.rcode,
        answers: explained.answers,
        way: explained.way,
        took_us: explained.micros,
        ..Default::default()
    })
}

pub(super) fn stats(
    dns: &DnsAdmin,
    network: Option<&str>,
    top: Option<u32>,
) -> Result<v1::GetDnsStatsResponse, ConnectError> {
    let top = top.unwrap_or(TOP) as usize;
    let resolvers = dns.of(wire::network_id(network)?.as_ref())?;
    let resolvers = resolvers.into_iter().map(|control| resolver(control, top)).collect();
    Ok(v1::GetDnsStatsResponse { resolvers, ..Default::default() })
}

fn resolver(control: &DnsControl, top: usize) -> v1::DnsStats {
    let (cache, latency) = (control.cache(), control.latency());
    let mut guests = control.guests();
    guests.sort_by_key(|guest| Reverse(guest.counters.queries));
    guests.truncate(top);
    let names = control.top(top).into_iter().map(|top| v1::DnsTopName {
        name: top.name,
        r#type: top.rtype,
        hits: top.hits,
        ..Default::default()
    });
    let rules = control.rules().into_iter().map(|rule| v1::DnsRuleStats {
        name: rule.name,
        action: rule.action.to_owned(),
        names: rule.names,
        hits: rule.hits,
        dry_run: rule.dry_run,
        ..Default::default()
    });
    v1::DnsStats {
        network_id: control.network().to_string(),
        counters: counters(&control.counters()),
        cache_entries: cache.entries,
        cache_bytes: cache.bytes,
        cache_capacity_bytes: cache.capacity,
        latency_p50_us: latency.quantile(0.5),
        latency_p99_us: latency.quantile(0.99),
        upstreams: control.upstreams().into_iter().map(upstream).collect(),
        guests: guests.into_iter().map(guest).collect(),
        names: names.collect(),
        rules: rules.collect(),
        ..Default::default()
    }
}

fn upstream(report: UpstreamReport) -> v1::DnsUpstream {
    v1::DnsUpstream {
        server: report.server,
        domain: report.domain,
        up: report.up,
        srtt_us: report.srtt_us,
        answers: report.answers,
        failures: report.failures,
        latency_p50_us: report.p50_us,
        latency_p99_us: report.p99_us,
        last_error: report.last_error,
        ..Default::default()
    }
}

fn guest(report: GuestReport) -> v1::DnsGuest {
    v1::DnsGuest {
        ip_address: report.address.to_string(),
        vm_id: report.vm.map(|vm| vm.to_string()).unwrap_or_default(),
        counters: counters(&report.counters),
        latency_p50_us: report.latency.quantile(0.5),
        latency_p99_us: report.latency.quantile(0.99),
        ..Default::default()
    }
}

fn counters<M: FromIterator<(String, u64)>>(counters: &DnsCounters) -> M {
    counters.named().into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn record_of(network: &NetworkName, record: &DnsRecord) -> v1::DnsRecord {
    v1::DnsRecord {
        network_id: network.to_string(),
        name: record.name.to_string(),
        r#type: record.rtype.clone(),
        value: record.value.clone(),
        ttl: record.ttl,
        ..Default::default()
    }
}

fn owner(text: &str, network: &NetworkName, manager: &Manager) -> Result<DnsName, FieldError> {
    let networks = manager.networks();
    let known = networks.iter().find(|known| known.network.name == *network);
    let domain = known.map_or("vm.internal", |known| Domain::as_str(&known.network.domain));
    DnsRecord::owner(text, domain).map_err(|invalid| FieldError::new("name", invalid))
}
