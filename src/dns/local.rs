//! Names that an operator adds: records by configuration and API, a hosts file, zones that are ours. In: those. Out: what a
//! name has, by its own name or by a wildcard above it, and whether it is in a zone that is never asked for elsewhere.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{self, RData, RecordType};

use super::file;
use super::name::Name;
use crate::model::{DnsRecord, ResolverSettings};

/// Seconds that a name of the hosts file holds: it may be edited at any time.
const HOSTS_TTL: u32 = 60;

/// What a name has: seconds and data.
pub(super) type Data = Vec<(u32, RData)>;

#[derive(Debug, Default)]
pub(super) struct LocalData {
    /// By name in wire form; what is below `*.x` stands under `*.x`.
    by_name: HashMap<Box<[u8]>, Data>,
    /// Names that have nothing themselves, but have names below them (RFC 4592 section 2.2.2).
    between: HashSet<Box<[u8]>>,
    zones: Vec<Name>,
    /// The hosts file as it was last read.
    hosts: Arc<str>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read hosts_file {path}: {source}")]
pub struct HostsError {
    path: String,
    source: std::io::Error,
}

/// What stands at a name.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'a> {
    Data(&'a Data),
    /// The name is there, without data of its own.
    Nothing,
}

/// What is wrong with a record, if anything: it must read as its type says.
pub fn check_record(record: &DnsRecord) -> Result<(), String> {
    data(record).map(|_| ())
}

fn data(record: &DnsRecord) -> Result<RData, String> {
    let DnsRecord { rtype, value, .. } = record;
    let known: RecordType = rtype.parse().map_err(|_| format!("{rtype:?} is not a record type"))?;
    // Names without a final dot are meant as they stand: a zone file's origin would be a surprise here.
    let absolute = match known {
        RecordType::CNAME | RecordType::PTR | RecordType::NS | RecordType::MX | RecordType::SRV
            if !value.ends_with('.') =>
        {
            format!("{value}.")
        }
        _ => value.clone(),
    };
    RData::try_from_str(known, &absolute)
        .map_err(|error| format!("{value:?} is no data of type {rtype}: {error}"))
}

impl LocalData {
    /// All of the settings, and `records` from the API.
    pub(super) fn load(settings: &ResolverSettings, records: &[DnsRecord]) -> Result<Self, HostsError> {
        let hosts = settings.hosts_file.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Self::of(settings, records, hosts.into()))
    }

    /// The same with other records of the API; the hosts file is not read again.
    pub(super) fn with_records(&self, settings: &ResolverSettings, records: &[DnsRecord]) -> Self {
        Self::of(settings, records, self.hosts.clone())
    }

    fn of(settings: &ResolverSettings, records: &[DnsRecord], hosts: Arc<str>) -> Self {
        let mut local = Self { hosts: hosts.clone(), ..Self::default() };
        local.zones.extend(settings.zones.iter().filter_map(|zone| Name::from_text(zone.as_str())));
        for record in settings.records.iter().chain(records) {
            // Both have been checked when they came in.
            if let (Some(name), Ok(data)) = (Name::from_text(record.name.as_str()), data(record)) {
                local.add(&name, record.ttl, data);
            }
        }
        local.add_hosts(&hosts);
        local
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.zones.is_empty()
    }

    fn add(&mut self, name: &Name, ttl: u32, data: RData) {
        let held = self.by_name.entry(name.as_wire().into()).or_default();
        if !held.contains(&(ttl, data.clone())) {
            held.push((ttl, data));
        }
        for count in 1..name.labels().count() {
            self.between.insert(name.parent(count).as_wire().into());
        }
    }

    /// hosts(5): an address, its name, and further names.
    fn add_hosts(&mut self, text: &str) {
        let mut reverse: BTreeMap<IpAddr, Name> = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
            for name in words.filter_map(Name::from_text) {
                let data = match address {
                    IpAddr::V4(v4) => RData::A(v4.into()),
                    IpAddr::V6(v6) => RData::AAAA(v6.into()),
                };
                self.add(&name, HOSTS_TTL, data);
                reverse.entry(address).or_insert(name);
            }
        }
        for (address, name) in reverse {
            let owner = Name::from_text(&rr::Name::from(address).to_ascii());
            let target = rr::Name::from_labels(name.labels());
            if let (Some(owner), Ok(mut target)) = (owner, target) {
                target.set_fqdn(true);
                self.add(&owner, HOSTS_TTL, RData::PTR(PTR(target)));
            }
        }
    }

    /// The zone of ours that the name is in, the longest.
    pub(super) fn zone(&self, name: &Name) -> Option<Name> {
        let zones = self.zones.iter().filter(|zone| name.is_in(zone));
        zones.max_by_key(|zone| zone.as_wire().len()).copied()
    }

    /// What was added for just this name.
    pub(super) fn at(&self, name: &Name) -> &[(u32, RData)] {
        self.by_name.get(name.as_wire()).map_or(&[], Vec::as_slice)
    }

    /// What stands at `name`: its own data, or that of the wildcard at its closest encloser (RFC 4592 section 3.3.1), which may be
    /// a name that is there for other reasons.
    pub(super) fn find(&self, name: &Name, is_there: impl Fn(&Name) -> bool) -> Option<Found<'_>> {
        if let Some(data) = self.by_name.get(name.as_wire()) {
            return Some(Found::Data(data));
        }
        if self.between.contains(name.as_wire()) {
            return Some(Found::Nothing);
        }
        let labels = name.labels().count();
        for count in 1..labels {
            let encloser = name.parent(count);
            if let Some(wildcard) = encloser.wildcard()
                && let Some(data) = self.by_name.get(wildcard.as_wire())
            {
                return Some(Found::Data(data));
            }
            let exists =
                self.by_name.contains_key(encloser.as_wire()) || self.between.contains(encloser.as_wire());
            if exists || is_there(&encloser) {
                return None;
            }
        }
        None
    }
}

fn read(path: &Path) -> Result<String, HostsError> {
    file::read_text(path).map_err(|source| HostsError { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, rtype: &str, value: &str) -> DnsRecord {
        let owner = DnsRecord::owner(name, "vm.internal").unwrap();
        DnsRecord { name: owner, rtype: rtype.into(), value: value.into(), ttl: 60 }
    }

    fn local(records: &[DnsRecord]) -> LocalData {
        LocalData::load(&ResolverSettings::default(), records).unwrap()
    }

    fn found(local: &LocalData, name: &str) -> Option<Vec<String>> {
        match local.find(&Name::from_text(name).unwrap(), |_| false)? {
            Found::Data(data) => Some(data.iter().map(|(_, data)| data.to_string()).collect()),
            Found::Nothing => Some(vec![]),
        }
    }

    #[test]
    fn records_stand_below_the_domain_or_where_they_say() {
        let local = local(&[
            record("db", "A", "10.9.0.1"),
            record("db", "A", "10.9.0.2"),
            record("www.example.", "CNAME", "web.vm.internal"),
            record("@", "TXT", "\"hello\""),
        ]);
        assert_eq!(found(&local, "db.vm.internal").unwrap(), ["10.9.0.1", "10.9.0.2"]);
        assert_eq!(found(&local, "www.example").unwrap(), ["web.vm.internal."]);
        assert_eq!(found(&local, "vm.internal").unwrap().len(), 1);
        assert_eq!(found(&local, "other.vm.internal"), None);
    }

    #[test]
    fn a_wildcard_answers_for_what_is_not_there_itself() {
        let local = local(&[record("*.apps", "A", "10.9.0.1"), record("x.one.apps", "A", "10.9.0.2")]);
        assert_eq!(found(&local, "a.apps.vm.internal").unwrap(), ["10.9.0.1"]);
        assert_eq!(found(&local, "b.a.apps.vm.internal").unwrap(), ["10.9.0.1"]);
        assert_eq!(found(&local, "x.one.apps.vm.internal").unwrap(), ["10.9.0.2"]);
        // one.apps is there, as x is below it: it has nothing, and the wildcard is not for what is below it.
        assert!(found(&local, "one.apps.vm.internal").unwrap().is_empty());
        assert_eq!(found(&local, "y.one.apps.vm.internal"), None);
        assert!(found(&local, "apps.vm.internal").unwrap().is_empty());
    }

    #[test]
    fn a_hosts_file_names_both_ways() {
        let mut local = LocalData::default();
        local.add_hosts("10.9.0.7 build.corp build # ci\n2001:db8::7\tbuild.corp\nnot an address\n");
        assert_eq!(found(&local, "build.corp").unwrap(), ["10.9.0.7", "2001:db8::7"]);
        assert_eq!(found(&local, "build").unwrap(), ["10.9.0.7"]);
        assert_eq!(found(&local, "7.0.9.10.in-addr.arpa").unwrap(), ["build.corp."]);
    }

    #[test]
    fn a_record_that_does_not_read_is_refused_with_its_value() {
        for (rtype, value) in [("A", "10.9.0"), ("AAAA", "10.9.0.1"), ("NONSENSE", "x"), ("MX", "mail")] {
            let problem = check_record(&record("db", rtype, value)).unwrap_err();
            assert!(problem.contains(if rtype == "NONSENSE" { rtype } else { value }), "{problem}");
        }
        for (rtype, value) in
            [("SRV", "1 2 80 web.vm.internal"), ("MX", "10 mail.example."), ("CAA", "0 issue \"x\"")]
        {
            check_record(&record("db", rtype, value)).unwrap();
        }
    }
}
