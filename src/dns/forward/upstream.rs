//! One upstream: how it is spoken to, how it has been doing, and a question to it, however it has to be asked.

use std::io;
use std::sync::Arc;

use super::health::Health;
use super::secure::{self, Trust};
use super::{tcp, udp};
use crate::dns::answer::{Answer, Question, Verdict};
use crate::dns::histogram::Histogram;
use crate::model::{Upstream as Server, UpstreamTransport};

/// An attempt at one upstream that brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("it answers with rcode {0}")]
    Unable(u16),
    #[error("it refers to other servers: it does not resolve this name")]
    Referral,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Trouble {
    /// Whether something came, if not what was asked for: it is there.
    pub(super) fn is_sign_of_life(&self) -> bool {
        matches!(self, Self::Unable(_) | Self::Referral)
    }

    /// Whether it could not even be asked, which may be otherwise in a moment: its port was closed, as while it is started anew,
    /// or there was no way to it.
    pub(super) fn is_transient(&self) -> bool {
        use io::ErrorKind::{
            AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
        };
        let unreached = |kind| {
            matches!(
                kind,
                AddrNotAvailable | ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable
            )
        };
        matches!(self, Self::Io(error) if unreached(error.kind()))
    }
}

/// An upstream, how it is spoken to and how it has been doing.
pub(super) struct Upstream {
    pub(super) server: Server,
    pub(super) health: Health,
    pub(super) latency: Histogram,
    plain: Arc<udp::Pool>,
    secure: Option<secure::Channel>,
}

/// How an upstream does, for people.
#[derive(Debug, Clone)]
pub struct UpstreamReport {
    pub server: String,
    /// Of which suffix; empty: all names that no other has.
    pub domain: String,
    pub up: bool,
    /// Microseconds, smoothed; 0 before the first answer.
    pub srtt_us: u64,
    pub answers: u64,
    pub failures: u64,
    /// Microseconds below which half, and 99 of 100, answers came.
    pub p50_us: u64,
    pub p99_us: u64,
    /// What went wrong last; empty: nothing yet.
    pub last_error: String,
}

impl Upstream {
    pub(super) fn new(server: Server, trust: &Trust) -> Self {
        let secure = secure::Channel::new(&server, trust);
        let plain = Arc::new(udp::Pool::new(server.address));
        let health = Health::new(secure.is_some());
        Self { server, health, latency: Histogram::default(), plain, secure }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.server.transport == UpstreamTransport::Plain
    }

    /// As long as it takes: by UDP, without EDNS if it knows none, by TCP if the answer is too long. Boxed is what most questions
    /// do not come to: each has room for all that it may come to.
    pub(super) async fn exchange(&self, question: &Question) -> Result<Answer, Trouble> {
        let mut edns = true;
        loop {
            let verdict = match &self.secure {
                Some(channel) => Box::pin(channel.ask(question, edns)).await?,
                None => match self.plain.ask(question, edns).await? {
                    Verdict::Truncated | Verdict::Foreign => {
                        Box::pin(tcp::ask(self.server.address, question, edns)).await?
                    }
                    verdict => verdict,
                },
            };
            match verdict {
                Verdict::Answer(answer) => return Ok(answer),
                Verdict::NoEdns if edns => edns = false,
                Verdict::NoEdns => return Err(Trouble::Unable(1)),
                Verdict::Unable(rcode) => return Err(Trouble::Unable(rcode)),
                Verdict::Referral => return Err(Trouble::Referral),
                Verdict::Truncated | Verdict::Foreign => {
                    return Err(io::Error::other("its answer by TCP was not to the question").into());
                }
            }
        }
    }

    pub(super) fn report(&self, domain: String) -> UpstreamReport {
        let (answers, failures, srtt_us, last_error) = self.health.summary();
        let latency = self.latency.snapshot();
        UpstreamReport {
            server: self.server.to_string(),
            domain,
            up: !self.health.is_down(),
            srtt_us,
            answers,
            failures,
            p50_us: latency.quantile(0.5),
            p99_us: latency.quantile(0.99),
            last_error,
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.server.transport {
            UpstreamTransport::Plain => "plain upstream",
            UpstreamTransport::Tls { .. } => "TLS upstream",
            UpstreamTransport::Https { .. } => "HTTPS upstream",
        })
    }
}
