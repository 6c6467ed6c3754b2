//! ListEvents and WatchEvents: what was asked for, out of all that happens.

use std::collections::VecDeque;

use connectrpc::{ConnectError, Response, ServiceResult, ServiceStream};
use futures_util::{Stream, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{networks, wire};
use crate::events::{Event, EventKind, Events};
use crate::manager::Manager;
use crate::model::{NetworkName, VmId};
use crate::proto::guestnet::v1;

/// Which events a watcher wants.
struct Filter {
    kinds: Vec<EventKind>,
    vm_id: Option<VmId>,
    network: Option<NetworkName>,
}

impl Filter {
    fn read(
        manager: &Manager,
        kinds: &[&str],
        vm_id: Option<&str>,
        network_id: Option<&str>,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            kinds: kinds.iter().map(|kind| wire::event_kind(kind)).collect::<Result<_, _>>()?,
            vm_id: vm_id.map(wire::vm_id).transpose()?,
            network: networks::known(manager, network_id)?,
        })
    }

    fn lets_through(&self, event: &Event) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (self.vm_id.is_none() || self.vm_id == event.vm_id)
            && (self.network.is_none() || self.network == event.network)
    }
}

pub(super) fn list(
    events: &Events,
    manager: &Manager,
    request: &v1::ListEventsRequestView<'_>,
) -> Result<v1::ListEventsResponse, ConnectError> {
    let filter = Filter::read(manager, &request.kinds, request.vm_id, request.network_id)?;
    let remembered = events.recent(usize::MAX);
    let wanted = remembered.iter().filter(|event| filter.lets_through(event));
    Ok(v1::ListEventsResponse { events: wanted.map(wire::event).collect(), ..Default::default() })
}

pub(super) fn watch(
    events: &Events,
    manager: &Manager,
    request: &v1::WatchEventsRequestView<'_>,
) -> ServiceResult<ServiceStream<v1::WatchEventsResponse>> {
    let filter = Filter::read(manager, &request.kinds, request.vm_id, request.network_id)?;
    let (recent, live) = events.watch_from_recent();
    let mut first = VecDeque::new();
    if request.include_recent {
        let wanted = recent.iter().filter(|event| filter.lets_through(event));
        first.extend(wanted.map(|event| answer(Some(event), 0)));
    }
    first.push_back(answer(None, 0));
    Response::stream_ok(answers(first, live, filter))
}

/// `first`, and then what happens until no more can.
fn answers(
    first: VecDeque<v1::WatchEventsResponse>,
    live: Receiver<Event>,
    filter: Filter,
) -> impl Stream<Item = Result<v1::WatchEventsResponse, ConnectError>> {
    stream::unfold((first, live, filter), async |(mut first, mut live, filter)| {
        let next = match first.pop_front() {
            Some(next) => next,
            None => next(&mut live, &filter).await?,
        };
        Some((Ok(next), (first, live, filter)))
    })
}

async fn next(live: &mut Receiver<Event>, filter: &Filter) -> Option<v1::WatchEventsResponse> {
    loop {
        match live.recv().await {
            Ok(event) if filter.lets_through(&event) => return Some(answer(Some(&event), 0)),
            Ok(_) => {}
            Err(RecvError::Lagged(lost)) => return Some(answer(None, lost)),
            Err(RecvError::Closed) => return None,
        }
    }
}

fn answer(event: Option<&Event>, lost: u64) -> v1::WatchEventsResponse {
    v1::WatchEventsResponse { event: event.map(wire::event).into(), lost, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_watcher_that_is_too_slow_is_told_how_many_it_lost_and_gets_the_rest() {
        let events = Events::default();
        let live = events.watch();
        let filter = Filter { kinds: vec![EventKind::Bound], vm_id: None, network: None };
        let mut answers = std::pin::pin!(answers(VecDeque::new(), live, filter));
        for n in 0..1_030 {
            events.send(EventKind::Bound, None, None, n.to_string());
            events.send(EventKind::Unbound, None, None, "not asked for");
        }
        let lost = answers.next().await.unwrap().unwrap();
        assert!(lost.event.is_unset());
        assert_eq!(lost.lost, 2 * 1_030 - 1_024);
        let after = answers.next().await.unwrap().unwrap();
        assert_eq!(after.event.into_option().unwrap().detail, (1_030 - 512).to_string());
    }
}
