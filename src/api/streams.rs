//! Answers that go on: a bounded number of them, each ended by its caller's deadline or when the service stops. In: items as
//! they come. Out: a stream that waits for its reader and for nobody else.

use std::sync::Arc;
use std::time::Duration;

use connectrpc::interceptor::{StreamRequest, StreamResponse};
use connectrpc::{ConnectError, ErrorCode, Interceptor, NextStream, PayloadStream, Protocol, RequestContext};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Semaphore, watch};

use super::caller;
use super::errors::refusal;

/// Watches open at a time, over all callers that may change things.
const SEATS: usize = 64;
/// And over all that may only read: they keep none of the others out.
const READ_ONLY_SEATS: usize = 16;

/// Gives every stream its seat until it ends, its caller hangs up or the service stops: our watches, and those of gRPC health and
/// reflection.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    full: Arc<Semaphore>,
    read_only: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Seats {
    pub(super) fn new(stop: watch::Receiver<bool>) -> Self {
        let seats = |number| Arc::new(Semaphore::new(number));
        Self { full: seats(SEATS), read_only: seats(READ_ONLY_SEATS), stop }
    }
}

#[connectrpc::async_trait]
impl Interceptor for Seats {
    async fn intercept_streaming(
        &self,
        request: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        let (seats, number) = if caller::is_full(&request.ctx) {
            (&self.full, SEATS)
        } else {
            (&self.read_only, READ_ONLY_SEATS)
        };
        let seat = seats.clone().try_acquire_owned().map_err(|_| {
            let words = format!("{number} watches are open already: end one of them and repeat the call");
            refusal(ErrorCode::ResourceExhausted, "TOO_MANY_WATCHES", words)
        })?;
        // The policy of all calls ends with a stream's beginning: it has a longest time, and a watch has none.
        let patience =
            patience(&request.ctx).and_then(|patience| tokio::time::Instant::now().checked_add(patience));
        let answer = next.run(request, inbound).await?;
        let stop = self.stop.clone();
        Ok(answer.map_body(|items| {
            let held = items.map(move |item| {
                let _held_until_the_stream_goes = &seat;
                item
            });
            until(held, patience, stop)
        }))
    }
}

/// The items that come before `end`, and before the service stops.
fn until<T: Send + 'static>(
    items: impl Stream<Item = Result<T, ConnectError>> + Send + 'static,
    end: Option<tokio::time::Instant>,
    stop: watch::Receiver<bool>,
) -> std::pin::Pin<Box<dyn Stream<Item = Result<T, ConnectError>> + Send>> {
    let late =
        || refusal(ErrorCode::DeadlineExceeded, "DEADLINE_EXCEEDED", "the caller's deadline has passed");
    let goodbye = || refusal(ErrorCode::Unavailable, "STOPPING", "guestnet is stopping: watch again later");
    // An error is the last item, and nothing is asked for behind it.
    Box::pin(stream::unfold(Some((Box::pin(items), stop)), move |state| async move {
        let (mut items, mut stop) = state?;
        let passed = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            item = items.next() => Ok(item),
            () = passed => Err(late()),
            // An error is a service that is gone already.
            _ = stop.wait_for(|stop| *stop) => Err(goodbye()),
        };
        match next {
            Ok(item) => {
                let item = item?;
                let rest = item.is_ok().then_some((items, stop));
                Some((item, rest))
            }
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// What a caller's own headers give it: Connect's in milliseconds, gRPC's with a unit (gRPC over HTTP/2, Timeout).
fn patience(ctx: &RequestContext) -> Option<Duration> {
    let header = |name| ctx.header(name).and_then(|value| value.to_str().ok());
    if matches!(ctx.protocol(), Some(Protocol::Connect) | None) {
        return header("connect-timeout-ms")?.parse().ok().map(Duration::from_millis);
    }
    grpc_timeout(header("grpc-timeout")?)
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_of_grpc_has_a_unit() {
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("2M"), Some(Duration::from_secs(120)));
        for text in ["", "5", "S", "-1S", "5s"] {
            assert_eq!(grpc_timeout(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_stream_ends_by_itself_by_its_own_error_or_by_its_callers_deadline() {
        let end = || Some(tokio::time::Instant::now() + Duration::from_millis(100));
        let (stopping, stop) = watch::channel(false);
        let one = || stream::iter([Ok::<_, ConnectError>(1)]);
        let ends: Vec<_> = until(one(), end(), stop.clone()).collect().await;
        assert!(matches!(ends.as_slice(), [Ok(1)]), "{ends:?}");
        let fails: Vec<_> =
            until(one().chain(stream::iter([Err(ConnectError::internal("x"))])), end(), stop.clone())
                .collect()
                .await;
        assert!(
            matches!(fails.as_slice(), [Ok(1), Err(error)] if error.code == ErrorCode::Internal),
            "{fails:?}"
        );
        let goes_on: Vec<_> = until(one().chain(stream::pending()), end(), stop.clone()).collect().await;
        assert!(
            matches!(goes_on.as_slice(), [Ok(1), Err(error)] if error.code == ErrorCode::DeadlineExceeded),
            "{goes_on:?}"
        );
        stopping.send_replace(true);
        let stopped: Vec<_> = until(stream::pending::<Result<u8, _>>(), None, stop).collect().await;
        assert!(
            matches!(stopped.as_slice(), [Err(error)] if error.code == ErrorCode::Unavailable),
            "{stopped:?}"
        );
    }
}
