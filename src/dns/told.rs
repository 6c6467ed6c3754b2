//! What a guest is told, on its way out: counted for the network and the guest, and logged where a network asks for that.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::counters::{Counters, count};
use super::guests::Guest;
use super::query::{Query, flag};
use super::reply::{self, Code, Ede};
use super::resolve::{Asked, Resolver, Step};
use super::zone;

impl Resolver {
    /// Counts it, for the network and for the guest.
    pub(super) fn tally(&self, guest: &Guest, counter: impl Fn(&Counters) -> &AtomicU64) {
        count(counter(&self.counters));
        count(counter(&guest.counters));
    }

    pub(super) fn put_answer(
        &self,
        asked: &Asked<'_>,
        out: &mut Vec<u8>,
        answer: Option<zone::Answer>,
        source: &'static str,
    ) -> Step {
        let bytes = answer
            .and_then(|answer| reply::local(asked.message, &asked.query, asked.from, asked.how, &answer));
        match bytes {
            Some(_) => self.put_logged(asked, out, bytes, source),
            // Not to be put into a message, or behind an alias of ours: that is no reason for silence.
            None => self.put_code(asked, out, Code::failed(Ede::Other)),
        }
    }

    pub(super) fn put_code(&self, asked: &Asked<'_>, out: &mut Vec<u8>, code: Code) -> Step {
        let bytes = reply::code(asked.message, &asked.query, asked.from, asked.how, code);
        self.put_logged(asked, out, bytes, "code")
    }

    fn put_logged(
        &self,
        asked: &Asked<'_>,
        out: &mut Vec<u8>,
        bytes: Option<Vec<u8>>,
        source: &'static str,
    ) -> Step {
        let step = self.put(asked.guest, out, bytes);
        if matches!(step, Step::Answered) {
            self.log(asked, out, source);
        }
        step
    }

    pub(super) fn put(&self, guest: &Guest, out: &mut Vec<u8>, bytes: Option<Vec<u8>>) -> Step {
        let Some(bytes) = bytes else {
            self.tally(guest, |counters| &counters.dropped);
            return Step::Silent;
        };
        *out = bytes;
        self.count_rcode(guest, out);
        Step::Answered
    }

    pub(super) fn answered(&self, asked: &Asked<'_>, out: &[u8], source: &'static str) -> Step {
        self.count_rcode(asked.guest, out);
        self.log(asked, out, source);
        Step::Answered
    }

    /// The query log: off unless it is asked for, and then one query of so many.
    fn log(&self, asked: &Asked<'_>, out: &[u8], source: &'static str) {
        let every = asked.setup.network.resolver.query_log;
        if every == 0 || !self.logged.fetch_add(1, Relaxed).is_multiple_of(every.into()) {
            return;
        }
        let vm = asked.guest.vm.as_ref().map_or("-", |vm| vm.as_str());
        let Query { name, qtype, .. } = &asked.query;
        let rcode = out.get(3).map_or(0, |byte| byte & 0xf);
        tracing::info!(target: "guestnet::dns::query", vm, from = %asked.from.ip(), %name, qtype, rcode, source);
    }

    fn count_rcode(&self, guest: &Guest, out: &[u8]) {
        self.tally(guest, |counters| &counters.queries);
        let rcode = out.get(3).map_or(0, |byte| u16::from(*byte)) & flag::RCODE;
        self.tally(guest, |counters| match rcode {
            // With its high bits, which are in the OPT record.
            0 if reply::is_extended(out) => &counters.other_rcodes,
            0 => &counters.noerror,
            1 => &counters.formerr,
            2 => &counters.servfail,
            3 => &counters.nxdomain,
            5 => &counters.refused,
            _ => &counters.other_rcodes,
        });
    }
}
