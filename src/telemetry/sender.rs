//! Spans through the SDK's bounded queue, and the metrics' page every so often, to the collector.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};
use prost::Message;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;

use super::collector::Sender;
use super::{SpanLayer, TraceParent, points};
use crate::config::TelemetryConfig;
use crate::metrics::Source;

/// Spans that wait to be sent; further ones are dropped, and no call waits.
const QUEUE: usize = 2_048;
/// Spans in one request at most.
const BATCH: usize = 512;
/// How long a span waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// For what waits at a stop to be sent.
const DRAIN: Duration = Duration::from_secs(5);

/// What is sent, if there is somebody to send it to.
#[derive(Debug)]
pub struct Telemetry(Option<Running>);

#[derive(Debug)]
struct Running {
    spans: SdkTracerProvider,
    sender: Sender,
    resource: Resource,
    every: Duration,
    measuring: Option<JoinHandle<()>>,
}

impl Telemetry {
    /// Needs a tokio runtime. Spans of calls go to the layer.
    pub fn open(config: &TelemetryConfig) -> (Self, Option<SpanLayer>) {
        let Some(collector) = config.collector.clone() else { return (Self(None), None) };
        let sender = Sender::new(collector);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let resource = Resource::builder_empty()
            .with_service_name("guestnet")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("host.name", host.trim().to_owned()))
            .build();
        let exporter =
            Exporter { sender: sender.clone(), handle: Handle::current(), resource: (&resource).into() };
        let queue = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(GATHER);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(queue.build()).build();
        let spans = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(resource.clone())
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(spans.tracer("guestnet"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Log lines stay in the log: a span says who was called, and how long it took.
            .with_filter(tracing_subscriber::filter::filter_fn(|of| {
                of.is_span() && *of.level() <= tracing::Level::INFO && of.target().starts_with("guestnet")
            }))
            .boxed();
        let every = config.metrics_interval;
        (Self(Some(Running { spans, sender, resource, every, measuring: None })), Some(layer))
    }

    /// Sends what is measured from here on.
    pub fn measure(&mut self, source: Source) {
        let Some(running) = &mut self.0 else { return };
        let (sender, resource, every) = (running.sender.clone(), running.resource.clone(), running.every);
        running.measuring = Some(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            // A collector that was slow is not sent all that it has missed.
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Ok(page) = source.page_of_all().await else { continue };
                let request = points::request(&page, &resource, source.started_at, SystemTime::now());
                // A loss is logged where it is noticed.
                let _ = sender.send("/v1/metrics", request.encode_to_vec()).await;
            }
        }));
    }

    /// Sends what waits, for a bounded time. Blocks: for a thread of its own.
    pub fn stop(self) {
        let Some(running) = self.0 else { return };
        if let Some(measuring) = running.measuring {
            measuring.abort();
        }
        if let Err(error) = running.spans.shutdown_with_timeout(DRAIN) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// From the queue's own thread to the runtime.
#[derive(Debug)]
struct Exporter {
    sender: Sender,
    handle: Handle,
    resource: ResourceAttributesWithSchema,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        let sender = self.sender.clone();
        let sent = self.handle.spawn(async move { sender.send("/v1/traces", body).await }).await;
        sent.unwrap_or_else(|stopping| Err(stopping.to_string())).map_err(OTelSdkError::InternalFailure)
    }
}

/// Makes `span` a child of the caller's. `state` is its `tracestate`.
pub fn follow(span: &Span, parent: &TraceParent, state: &str) {
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, caller) = (TraceId::from(parent.trace), SpanId::from(parent.span));
    let context = SpanContext::new(trace, caller, flags, true, state.parse().unwrap_or_default());
    // An error says that nobody listens to spans, or that it has begun: it was made a line before.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
}

/// Of a span that is recorded.
pub fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let of = span.span_context();
    of.is_valid().then(|| of.trace_id().to_string())
}
