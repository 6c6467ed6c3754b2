//! `guestnet dns top`: who asks most, for what, and how upstreams do; once, or again and again with rates. In: GetDnsStats.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::dns::{stats_json, upstreams};
use super::output::{Format, list, pretty, text};
use super::{CliError, write};
use crate::model::NetworkName;
use crate::proto::guestnet::v1;

const COLUMNS: [&str; 10] = [
    "vm_id",
    "ip_address",
    "queries",
    "cache_hits",
    "forwarded",
    "nxdomain",
    "servfail",
    "policy",
    "limited",
    "latency_p99_us",
];
/// Asked for when rates decide who is shown: who asks most now may not have asked most so far.
const ALL: u32 = 65_536;
/// What clears a terminal (ECMA-48: cursor home, erase the display).
const CLEAR: &str = "\x1b[H\x1b[2J";

#[derive(Debug, Args)]
pub(super) struct DnsTop {
    #[arg(long, value_name = "NAME")]
    network: Option<NetworkName>,
    /// How many of each.
    #[arg(long, short = 'n', default_value_t = 10, value_name = "COUNT")]
    count: u32,
    /// Live: again at every interval with queries a second, until interrupted; with --json a list per line.
    #[arg(long)]
    watch: bool,
    /// Milliseconds between two looks, 100 or more.
    #[arg(long, value_name = "MS", default_value = "1000", requires = "watch",
          value_parser = clap::value_parser!(u32).range(100..=3_600_000))]
    interval: u32,
}

/// Queries of each guest, and of each network as a whole, at the last look.
#[derive(Default)]
struct Before(HashMap<(String, String), u64>, Option<Instant>);

impl Before {
    /// Gives each network and guest of a look its queries a second since the last one (none at the first), and leaves the
    /// `most` guests that ask most.
    fn rate(&mut self, networks: &mut [Value], now: Instant, most: usize) {
        let since = self.1.replace(now).map(|before| now.saturating_duration_since(before).as_secs_f64());
        let before = std::mem::take(&mut self.0);
        for network in networks {
            let of = text(&network["network_id"]);
            let mut rate = |who: &Value, counters: &Value| {
                let queries = counters["queries"].as_u64().unwrap_or_default();
                let key = (of.clone(), text(who));
                let asked = before.get(&key).map_or(queries, |before| queries.saturating_sub(*before));
                self.0.insert(key, queries);
                let seconds = since.filter(|seconds| *seconds > 0.0);
                seconds.map(|seconds| json!((asked as f64 / seconds).round()))
            };
            network["queries_per_second"] = rate(&Value::Null, &network["counters"]).into();
            let Some(guests) = network["guests"].as_array_mut() else { continue };
            for guest in guests.iter_mut() {
                guest["queries_per_second"] = rate(&guest["ip_address"], &guest["counters"]).into();
            }
            // Stable: with equal rates, who has asked most so far stays before.
            guests.sort_by_key(|guest| Reverse(guest["queries_per_second"].as_f64().unwrap_or(0.0) as u64));
            guests.truncate(most);
        }
    }
}

pub(super) async fn run(client: &Client, format: Format, command: DnsTop) -> Result<String, CliError> {
    let network = command.network.map(|network| network.to_string());
    if !command.watch {
        let resolvers = client.dns_stats(network, Some(command.count)).await?;
        let networks: Vec<Value> = resolvers.iter().map(stats_json).collect();
        return Ok(if format == Format::Json { pretty(&Value::Array(networks)) } else { table(networks) });
    }
    let most = command.count as usize;
    let mut before = Before::default();
    let mut looks = tokio::time::interval(Duration::from_millis(command.interval.into()));
    loop {
        looks.tick().await;
        let resolvers = client.dns_stats(network.clone(), Some(command.count.max(ALL))).await?;
        let mut networks: Vec<Value> = resolvers.iter().map(|resolver| shown(resolver, most)).collect();
        before.rate(&mut networks, Instant::now(), most);
        let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
        let printed = match format {
            Format::Json => Value::Array(networks).to_string() + "\n",
            Format::Table => format!("{clear}{}\n", table(networks)),
        };
        if !write(&mut io::stdout().lock(), printed.as_bytes())? {
            return Ok(String::new());
        }
    }
}

/// A resolver with its `most` names asked for most.
fn shown(resolver: &v1::DnsStats, most: usize) -> Value {
    let mut value = stats_json(resolver);
    if let Some(names) = value["names"].as_array_mut() {
        names.truncate(most);
    }
    value
}

fn table(networks: Vec<Value>) -> String {
    let mut out = String::new();
    for value in networks {
        let rows = |key: &str| value[key].as_array().cloned().unwrap_or_default();
        let guests = rows("guests").into_iter().map(|mut guest| {
            for counter in ["queries", "cache_hits", "forwarded", "nxdomain", "servfail", "policy", "limited"]
            {
                guest[counter] = guest["counters"][counter].clone();
            }
            guest
        });
        out += &format!("network {}", text(&value["network_id"]));
        let live = value.get("queries_per_second").is_some();
        if live {
            out += &format!(", {} queries a second", text(&value["queries_per_second"]));
        }
        let rate = if live { &["queries_per_second"][..] } else { &[] };
        let columns = [&COLUMNS[..2], rate, &COLUMNS[2..]].concat();
        out += &format!("\n{}\n", list(Format::Table, &columns, guests.collect()));
        out += &list(Format::Table, &["name", "type", "hits"], rows("names"));
        out += &upstreams(&value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(queries: [u64; 2]) -> Vec<Value> {
        let guest = |n: usize| {
            json!({"vm_id": format!("vm{n}"), "ip_address": format!("10.100.0.{n}"),
                   "counters": {"queries": queries[n]}})
        };
        let counters = json!({"queries": queries[0] + queries[1]});
        vec![json!({"network_id": "default", "counters": counters, "guests": [guest(0), guest(1)]})]
    }

    #[test]
    fn who_asks_most_since_the_last_look_stands_first() {
        let (mut before, start) = (Before::default(), Instant::now());
        let mut first = look([900, 10]);
        before.rate(&mut first, start, 10);
        assert_eq!(first[0]["queries_per_second"], Value::Null);
        assert_eq!(first[0]["guests"][0]["vm_id"], "vm0");

        let mut second = look([900, 110]);
        before.rate(&mut second, start + Duration::from_secs(2), 1);
        assert_eq!(second[0]["queries_per_second"], 50.0);
        assert_eq!(second[0]["guests"].as_array().unwrap().len(), 1);
        assert_eq!(second[0]["guests"][0]["vm_id"], "vm1");
        let shown = table(second);
        assert!(shown.starts_with("network default, 50"), "{shown}");
        assert!(shown.contains("QUERIES_PER_SECOND"), "{shown}");
    }
}
