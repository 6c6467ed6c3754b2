//! One question by TCP: for answers that do not fit a datagram, and when somebody guesses at the datagrams.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{udp, wire};
use crate::dns::answer::{self, Question, Verdict};
use crate::dns::query::HEADER;

pub(super) async fn ask(upstream: SocketAddr, question: &Question, edns: bool) -> io::Result<Verdict> {
    let query = wire::query(question, rand::random(), edns);
    let answer = exchange(upstream, &query).await?;
    Ok(answer::read(&answer, id_of(&query), question))
}

/// Asks in mixed case; the answer, and whether its name came back as it was sent. Nobody who does not see the connection can
/// forge that.
pub(super) async fn ask_mixed(
    upstream: SocketAddr,
    question: &Question,
    edns: bool,
) -> io::Result<(Verdict, bool)> {
    let mut query = wire::query(question, rand::random(), edns);
    let name = HEADER..HEADER + question.name.as_wire().len();
    udp::mix_case(&mut query, name.len());
    let answer = exchange(upstream, &query).await?;
    let kept = answer.get(name.clone()) == query.get(name);
    Ok((answer::read(&answer, id_of(&query), question), kept))
}

async fn exchange(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream.write_all(&wire::framed(query)?).await?;
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

fn id_of(query: &[u8]) -> u16 {
    query.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
}
