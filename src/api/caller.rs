//! Who calls: known by the kernel's word for a unix socket, by certificate over TCP. Each request carries its caller, with what
//! it may do by then; who may only read is refused what changes something.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use connectrpc::interceptor::{StreamRequest, StreamResponse, UnaryRequest, UnaryResponse};
use connectrpc::{ConnectError, ErrorCode, IdempotencyLevel, RequestContext};
use connectrpc::{Interceptor, Next, NextStream, PayloadStream};

use super::errors::{is_of_the_host, refusal};
use super::trace;
use crate::config::SpiffeIds;

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Full,
    ReadOnly,
    /// Known, and in no list of those who may call.
    None,
}

/// The peer of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// SO_PEERCRED of the unix socket.
    Process { pid: i32, uid: u32, gid: u32 },
    /// The SPIFFE id of a verified certificate.
    Spiffe(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, uid, gid } => write!(f, "pid {pid} uid {uid} gid {gid}"),
            Self::Spiffe(id) => f.write_str(id),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub peer: Peer,
    pub access: Access,
}

/// The other end of a connection, which may last longer than what it may do.
#[derive(Debug, Clone)]
pub(super) enum Connected {
    /// By way of a socket that stands for an access.
    Socket(Caller),
    /// Known by its SPIFFE id: the lists say what it may do, and a reload changes them.
    Certified { id: String, allowed: Arc<ArcSwap<SpiffeIds>> },
}

impl Connected {
    /// The caller of a request that comes now.
    pub(super) fn caller(&self) -> Caller {
        match self {
            Self::Socket(caller) => caller.clone(),
            Self::Certified { id, allowed } => {
                let allowed = allowed.load();
                let access = if SpiffeIds::lists(&allowed.full, id) {
                    Access::Full
                } else if SpiffeIds::lists(&allowed.read_only, id) {
                    Access::ReadOnly
                } else {
                    Access::None
                };
                Caller { peer: Peer::Spiffe(id.clone()), access }
            }
        }
    }
}

/// Who asked for a change, and in which trace: for the log.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) caller: Option<Peer>,
    pub(super) trace_id: Option<String>,
}

impl Origin {
    /// The server has attached the caller to the request.
    pub(super) fn of(ctx: &RequestContext) -> Self {
        let caller = ctx.extensions().get::<Caller>().map(|caller| caller.peer.clone());
        Self { caller, trace_id: trace::id(ctx) }
    }

    /// Of a change that has no line of its own.
    pub(super) fn log(&self, verb: &'static str, what: impl fmt::Display) {
        let caller = self.caller.as_ref().map(tracing::field::display);
        tracing::info!(verb, %what, caller, trace_id = self.trace_id, "changed");
    }

    /// Of a change that was refused or has failed: what it was about, as the words, is for who looks closer.
    pub(super) fn log_failure(
        &self,
        verb: &'static str,
        what: &impl fmt::Display,
        (code, reason): (ErrorCode, &str),
        error: &impl fmt::Display,
    ) {
        let (caller, trace_id) = (self.caller.as_ref().map(tracing::field::display), &self.trace_id);
        if is_of_the_host(code, reason) {
            tracing::error!(verb, caller, trace_id, reason, "not changed: the cause is logged at debug");
        }
        tracing::debug!(verb, %what, caller, trace_id, code = code.as_str(), %error, "not changed");
    }
}

/// Whether the caller may change things, and read what guests are to keep secret.
pub(super) fn is_full(ctx: &RequestContext) -> bool {
    ctx.extensions().get::<Caller>().is_some_and(|caller| caller.access == Access::Full)
}

/// RPCs that only read, and read a guest's secrets.
const SECRETS: [&str; 1] = ["/guestnet.v1.GuestNetworkService/GetUserData"];

/// Lets read-only callers read.
pub(super) struct Gate;

impl Gate {
    fn check(ctx: &RequestContext) -> Result<(), ConnectError> {
        let caller = ctx.extensions().get::<Caller>();
        if let Some(Caller { peer, access: Access::None }) = caller {
            let words = format!(
                "the certificate's SPIFFE id {:?} is in neither spiffe_ids nor read_only_spiffe_ids under [api]",
                peer.to_string()
            );
            return Err(refusal(ErrorCode::PermissionDenied, "UNLISTED_CALLER", words));
        }
        // Health and reflection have no spec of ours, and change nothing.
        let Some(spec) = ctx.spec().filter(|spec| spec.procedure.starts_with("/guestnet.")) else {
            return Ok(());
        };
        let reads = spec.idempotency_level == IdempotencyLevel::NoSideEffects;
        let is_secret = SECRETS.contains(&spec.procedure);
        if is_full(ctx) || (reads && !is_secret) {
            return Ok(());
        }
        if is_secret {
            let words = format!(
                "{} tells secrets of a guest, and this caller may only read what is none",
                spec.procedure
            );
            return Err(refusal(ErrorCode::PermissionDenied, "READ_ONLY_CALLER", words));
        }
        let words = format!("{} changes something, and this caller may only read", spec.procedure);
        Err(refusal(ErrorCode::PermissionDenied, "READ_ONLY_CALLER", words))
    }
}

#[connectrpc::async_trait]
impl Interceptor for Gate {
    async fn intercept_unary(
        &self,
        request: UnaryRequest,
        next: Next<'_>,
    ) -> Result<UnaryResponse, ConnectError> {
        Self::check(&request.ctx)?;
        next.run(request).await
    }

    async fn intercept_streaming(
        &self,
        request: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        Self::check(&request.ctx)?;
        next.run(request, inbound).await
    }
}
