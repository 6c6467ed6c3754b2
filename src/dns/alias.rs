//! Aliases of ours whose target is not: the target goes the way of any other name (special names, rules, cache, upstreams), and
//! what comes of it stands behind the alias, with the rcode, the SOA of a denial and the extended error. And aliases of upstreams
//! that lead to a name of which a rule speaks: what that says stands behind them.

use std::iter;
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{RData, Record};

use super::answer::{Age, Answer, Question, ttl_now};
use super::name::Name;
use super::query::Query;
use super::reply::{Code, Ede};
use super::resolve::{Asked, Look, Resolver, Step};
use super::route::{Local, Route, route};
use super::zone;

impl Resolver {
    /// The answer that begins with `before`, the alias and what it led through, and goes on with `target`.
    pub(super) fn beyond(
        self: &Arc<Self>,
        asked: &Asked<'_>,
        target: Name,
        before: Vec<Record>,
        out: &mut Vec<u8>,
    ) -> Step {
        let setup = asked.setup;
        let query = Query { name: target, ..asked.query };
        let conditional = |name: &Name| setup.forwarder.is_conditional(name);
        match route(&query, &setup.places, &setup.local, conditional) {
            // Who does not want recursion gets what is ours (RFC 1034 section 4.3.2, step 4).
            Route::Refuse(_) | Route::Local(Local::Any) => {
                let answer = zone::Answer { answers: before, ..zone::Answer::empty() };
                self.put_answer(asked, out, Some(answer), "local")
            }
            Route::Local(found) => {
                let answer = self.ours(asked, &found, &target);
                self.put_answer(asked, out, answer.map(|answer| behind(before, answer)), "local")
            }
            Route::Forward => {
                if let Some(answer) = self.ruled(asked, &target) {
                    return self.put_answer(asked, out, Some(behind(before, answer)), "rule");
                }
                let question = Question { name: target, ..Question::of(&asked.query) };
                match self.look(asked, &question) {
                    Look::Held(answer, age) => {
                        if answer.leads_on()
                            && let Some(ruled) = self.ruled_beyond(asked, &target, &answer, age)
                        {
                            return self.put_answer(asked, out, Some(behind(before, ruled)), "rule");
                        }
                        let source = if age == Age::Stale { "stale cache" } else { "cache" };
                        self.put_answer(asked, out, behind_upstreams(before, &answer, age), source)
                    }
                    Look::Failed => self.put_code(asked, out, Code::failed(Ede::CachedError)),
                    Look::Wait(stale) => self.wait(asked, question, stale, before, out),
                }
            }
        }
    }
}

pub(super) fn behind(before: Vec<Record>, answer: zone::Answer) -> zone::Answer {
    let answers = before.into_iter().chain(answer.answers).collect();
    zone::Answer { answers, beyond: None, ..answer }
}

/// An upstream's aliases from `name` on, as far as they lead before `target`; then what a rule says of that.
pub(super) fn up_to(
    name: &Name,
    target: &Name,
    answer: &Answer,
    age: Age,
    ruled: zone::Answer,
) -> zone::Answer {
    let led: Vec<_> = iter::once(*name).chain(answer.targets()).take_while(|name| name != target).collect();
    let place = |owner: &Name| led.iter().position(|name| name == owner);
    // They stand first: the walk need not go on to the end of a long answer.
    let aliases = answer.aliases().filter(|(owner, ..)| place(owner).is_some());
    let mut before: Vec<_> = aliases.take(led.len()).collect();
    before.sort_by_key(|(owner, ..)| place(owner));
    let record = |(owner, ttl, target): (Name, u32, Name)| {
        let data = RData::CNAME(CNAME(zone::wire_name(&target)?));
        Some(Record::from_rdata(zone::wire_name(&owner)?, ttl_now(ttl, age), data))
    };
    behind(before.into_iter().filter_map(record).collect(), ruled)
}

/// `None` if an upstream's answer cannot be taken apart.
pub(super) fn behind_upstreams(before: Vec<Record>, answer: &Answer, age: Age) -> Option<zone::Answer> {
    let message = Message::from_vec(answer.as_wire()).ok()?;
    let aged = |mut record: Record| {
        record.ttl = ttl_now(record.ttl, age);
        record
    };
    let target = zone::Answer {
        rcode: message.metadata.response_code,
        answers: message.answers.into_iter().map(aged).collect(),
        authority: message.authorities.into_iter().map(aged).collect(),
        ede: answer.ede(age),
        beyond: None,
    };
    Some(behind(before, target))
}
