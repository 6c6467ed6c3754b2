//! A running resolver for who looks after it: what it has done, what it holds, how its upstreams do; flushing the cache,
//! other records and lists, without a query lost.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::{self, RecordType};

use super::answer::side;
use super::cache::{CacheUse, Key};
use super::counters::DnsCounters;
use super::forward::UpstreamReport;
use super::guests::GuestReport;
use super::histogram::Latencies;
use super::name::Name;
use super::policy::RuleReport;
use super::reply::{Ede, Transport};
use super::resolve::{Resolver, Step};
use super::server::DnsError;
use super::setup::{Materials, Setup};
use crate::model::{DnsName, DnsRecord, Network, NetworkName};

/// A handle to one network's resolver. It stays valid after the resolver has stopped, and then changes nothing.
#[derive(Clone)]
pub struct DnsControl(Arc<Resolver>);

/// A question asked as a guest would, and the way its answer took.
#[derive(Debug, Clone)]
pub struct Explained {
    /// `no answer` if there is none.
    pub rcode: String,
    /// Records of the answer section, as in a zone file.
    pub answers: Vec<String>,
    /// The stations in order.
    pub way: Vec<String>,
    pub micros: u64,
}

/// A name that is often asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopName {
    pub name: String,
    pub rtype: String,
    pub hits: u64,
}

/// Settings that a resolver can take, with all that they name read.
pub struct Prepared {
    resolver: Arc<Resolver>,
    setup: Setup,
}

impl Prepared {
    /// From the next query on; no socket is closed. What is held stays, but for what these settings would have answered
    /// otherwise.
    pub fn put_in_force(self) {
        let Self { resolver, setup } = self;
        let (setup, before) = (Arc::new(setup), resolver.setup.load_full());
        setup.policy.continue_from(&before.policy);
        resolver.setup.store(setup.clone());
        resolver.cache.resize(setup.network.resolver.cache_bytes);
        if !setup.asks_like(&before) {
            // After the change, so that neither a flight nor the cache brings an answer of before to who asks from now on.
            resolver.flights.forget();
            resolver.cache.retain(|name, qtype, answer| setup.keeps(&before, &side(name, qtype), answer));
        }
    }
}

impl DnsControl {
    pub(super) fn new(resolver: Arc<Resolver>) -> Self {
        Self(resolver)
    }

    pub fn network(&self) -> NetworkName {
        self.settings().name.clone()
    }

    /// The network with the settings that are in force.
    pub fn settings(&self) -> Arc<Network> {
        self.0.setup.load().network.clone()
    }

    pub fn counters(&self) -> DnsCounters {
        self.0.counters.snapshot()
    }

    pub fn latency(&self) -> Latencies {
        self.0.latency.snapshot()
    }

    pub fn cache(&self) -> CacheUse {
        self.0.cache.usage()
    }

    pub fn upstreams(&self) -> Vec<UpstreamReport> {
        self.0.setup.load().forwarder.reports()
    }

    pub fn guests(&self) -> Vec<GuestReport> {
        self.0.guests.reports()
    }

    pub fn rules(&self) -> Vec<RuleReport> {
        self.0.setup.load().policy.reports()
    }

    /// The names that guests asked for most often, as far as they are held.
    pub fn top(&self, most: usize) -> Vec<TopName> {
        let name = |(name, qtype, hits): (Name, u16, u32)| TopName {
            name: name.to_string(),
            rtype: RecordType::from(qtype).to_string(),
            hits: hits.into(),
        };
        self.0.cache.top(most).into_iter().map(name).collect()
    }

    /// Forgets `name` and all below it; the root is everything. How many answers that were.
    pub fn flush(&self, name: &DnsName) -> u64 {
        let Some(name) = Name::from_text(name.as_str()) else { return 0 };
        if let Some(validator) = &self.0.setup.load().validator {
            validator.flush(&name);
        }
        self.0.cache.flush(&name)
    }

    /// Puts other records of the API in the place of those before. The hosts file's names stay as they were last read.
    pub fn set_records(&self, records: &[DnsRecord]) {
        self.0.setup.rcu(|setup| {
            let local = setup.local.with_records(&setup.network.resolver, records);
            setup.with_local(Arc::new(local))
        });
    }

    /// Makes ready for other settings of the network, and reads all that they name anew; nothing changes before they are put
    /// in force.
    pub fn prepare(&self, network: Arc<Network>, records: &[DnsRecord]) -> Result<Prepared, DnsError> {
        let resolver = self.0.clone();
        let upstreams = network.upstreams.clone();
        let materials = Materials {
            upstreams: &upstreams,
            records,
            own_subnets: &resolver.own_subnets,
            listen: resolver.listen,
            events: &resolver.events,
        };
        let setup = Setup::load(network, &materials, Some(&resolver.setup.load()))?;
        Ok(Prepared { resolver, setup })
    }

    /// Asks as the guest at `address` would; the question counts as one of its own.
    pub async fn explain(&self, address: IpAddr, name: &DnsName, rtype: RecordType) -> Option<Explained> {
        let resolver = &self.0;
        let begun = std::time::Instant::now();
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        let asked = rr::Name::from_ascii(format!("{name}")).ok()?;
        message.add_query(hickory_proto::op::Query::query(asked, rtype));
        let mut edns = hickory_proto::op::Edns::new();
        edns.set_max_payload(u16::MAX).set_version(0);
        message.set_edns(edns);
        let bytes = message.to_vec().ok()?;
        let mut way = resolver.stations(address, &bytes);
        let before: Vec<u64> = self.upstreams().iter().map(|report| report.answers).collect();
        let mut out = Vec::new();
        match resolver.begin(&bytes, SocketAddr::new(address, 0), Transport::Tcp, &mut out) {
            Step::Answered => {}
            Step::Silent => {
                way.push("no answer: the guest asks more than it may".into());
                return Some(Explained {
                    rcode: "no answer".into(),
                    answers: vec![],
                    way,
                    micros: micros(begun),
                });
            }
            Step::Wait(pending) => {
                resolver.finish(pending, &mut out).await;
                let after = self.upstreams();
                let asked = after.iter().zip(before).filter(|(report, before)| report.answers > *before);
                way.extend(asked.map(|(report, _)| format!("answered by upstream {}", report.server)));
            }
        }
        let answer = Message::from_vec(&out).ok()?;
        if let Some(ede) = extended_error(&answer) {
            way.push(format!("extended error {ede}"));
            if [Ede::Blocked.code(), Ede::ForgedAnswer.code()].contains(&ede) {
                way.extend(resolver.rule_of_target(address, &answer));
            }
        }
        Some(Explained {
            rcode: format!("{:?}", answer.metadata.response_code).to_ascii_uppercase(),
            answers: answer.answers.iter().map(ToString::to_string).collect(),
            way,
            micros: micros(begun),
        })
    }
}

fn micros(begun: std::time::Instant) -> u64 {
    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn extended_error(message: &Message) -> Option<u16> {
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(15, data) => data.first_chunk().map(|code| u16::from_be_bytes(*code)),
        _ => None,
    }
}

impl Resolver {
    /// The rule that has the first of the names to which the answer's aliases lead.
    fn rule_of_target(&self, address: IpAddr, answer: &Message) -> Option<String> {
        let (guest, setup) = (self.guests.of(address), self.setup.load());
        let targets = answer.answers.iter().filter_map(|record| match &record.data {
            rr::RData::CNAME(target) => Name::from_labels(target.0.iter()),
            _ => None,
        });
        let mut ruled = targets.filter_map(|name| {
            let (rule, verdict) = setup.policy.says(&guest, &name)?;
            Some(format!("rule {rule} about {name}: {verdict:?}"))
        });
        ruled.next()
    }

    /// Where a query will be answered, as things are now.
    fn stations(&self, address: IpAddr, message: &[u8]) -> Vec<String> {
        use super::answer::Question;
        use super::cache::Held;
        use super::query::Query;
        use super::route::{Local, Route, route};

        let guest = self.guests.of(address);
        let mut way = vec![match (&guest.vm, &guest.workspace) {
            (Some(vm), Some(workspace)) => format!("asked by {address}, VM {vm} of workspace {workspace}"),
            (Some(vm), None) => format!("asked by {address}, VM {vm}"),
            (None, _) => format!("asked by {address}, no VM"),
        }];
        let Ok(query) = Query::parse(message) else { return way };
        let setup = self.setup.load();
        let conditional = |name: &Name| setup.forwarder.is_conditional(name);
        let found = route(&query, &setup.places, &setup.local, conditional);
        let forwarded = matches!(found, Route::Forward | Route::Local(Local::Any));
        if forwarded && let Some((rule, verdict)) = setup.policy.says(&guest, &query.name) {
            way.push(format!("rule {rule}: {verdict:?}"));
        }
        match found {
            Route::Refuse(refusal) => way.push(format!("refused: {refusal:?}")),
            Route::Local(local) => way.push(format!("local: {}", local.as_str())),
            Route::Forward => {
                let question = Question::of(&query);
                let held = self.cache.peek(&Key::of(&question), std::time::Instant::now());
                way.push(match held {
                    Some(Held::Fresh { age, .. }) => format!("cache: fresh, {age:?}"),
                    Some(Held::Stale { over, .. }) => format!("cache: stale for {} s", over.as_secs()),
                    Some(Held::Failed) => "cache: a failure of a moment ago".into(),
                    None => "cache: nothing".into(),
                });
                way.push(format!("upstreams of {}", setup.forwarder.domain(&question.name)));
            }
        }
        way
    }
}
