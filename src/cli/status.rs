//! `guestnet status`: the service, its networks and what happened last, on one screen.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::events::event_json;
use super::output::{Format, list, network_json, pretty, text, time};
use crate::proto::guestnet::v1;

pub(super) fn print(format: Format, status: &v1::GetStatusResponse, now: SystemTime) -> String {
    let value = status_json(format, status);
    match format {
        Format::Json => pretty(&value),
        Format::Table => screen(&value, status, now),
    }
}

fn status_json(format: Format, status: &v1::GetStatusResponse) -> Value {
    let networks = status.networks.iter().map(|network| {
        let mut value = network.network.as_option().map(network_json).unwrap_or_default();
        value["leases_bound"] = network.leases_bound.into();
        value["dns"] = network.dns.as_option().map_or(Value::Null, |dns| {
            json!({
                "queries": dns.queries,
                "local": dns.local,
                "cache_hits": dns.cache_hits,
                "forwarded": dns.forwarded,
                "failed": dns.failed,
            })
        });
        value
    });
    let dhcp = status.dhcp.as_option().map_or(Value::Null, |dhcp| {
        json!({
            "requests": dhcp.requests,
            "offers": dhcp.offers,
            "acks": dhcp.acks,
            "naks": dhcp.naks,
            "unanswered": dhcp.unanswered,
            "declines": dhcp.declines,
        })
    });
    json!({
        "version": status.version,
        "started_at": time(format, status.started_at.as_option()),
        "networks": networks.collect::<Vec<_>>(),
        "dhcp": dhcp,
        "recent_events": status.recent_events.iter().map(|event| event_json(format, event)).collect::<Vec<_>>(),
    })
}

fn screen(value: &Value, status: &v1::GetStatusResponse, now: SystemTime) -> String {
    let since = status.started_at.as_option().map_or(0, |at| at.seconds);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let running = u64::try_from(since).map_or(0, |since| now.saturating_sub(since));
    let mut out =
        format!("guestnet {} answers; running for {}\n\n", text(&value["version"]), duration(running));

    let columns = ["network_id", "bridge_name", "vm_subnet", "vm_count", "leases_bound", "free_addresses"];
    out += &list(Format::Table, &columns, value["networks"].as_array().cloned().unwrap_or_default());

    let count = |value: &Value, key: &str| thousands(value[key].as_u64().unwrap_or_default());
    let dhcp = &value["dhcp"];
    out += &format!(
        "\nDHCP  {} requests: {} offers, {} leases, {} refused, {} unanswered, {} declined\n",
        count(dhcp, "requests"),
        count(dhcp, "offers"),
        count(dhcp, "acks"),
        count(dhcp, "naks"),
        count(dhcp, "unanswered"),
        count(dhcp, "declines")
    );
    for network in value["networks"].as_array().into_iter().flatten() {
        let (name, dns) = (text(&network["network_id"]), &network["dns"]);
        if dns.is_null() {
            out += &format!("DNS   {name}: off, guests ask {}\n", text(&network["dns_servers"]));
            continue;
        }
        out += &format!(
            "DNS   {name}: {} queries: {} local, {} cached, {} asked upstream, {} failed; upstreams {}\n",
            count(dns, "queries"),
            count(dns, "local"),
            count(dns, "cache_hits"),
            count(dns, "forwarded"),
            count(dns, "failed"),
            text(&network["dns_servers"])
        );
    }
    let events = value["recent_events"].as_array().cloned().unwrap_or_default();
    if !events.is_empty() {
        out += "\n";
        out += &list(Format::Table, &["at", "kind", "vm_id", "detail"], events);
    }
    out
}

/// The two largest units, as in `3 h 12 min`.
fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_read_at_a_glance() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([5, 61, 11_520, 90_000].map(duration), ["5 s", "1 min 1 s", "3 h 12 min", "1 d 1 h"]);
    }
}
