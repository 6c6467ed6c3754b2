//! Guests by UDP. One thread takes queries in batches and answers at once what a rule, the zone or the cache has: no task, no
//! allocation, no lock that others hold for long. What has to wait goes to the network's runtime.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::trace;

use super::batch::{BATCH, Batch};
use super::reply::Transport;
use super::resolve::{Pending, Resolver, Step};

/// Takes queries until `stop`; the socket has to be shut down to be heard.
pub(super) fn serve(
    resolver: &Arc<Resolver>,
    socket: &UdpSocket,
    stop: &AtomicBool,
    later: &mpsc::UnboundedSender<Box<Pending>>,
) {
    let mut batch = Batch::new();
    loop {
        let received = batch.receive(socket);
        if stop.load(Ordering::Acquire) {
            return;
        }
        let begun = Instant::now();
        match received {
            Ok(count) => {
                let answered = answer(resolver, &mut batch, count, later);
                batch.send(socket);
                resolver.latency.add_many(begun.elapsed(), answered);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // It belongs to an earlier datagram (a guest that is gone), not to the socket.
                trace!(%error, "UDP receive");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// How many of the batch's queries were answered.
fn answer(
    resolver: &Arc<Resolver>,
    batch: &mut Batch,
    count: usize,
    later: &mpsc::UnboundedSender<Box<Pending>>,
) -> u64 {
    let mut answered = 0;
    for n in 0..count {
        let (message, from, out) = batch.at(n);
        let from = SocketAddr::V4(from);
        // More is waiting than one batch: now each guest has its share only.
        if count == BATCH && resolver.is_over_share(from.ip()) {
            continue;
        }
        match resolver.begin(message, from, Transport::Udp, out) {
            Step::Silent => {}
            Step::Answered => answered += 1,
            // An error means that the resolver is being stopped. The queue is bounded by the guests' places.
            Step::Wait(pending) => drop(later.send(pending)),
        }
    }
    answered
}

/// Answers what had to wait, each when its answer comes.
pub(super) async fn finish_all(
    resolver: Arc<Resolver>,
    socket: Arc<UdpSocket>,
    mut waiting: mpsc::UnboundedReceiver<Box<Pending>>,
) {
    while let Some(pending) = waiting.recv().await {
        let (resolver, socket) = (resolver.clone(), socket.clone());
        tokio::spawn(async move {
            let (to, mut out) = (pending.from, Vec::new());
            if resolver.finish(pending, &mut out).await {
                // The socket waits when it receives; here a full buffer loses the answer, as the network may.
                let sent =
                    socket2::SockRef::from(&*socket).send_to_with_flags(&out, &to.into(), libc::MSG_DONTWAIT);
                if let Err(error) = sent {
                    trace!(%error, "UDP answer not sent");
                }
            }
        });
    }
}
