//! `guestnet dns`: what the resolvers do, why a name resolves as it does, and records of one's own.

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::CliError;
use super::client::Client;
use super::dns_top::{self, DnsTop};
use super::output::{Format, list, pretty, text};
use crate::model::{DnsName, NetworkName, VmId};
use crate::proto::guestnet::v1;

#[derive(Debug, Subcommand)]
pub(super) enum DnsCommand {
    /// Ask as a VM would, and tell the way the answer takes.
    Query {
        /// The VM that would ask.
        #[arg(long = "as", value_name = "VM_ID")]
        vm: VmId,
        name: DnsName,
        /// A, AAAA, HTTPS and others.
        #[arg(default_value = "A", value_name = "TYPE")]
        rtype: String,
    },
    /// What the resolvers have done: counters, cache, upstreams, rules.
    Stats {
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// The guests that ask most, the names asked for most, and how upstreams do.
    Top(DnsTop),
    /// Answers that the resolvers keep.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Records of one's own.
    #[command(subcommand)]
    Record(RecordCommand),
    /// Read hosts files and lists anew.
    Reload,
}

#[derive(Debug, Subcommand)]
pub(super) enum CacheCommand {
    /// Forget what is kept of a name and all below it, or of all.
    Flush {
        /// The name, or "all".
        name: String,
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// How full the caches are, and how often they had the answer.
    Stats {
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RecordCommand {
    /// Keep a record. A second value makes a second record.
    Add {
        /// Below the network's domain; @ is the domain; a final dot makes a name absolute; *.NAME is a wildcard.
        name: String,
        /// A, AAAA, CNAME, TXT and others.
        #[arg(value_name = "TYPE")]
        rtype: String,
        /// As in a zone file.
        value: String,
        /// Seconds.
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u32>,
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Print the records.
    List {
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
    /// Forget records of a name: all, or those of a type, or one.
    Delete {
        name: String,
        #[arg(value_name = "TYPE")]
        rtype: Option<String>,
        value: Option<String>,
        #[arg(long, value_name = "NAME")]
        network: Option<NetworkName>,
    },
}

pub(super) async fn run(client: &Client, format: Format, command: DnsCommand) -> Result<String, CliError> {
    let text_of = |network: Option<NetworkName>| network.map(|network| network.to_string());
    match command {
        DnsCommand::Query { vm, name, rtype } => {
            let request = v1::QueryDnsRequest {
                vm_id: vm.to_string(),
                name: name.to_string(),
                r#type: Some(rtype),
                ..Default::default()
            };
            Ok(query(format, &client.query_dns(request).await?))
        }
        DnsCommand::Stats { network } => Ok(stats(format, &client.dns_stats(text_of(network), None).await?)),
        DnsCommand::Top(command) => dns_top::run(client, format, command).await,
        DnsCommand::Cache(CacheCommand::Flush { name, network }) => {
            let name = (name != "all").then_some(name);
            let request =
                v1::FlushDnsCacheRequest { network_id: text_of(network), name, ..Default::default() };
            let flushed = client.flush_dns_cache(request).await?;
            Ok(match format {
                Format::Json => pretty(&json!({ "flushed": flushed })),
                Format::Table => format!("{flushed} answers forgotten\n"),
            })
        }
        DnsCommand::Cache(CacheCommand::Stats { network }) => {
            let stats = client.dns_stats(text_of(network), Some(0)).await?;
            let columns =
                ["network_id", "entries", "bytes", "capacity_bytes", "cache_hits", "stale", "forwarded"];
            Ok(list(format, &columns, stats.iter().map(cache_json).collect()))
        }
        DnsCommand::Record(RecordCommand::Add { name, rtype, value, ttl, network }) => {
            let request = v1::SetDnsRecordRequest {
                network_id: text_of(network),
                name,
                r#type: rtype,
                value,
                ttl,
                ..Default::default()
            };
            Ok(records(format, &[client.set_dns_record(request).await?]))
        }
        DnsCommand::Record(RecordCommand::List { network }) => {
            Ok(records(format, &client.dns_records(text_of(network)).await?))
        }
        DnsCommand::Record(RecordCommand::Delete { name, rtype, value, network }) => {
            let request = v1::DeleteDnsRecordRequest {
                network_id: text_of(network),
                name,
                r#type: rtype,
                value,
                ..Default::default()
            };
            let deleted = client.delete_dns_record(request).await?;
            Ok(match format {
                Format::Json => pretty(&json!({ "deleted": deleted })),
                Format::Table => format!("{deleted} records deleted\n"),
            })
        }
        DnsCommand::Reload => {
            client.reload_dns().await?;
            Ok(match format {
                Format::Json => pretty(&json!({ "reloaded": true })),
                Format::Table => String::new(),
            })
        }
    }
}

fn query(format: Format, answer: &v1::QueryDnsResponse) -> String {
    let value = json!({
        "rcode": answer.rcode,
        "answers": answer.answers,
        "way": answer.way,
        "took_us": answer.took_us,
    });
    if format == Format::Json {
        return pretty(&value);
    }
    let mut out = String::new();
    for station in value["way"].as_array().into_iter().flatten() {
        out += &format!("  {}\n", text(station));
    }
    out += &format!("{} in {} us\n", text(&value["rcode"]), answer.took_us);
    for record in value["answers"].as_array().into_iter().flatten() {
        out += &format!("{}\n", text(record));
    }
    out
}

fn stats(format: Format, resolvers: &[v1::DnsStats]) -> String {
    if format == Format::Json {
        return pretty(&Value::Array(resolvers.iter().map(stats_json).collect()));
    }
    let mut out = String::new();
    for resolver in resolvers {
        let value = stats_json(resolver);
        out += &format!("network {}\n", text(&value["network_id"]));
        for (name, count) in value["counters"].as_object().into_iter().flatten() {
            out += &format!("  {name:<16}{count}\n");
        }
        for key in ["cache_entries", "cache_bytes", "latency_p50_us", "latency_p99_us"] {
            out += &format!("  {key:<16}{}\n", value[key]);
        }
        out += &upstreams(&value);
        let rules = value["rules"].as_array().cloned().unwrap_or_default();
        if !rules.is_empty() {
            out += "\n";
            out += &list(Format::Table, &["name", "action", "names", "hits", "dry_run"], rules);
        }
    }
    out
}

pub(super) fn upstreams(value: &Value) -> String {
    let columns =
        ["server", "domain", "up", "srtt_us", "latency_p99_us", "answers", "failures", "last_error"];
    let rows = value["upstreams"].as_array().cloned().unwrap_or_default();
    format!("\n{}", list(Format::Table, &columns, rows))
}

fn records(format: Format, records: &[v1::DnsRecord]) -> String {
    let row = |record: &v1::DnsRecord| {
        json!({
            "network_id": record.network_id,
            "name": record.name,
            "type": record.r#type,
            "value": record.value,
            "ttl": record.ttl,
        })
    };
    list(format, &["network_id", "name", "type", "value", "ttl"], records.iter().map(row).collect())
}

fn counters<'a>(counters: impl IntoIterator<Item = (&'a String, &'a u64)>) -> Value {
    let mut sorted: Vec<_> = counters.into_iter().collect();
    sorted.sort();
    Value::Object(
        sorted.into_iter().map(|(name, count)| (name.clone(), (*count).into())).collect::<Map<_, _>>(),
    )
}

fn cache_json(stats: &v1::DnsStats) -> Value {
    let counters = counters(&stats.counters);
    json!({
        "network_id": stats.network_id,
        "entries": stats.cache_entries,
        "bytes": stats.cache_bytes,
        "capacity_bytes": stats.cache_capacity_bytes,
        "cache_hits": counters["cache_hits"],
        "stale": counters["stale"],
        "forwarded": counters["forwarded"],
        "prefetched": counters["prefetched"],
    })
}

pub(super) fn stats_json(stats: &v1::DnsStats) -> Value {
    let upstream = |upstream: &v1::DnsUpstream| {
        json!({
            "server": upstream.server,
            "domain": upstream.domain,
            "up": upstream.up,
            "srtt_us": upstream.srtt_us,
            "latency_p50_us": upstream.latency_p50_us,
            "latency_p99_us": upstream.latency_p99_us,
            "answers": upstream.answers,
            "failures": upstream.failures,
            "last_error": upstream.last_error,
        })
    };
    let guest = |guest: &v1::DnsGuest| {
        json!({
            "vm_id": guest.vm_id,
            "ip_address": guest.ip_address,
            "counters": counters(&guest.counters),
            "latency_p50_us": guest.latency_p50_us,
            "latency_p99_us": guest.latency_p99_us,
        })
    };
    let name = |top: &v1::DnsTopName| json!({ "name": top.name, "type": top.r#type, "hits": top.hits });
    let rule = |rule: &v1::DnsRuleStats| {
        json!({
            "name": rule.name,
            "action": rule.action,
            "names": rule.names,
            "hits": rule.hits,
            "dry_run": rule.dry_run,
        })
    };
    json!({
        "network_id": stats.network_id,
        "counters": counters(&stats.counters),
        "cache_entries": stats.cache_entries,
        "cache_bytes": stats.cache_bytes,
        "cache_capacity_bytes": stats.cache_capacity_bytes,
        "latency_p50_us": stats.latency_p50_us,
        "latency_p99_us": stats.latency_p99_us,
        "upstreams": stats.upstreams.iter().map(upstream).collect::<Vec<_>>(),
        "guests": stats.guests.iter().map(guest).collect::<Vec<_>>(),
        "names": stats.names.iter().map(name).collect::<Vec<_>>(),
        "rules": stats.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}
