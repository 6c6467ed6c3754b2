//! Answers that go on: a bounded number of them, each ended by its caller's deadline or when the service stops. In: items as
//! they come. Out: a stream that waits for its reader and for nobody else, and costs nothing any more once its time is over,
//! whether its reader reads or not.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Instant;

use connectrpc::interceptor::{StreamRequest, StreamResponse};
use connectrpc::{ConnectError, ErrorCode, Interceptor, NextStream, PayloadStream};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::{oneshot, watch};
use tracing::Instrument;

use super::answer::Room;
use super::caller::{self, Caller};
use super::connections::Reader;
use super::deadline::patience;
use super::errors::refusal;
use super::seats::{PATIENCE, Seats};

/// Watches open at a time, over all callers that may change things.
const SEATS: usize = 64;
/// And over all that may only read: they keep none of the others out.
const READ_ONLY_SEATS: usize = 16;

/// Gives every stream its seat until it ends, its caller hangs up or the service stops: our watches, and those of gRPC health and
/// reflection.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    full: Seats,
    read_only: Seats,
    stop: watch::Receiver<bool>,
}

impl Streams {
    pub(super) fn new(stop: watch::Receiver<bool>) -> Self {
        Self { full: Seats::new(SEATS), read_only: Seats::new(READ_ONLY_SEATS), stop }
    }
}

#[connectrpc::async_trait]
impl Interceptor for Streams {
    async fn intercept_streaming(
        &self,
        request: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        let seats = if caller::is_full(&request.ctx) { &self.full } else { &self.read_only };
        let extensions = request.ctx.extensions();
        let peer = extensions.get::<Caller>().map(|caller| caller.peer.clone());
        let reader = extensions.get::<Reader>().cloned();
        let mut seat = seats.take(peer, reader, Instant::now())?;
        // The policy of all calls ends with a stream's beginning: it has a longest time, and a watch has none.
        let patience = patience(request.ctx.headers())
            .and_then(|patience| tokio::time::Instant::now().checked_add(patience));
        let room = request.ctx.extensions().get::<Room>().cloned();
        let answer = next.run(request, inbound).await?;
        if let Some(room) = room {
            room.leave();
        }
        let needed = seat.needed();
        let end = its_end(patience, self.stop.clone(), needed);
        Ok(answer.map_body(|items| until(items, end, seat)))
    }
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, ConnectError>> + Send>>;

/// The items that come before `end`, and what is ready when the service stops. They and the `seat` go then, though nobody reads: hyper asks
/// for no item while it holds one that its reader has no room for, so it is not the reading that notices.
fn until<T: Send + 'static>(
    items: impl Stream<Item = Result<T, ConnectError>> + Send + 'static,
    end: impl Future<Output = ConnectError> + Send + 'static,
    seat: impl Send + 'static,
) -> Items<T> {
    let items: Items<T> = Box::pin(items);
    let held = Arc::new(Mutex::new(Some((items, seat))));
    let (mut tell, mut over) = oneshot::channel();
    // Weak: a stream that its caller has ended gives its seat back at once, not when this task comes to notice.
    let of_end = Arc::downgrade(&held);
    let ends = async move {
        let error = tokio::select! {
            error = end => error,
            () = tell.closed() => return,
        };
        let ended =
            of_end.upgrade().and_then(|held| held.lock().unwrap_or_else(PoisonError::into_inner).take());
        // What is ready at a stop is told before it: health's watchers hear that nothing is served any more.
        let last = ended.and_then(|(mut items, _)| match error.code {
            ErrorCode::Unavailable => items.next().now_or_never().flatten()?.ok(),
            _ => None,
        });
        // Whoever is told may take the seat again.
        let _ = tell.send((last, error));
    };
    tokio::spawn(ends.in_current_span());
    let (mut is_over, mut said) = (false, None);
    Box::pin(stream::poll_fn(move |context| {
        if is_over {
            return Poll::Ready(said.take().map(Err));
        }
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        let next = held.as_mut().map_or(Poll::Pending, |(items, _)| items.poll_next_unpin(context));
        let last = match next {
            Poll::Ready(Some(Ok(item))) => return Poll::Ready(Some(Ok(item))),
            // An error is the last item, and nothing is asked for behind it.
            Poll::Ready(last) => {
                held.take();
                over.close();
                last
            }
            Poll::Pending => match over.poll_unpin(context) {
                Poll::Ready(Ok((Some(item), error))) => {
                    said = Some(error);
                    Some(Ok(item))
                }
                Poll::Ready(error) => error.ok().map(|(_, error)| Err(error)),
                Poll::Pending => return Poll::Pending,
            },
        };
        is_over = true;
        Poll::Ready(last)
    }))
}

/// Why nothing more comes.
async fn its_end(
    end: Option<tokio::time::Instant>,
    mut stop: watch::Receiver<bool>,
    needed: impl Future<Output = ()>,
) -> ConnectError {
    let passed = async {
        match end {
            Some(end) => tokio::time::sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = passed => {
            refusal(ErrorCode::DeadlineExceeded, "DEADLINE_EXCEEDED", "the caller's deadline has passed")
        }
        () = needed => {
            let words = format!("nobody has read this watch for {} s, and another caller needs its seat", PATIENCE.as_secs());
            refusal(ErrorCode::ResourceExhausted, "WATCH_NOT_READ", words)
        }
        // An error is a service that is gone already.
        _ = stop.wait_for(|stop| *stop) => {
            refusal(ErrorCode::Unavailable, "STOPPING", "guestnet is stopping: watch again later")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_by_itself_by_its_own_error_or_by_its_callers_deadline() {
        let end = || Some(tokio::time::Instant::now() + Duration::from_millis(100));
        let (stopping, stop) = watch::channel(false);
        let one = || stream::iter([Ok::<_, ConnectError>(1)]);
        let ends: Vec<_> = until(one(), its_end(end(), stop.clone(), pending()), ()).collect().await;
        assert!(matches!(ends.as_slice(), [Ok(1)]), "{ends:?}");
        let fails: Vec<_> = until(
            one().chain(stream::iter([Err(ConnectError::internal("x"))])),
            its_end(end(), stop.clone(), pending()),
            (),
        )
        .collect()
        .await;
        assert!(
            matches!(fails.as_slice(), [Ok(1), Err(error)] if error.code == ErrorCode::Internal),
            "{fails:?}"
        );
        let goes_on: Vec<_> =
            until(one().chain(stream::pending()), its_end(end(), stop.clone(), pending()), ())
                .collect()
                .await;
        assert!(
            matches!(goes_on.as_slice(), [Ok(1), Err(error)] if error.code == ErrorCode::DeadlineExceeded),
            "{goes_on:?}"
        );
        let health = stream::iter([Ok::<_, ConnectError>(1), Ok(2)]);
        let mut health = until(health.chain(stream::pending()), its_end(None, stop.clone(), pending()), ());
        assert!(matches!(health.next().await, Some(Ok(1))));
        stopping.send_replace(true);
        // It may be polled before its end has been noticed, or after: what is ready comes first.
        tokio::task::yield_now().await;
        let last: Vec<_> = health.collect().await;
        assert!(
            matches!(last.as_slice(), [Ok(2), Err(error)] if error.code == ErrorCode::Unavailable),
            "{last:?}"
        );
        let stopped: Vec<_> =
            until(stream::pending::<Result<u8, _>>(), its_end(None, stop, pending()), ()).collect().await;
        assert!(
            matches!(stopped.as_slice(), [Err(error)] if error.code == ErrorCode::Unavailable),
            "{stopped:?}"
        );
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_gives_its_seat_back_at_its_deadline() {
        let (_stopping, stop) = watch::channel(false);
        let seats = Arc::new(Semaphore::new(1));
        let seat = seats.clone().try_acquire_owned().unwrap();
        let end = Some(tokio::time::Instant::now() + Duration::from_millis(100));
        let unread = until(stream::repeat(1).map(Ok::<_, ConnectError>), its_end(end, stop, pending()), seat);
        let _seat = seats.acquire().await.unwrap();
        let told: Vec<_> = unread.collect().await;
        assert!(
            matches!(told.as_slice(), [Err(error)] if error.code == ErrorCode::DeadlineExceeded),
            "nothing was kept for it: {told:?}"
        );
    }

    #[tokio::test]
    async fn a_stream_that_has_ended_has_no_seat_any_more() {
        let (_stopping, stop) = watch::channel(false);
        let seats = Arc::new(Semaphore::new(1));
        let taken = |end| {
            let seat = seats.clone().try_acquire_owned().unwrap();
            until(stream::pending::<Result<u8, ConnectError>>(), its_end(end, stop.clone(), pending()), seat)
        };
        let mut told = taken(Some(tokio::time::Instant::now() + Duration::from_millis(100)));
        assert!(matches!(told.next().await, Some(Err(_))));
        let hung_up = taken(None);
        // Its task waits for the end by now.
        tokio::task::yield_now().await;
        drop(hung_up);
        let _free = taken(None);
    }
}
