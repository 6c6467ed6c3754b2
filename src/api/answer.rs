//! An answer on its way to its caller. In: a body as it was made. Out: the same in pieces, each of which is known to have gone
//! to the kernel, or not: until the last has, the answer keeps its room among the requests, and its connection is not idle.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use connectrpc::ConnectRpcBody;
use connectrpc::http_body::{Body, Frame};
use tokio::sync::OwnedSemaphorePermit;

use super::connections::InFlight;

/// What hyper is given at a time: that its caller has read so much is progress.
const PIECE: usize = 64 << 10;

/// A request's room among those being received or answered. Attached to the request, for a stream to give it up.
#[derive(Clone)]
pub(super) struct Room(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Room {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(Mutex::new(Some(permit))))
    }

    /// For an answer that goes on, and has a seat of its own instead.
    pub(super) fn leave(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn is_left(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// An answer's body: while it is being made its connection is at work, while there is some of it to be read it waits for
/// its reader.
pub(super) struct Held {
    body: ConnectRpcBody,
    /// Of the last frame, what hyper has not got yet.
    rest: Bytes,
    way: Arc<Way>,
}

/// How far an answer has got; it ends with its last piece.
struct Way {
    progress: Mutex<Progress>,
    _room: Option<Room>,
}

struct Progress {
    in_flight: InFlight,
    /// hyper has not asked for more than there is.
    ready: bool,
    /// Given to hyper, and not to the kernel yet.
    pieces: usize,
}

impl Way {
    fn moved(&self, change: impl FnOnce(&mut Progress)) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut progress);
        if progress.ready || progress.pieces > 0 {
            progress.in_flight.waits_for_its_reader();
        } else {
            progress.in_flight.is_read();
        }
    }
}

impl Held {
    /// Without `room`: a refusal of a few bytes.
    pub(super) fn new(body: ConnectRpcBody, in_flight: InFlight, room: Option<Room>) -> Self {
        if room.as_ref().is_some_and(Room::is_left) {
            in_flight.goes_on();
        }
        in_flight.waits_for_its_reader();
        let progress = Mutex::new(Progress { in_flight, ready: true, pieces: 0 });
        Self { body, rest: Bytes::new(), way: Arc::new(Way { progress, _room: room }) }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(PIECE));
        self.way.moved(|progress| {
            progress.pieces += 1;
            progress.ready = true;
        });
        Frame::data(Bytes::from_owner(Piece { bytes, way: self.way.clone() }))
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = <ConnectRpcBody as Body>::Error;

    /// hyper holds one part of an answer and asks for the next once it has begun to send that one: over HTTP/2 as soon as there
    /// is room for a byte of it.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => {
                        self.way.moved(|progress| progress.ready = true);
                        return Poll::Ready(Some(Ok(trailers)));
                    }
                },
                Poll::Pending => {
                    self.way.moved(|progress| progress.ready = false);
                    return Poll::Pending;
                }
                last => return last,
            }
        }
        Poll::Ready(Some(Ok(self.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && matches!(&self.body, ConnectRpcBody::Full(body) if body.is_end_stream())
    }
}

/// Bytes that hyper drops once the kernel has them.
struct Piece {
    bytes: Bytes,
    way: Arc<Way>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.way.moved(|progress| progress.pieces -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use connectrpc::http_body::Body as _;
    use tokio::sync::Semaphore;

    use super::super::connections::Connections;
    use super::*;

    /// hyper takes all of an answer that fits into an HTTP/2 window, and holds what the socket has no room for.
    #[tokio::test]
    async fn an_answer_has_its_room_until_the_last_of_its_pieces_has_gone() {
        let requests = Arc::new(Semaphore::new(1));
        let connections = Connections::new(1, Duration::from_secs(30));
        let place = connections.place().await;
        let room = Room::new(requests.clone().try_acquire_owned().unwrap());
        let whole: Vec<u8> = (0..=255).cycle().take(3 * PIECE + 1).collect();
        let body = ConnectRpcBody::Full(Bytes::from(whole.clone()).into());
        let mut held = Held::new(body, place.requests()(), Some(room));
        let mut pieces = Vec::new();
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut held).poll_frame(context)).await
        {
            let Ok(frame) = frame;
            pieces.push(frame.into_data().unwrap());
        }
        assert!(held.is_end_stream());
        drop(held);
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, PIECE, PIECE, 1]);
        assert_eq!(pieces.concat(), whole);
        let last = pieces.pop();
        drop(pieces);
        assert_eq!(requests.available_permits(), 0, "a byte of it is unsent");
        assert!(connections.stalled_at(&place) > Some(Instant::now()));
        drop(last);
        assert_eq!((requests.available_permits(), connections.stalled_at(&place)), (1, None));
    }
}
