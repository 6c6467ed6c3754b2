//! One `[network.resolver]` table → `model::ResolverSettings`. Pure: that the files it names can be read is found out by who
//! reads them.

use std::net::IpAddr;

use toml::Value;

use super::absolute_path;
use super::network::{flag, text, upstreams};
use super::section::Section;
use crate::dns::check_record;
use crate::model::{DnsAction, DnsName, DnsRecord, DnsRule, Domain, ForwardZone, ResolverSettings};

/// Seconds of a record that says nothing else.
const RECORD_TTL: i64 = 60;

pub(super) fn read(mut section: Section<'_>, domain: Option<&Domain>) -> Option<ResolverSettings> {
    let cache_mib =
        section.take("cache_mib", 32, |value| number(value, 1, 65_536, "a size of 1 to 65536 MiB"));
    let min_ttl = section.take("min_ttl", 0, |value| number(value, 0, 3_600, "0 to 3600 seconds"));
    let max_ttl = section.take("max_ttl", 86_400, |value| number(value, 1, 604_800, "1 to 604800 seconds"));
    let rebind_protection = section.take("rebind_protection", true, flag);
    let rebind_exempt = section.take("rebind_exempt", empty(), names);
    let dnssec = section.take("dnssec", false, flag);
    let trust_anchor = section.take_if("trust_anchor", absolute_path);
    let upstream_ca = section.take_if("upstream_ca", absolute_path);
    let query_log = section.take("query_log", 0, |value| {
        number(value, 0, u32::MAX, "0 for no log, 1 to log every query, N to log one of N")
    });
    let queries_per_second = section.take("queries_per_second", 0, |value| {
        number(value, 0, u32::MAX, "queries a second for each guest, 0 for no limit")
    });
    let hosts_file = section.take_if("hosts_file", absolute_path);
    let zones = section.take("zones", empty(), names);
    let records = section.tables("record", |section| record(section, domain));
    let forward = section.tables("forward", forward);
    let rules = section.tables("rule", rule);
    section.finish();
    Some(ResolverSettings {
        cache_bytes: usize::try_from(cache_mib?).ok()? << 20,
        min_ttl: min_ttl?,
        max_ttl: max_ttl?,
        rebind_protection: rebind_protection?,
        rebind_exempt: rebind_exempt?,
        dnssec: dnssec?,
        trust_anchor,
        upstream_ca,
        query_log: query_log?,
        queries_per_second: queries_per_second?,
        hosts_file,
        zones: zones?,
        records,
        forward,
        rules,
    })
}

fn record(mut section: Section<'_>, domain: Option<&Domain>) -> Option<DnsRecord> {
    let name = section.take("name", "", |value| {
        let domain = domain.map_or("vm.internal", Domain::as_str);
        let text = value.as_str().filter(|text| !text.is_empty()).unwrap_or("?");
        DnsRecord::owner(text, domain).map_err(|invalid| invalid.expected.to_owned())
    });
    let rtype = section.take("type", "A", |value| {
        value.as_str().map(str::to_ascii_uppercase).ok_or("a record type, like \"A\" or \"CNAME\"".into())
    });
    let value = section
        .take("value", "", |value| value.as_str().map(str::to_owned).ok_or("text, as in a zone file".into()));
    let ttl = section.take("ttl", RECORD_TTL, |value| number(value, 0, 604_800, "0 to 604800 seconds"));
    let record = DnsRecord { name: name?, rtype: rtype?, value: value?, ttl: ttl? };
    let checked = check_record(&record);
    if let Err(problem) = checked {
        section.problem("value", problem);
        return None;
    }
    section.finish();
    Some(record)
}

fn forward(mut section: Section<'_>) -> Option<ForwardZone> {
    let domain = section.take("domain", "", text::<DnsName>);
    let servers = section.take("servers", empty(), upstreams);
    section.finish();
    Some(ForwardZone { domain: domain?, servers: servers? })
}

fn rule(mut section: Section<'_>) -> Option<DnsRule> {
    let name = section.take("name", "rule", |value| {
        let name = value.as_str().filter(|name| (1..=64).contains(&name.len()));
        name.map(str::to_owned).ok_or("a name of 1 to 64 characters".into())
    });
    let names = section.take("names", empty(), names);
    let file = section.take_if("file", absolute_path);
    let action = section.take("action", "nxdomain", |value| {
        let expected = "\"allow\", \"nxdomain\", \"nodata\", \"refused\" or \"address\"";
        Ok(match value.as_str() {
            Some("allow") => DnsAction::Allow,
            Some("nxdomain") => DnsAction::NxDomain,
            Some("nodata") => DnsAction::NoData,
            Some("refused") => DnsAction::Refused,
            Some("address") => DnsAction::Address(Vec::new()),
            _ => return Err(expected.into()),
        })
    });
    let addresses = section.take_if("addresses", |value| {
        list(value, "a list of IP addresses", |text| text.parse::<IpAddr>().map_err(|_| ()))
    });
    let vms = section.take("vms", empty(), |value| list(value, "a list of vm_ids", str::parse));
    let workspaces =
        section.take("workspaces", empty(), |value| list(value, "a list of workspaces", str::parse));
    let dry_run = section.take("dry_run", false, flag);
    let action = match (action?, addresses) {
        (DnsAction::Address(_), Some(addresses)) if !addresses.is_empty() => DnsAction::Address(addresses),
        (DnsAction::Address(_), _) => {
            section.problem("addresses", "action = \"address\" needs at least one");
            return None;
        }
        (_, Some(_)) => {
            section.problem("addresses", "is for action = \"address\" only");
            return None;
        }
        (action, None) => action,
    };
    section.finish();
    Some(DnsRule {
        name: name?,
        names: names?,
        file,
        action,
        vms: vms?,
        workspaces: workspaces?,
        dry_run: dry_run?,
    })
}

fn empty() -> Value {
    Value::Array(Vec::new())
}

fn number(value: &Value, least: u32, most: u32, expected: &str) -> Result<u32, String> {
    let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (least..=most).contains(number)).ok_or_else(|| expected.into())
}

fn names(value: &Value) -> Result<Vec<DnsName>, String> {
    list(value, "a list of domain names", str::parse)
}

fn list<T, E>(value: &Value, expected: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, String> {
    let items = value.as_array().map(|items| items.iter().map(|item| parse(item.as_str()?).ok()).collect());
    items.flatten().ok_or_else(|| expected.into())
}
