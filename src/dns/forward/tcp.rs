//! One question by TCP: for answers that do not fit a datagram, and when somebody guesses at the datagrams.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire;
use crate::dns::answer::{self, Question, Verdict};

pub(super) async fn ask(upstream: SocketAddr, question: &Question, edns: bool) -> io::Result<Verdict> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id = rand::random();
    stream.write_all(&wire::framed(&wire::query(question, id, edns))?).await?;
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(answer::read(&message, id, question))
}
