//! Answers that go on: a bounded number of them, each ended when the service stops. In: items as they come. Out: a stream
//! that waits for its reader and for nobody else.

use std::sync::Arc;

use connectrpc::{ConnectError, ErrorCode, Response, ServiceResult, ServiceStream};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Semaphore, watch};

use super::errors::refusal;

/// Watches open at a time, over all callers.
const SEATS: usize = 64;

#[derive(Debug, Clone)]
pub(super) struct Streams {
    seats: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Streams {
    pub(super) fn new(stop: watch::Receiver<bool>) -> Self {
        Self { seats: Arc::new(Semaphore::new(SEATS)), stop }
    }

    /// Sends `items` until they end, the caller hangs up or the service stops.
    pub(super) fn serve<T: Send + 'static>(
        &self,
        items: impl Stream<Item = Result<T, ConnectError>> + Send + 'static,
    ) -> ServiceResult<ServiceStream<T>> {
        let seat = self.seats.clone().try_acquire_owned().map_err(|_| {
            let words = format!("{SEATS} watches are open already: end one of them and repeat the call");
            refusal(ErrorCode::ResourceExhausted, "TOO_MANY_WATCHES", words)
        })?;
        let mut stop = self.stop.clone();
        let stopped = async move {
            // An error is a service that is gone already.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let goodbye =
            || refusal(ErrorCode::Unavailable, "STOPPING", "guestnet is stopping: watch again later");
        let ends = stream::once(async move { Err(goodbye()) });
        let items = items.take_until(Box::pin(stopped)).chain(ends).map(move |item| {
            let _held_until_the_stream_goes = &seat;
            item
        });
        Response::stream_ok(items)
    }
}
