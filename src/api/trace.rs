//! Whose trace a call belongs to: the caller's `traceparent` (W3C Trace Context) in, a span around the call out. The span goes
//! to a collector where there is one (`crate::telemetry`), and costs nothing where there is none.

use connectrpc::interceptor::{StreamRequest, StreamResponse, UnaryRequest, UnaryResponse};
use connectrpc::{ConnectError, Interceptor, Next, NextStream, PayloadStream, Protocol, RequestContext};
use tracing::{Instrument, Span, field};

use crate::telemetry::{self, TraceParent};

/// The trace that a call belongs to, 32 hexadecimal digits: of its span if that is recorded, else as its caller said.
pub(super) fn id(ctx: &RequestContext) -> Option<String> {
    telemetry::trace_id(&Span::current()).or_else(|| Some(parent(ctx)?.trace_id()))
}

fn parent(ctx: &RequestContext) -> Option<TraceParent> {
    let mut all = ctx.headers().get_all("traceparent").iter();
    match (all.next(), all.next()) {
        (Some(one), None) => TraceParent::parse(one.to_str().ok()?),
        // Several are none (section 3.2).
        _ => None,
    }
}

/// Puts a span around each call of ours. Health and reflection are asked all the time, and say nothing.
pub(super) struct Traced;

impl Traced {
    /// Named and described by OpenTelemetry's conventions for RPC servers.
    fn span(ctx: &RequestContext) -> Span {
        let path = ctx.path().unwrap_or_default().trim_start_matches('/');
        let Some((service, method)) = path.split_once('/').filter(|(name, _)| name.starts_with("guestnet."))
        else {
            return Span::none();
        };
        let system = match ctx.protocol() {
            Some(Protocol::Connect) | None => "connect_rpc",
            Some(_) => "grpc",
        };
        let span = tracing::info_span!(
            "rpc",
            otel.name = path,
            otel.kind = "server",
            otel.status_code = field::Empty,
            rpc.system = system,
            rpc.service = service,
            rpc.method = method,
            error.r#type = field::Empty,
            guestnet.vm_id = field::Empty,
        );
        if !span.is_disabled()
            && let Some(parent) = parent(ctx)
        {
            let state = ctx.header("tracestate").and_then(|state| state.to_str().ok()).unwrap_or_default();
            telemetry::follow(&span, &parent, state);
        }
        span
    }

    fn ended<T>(span: &Span, answer: &Result<T, ConnectError>) {
        if let Err(error) = answer {
            span.record("error.type", error.code.as_str());
            span.record("otel.status_code", "ERROR");
        }
    }
}

#[connectrpc::async_trait]
impl Interceptor for Traced {
    async fn intercept_unary(
        &self,
        request: UnaryRequest,
        next: Next<'_>,
    ) -> Result<UnaryResponse, ConnectError> {
        let span = Self::span(&request.ctx);
        let answer = next.run(request).instrument(span.clone()).await;
        Self::ended(&span, &answer);
        answer
    }

    /// Until the stream has begun: how long a caller goes on watching is its own affair.
    async fn intercept_streaming(
        &self,
        request: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        let span = Self::span(&request.ctx);
        let answer = next.run(request, inbound).instrument(span.clone()).await;
        Self::ended(&span, &answer);
        answer
    }
}
