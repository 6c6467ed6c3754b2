//! The metrics' page to OTLP: one source for both, so that Prometheus and the collector are told the same. In: OpenMetrics text as
//! the crate writes it. Out: the message. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, number_data_point,
};
use opentelemetry_sdk::Resource;

/// All of `page`, counted since `started`, read at `now`.
pub(super) fn request(
    page: &str,
    resource: &Resource,
    started: SystemTime,
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope { name: "guestnet".into(), ..Default::default() };
    let metrics = metrics(page, nanoseconds(started), nanoseconds(now));
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..Default::default() }];
    let resource_metrics =
        vec![ResourceMetrics { resource: Some(resource.into()), scope_metrics, ..Default::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn nanoseconds(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The metrics of a page, in its order. A line that is none is passed over: the page is our own.
fn metrics(page: &str, start: u64, now: u64) -> Vec<Metric> {
    let mut found: Vec<Metric> = Vec::new();
    for line in page.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), Some(help)) => {
                found.push(Metric { name: name.into(), description: help.into(), ..Default::default() });
            }
            (Some("#"), Some("TYPE"), Some(_), Some(kind)) => {
                if let Some(metric) = found.last_mut() {
                    metric.data = Some(empty(kind));
                }
            }
            (Some("#"), Some("UNIT"), Some(_), Some(unit)) => {
                if let Some(metric) = found.last_mut() {
                    metric.unit = ucum(unit).into();
                }
            }
            _ => {
                if let (Some(metric), Some(sample)) = (found.last_mut(), Sample::read(line)) {
                    add(metric, sample, start, now);
                }
            }
        }
    }
    found
}

fn empty(kind: &str) -> Data {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    match kind {
        "counter" => Data::Sum(Sum { aggregation_temporality, is_monotonic: true, ..Default::default() }),
        "histogram" => Data::Histogram(Histogram { aggregation_temporality, ..Default::default() }),
        _ => Data::Gauge(Gauge::default()),
    }
}

/// UCUM, as OpenTelemetry has units.
fn ucum(unit: &str) -> &str {
    match unit {
        "seconds" => "s",
        "bytes" => "By",
        other => other,
    }
}

/// `name{label="value",…} number`.
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        while let Some((label, quoted)) =
            rest.strip_prefix(['{', ',']).and_then(|rest| rest.split_once("=\""))
        {
            let (value, behind) = unquoted(quoted)?;
            labels.push((label, value));
            rest = behind;
        }
        let value = rest.trim_start_matches('}').trim().parse().ok()?;
        Some(Self { name, labels, value })
    }
}

/// A label's value up to its closing quote, and what is behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match (std::mem::take(&mut escaped), c) {
            (false, '"') => return Some((value, &text[at + 1..])),
            (false, '\\') => escaped = true,
            (true, 'n') => value.push('\n'),
            (_, c) => value.push(c),
        }
    }
    None
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole and not negative"
)]
fn add(metric: &mut Metric, mut sample: Sample<'_>, start: u64, now: u64) {
    let part = sample.name.strip_prefix(metric.name.as_str()).unwrap_or_default();
    let bound = match part {
        "_bucket" => sample.labels.iter().position(|(name, _)| *name == "le"),
        _ => None,
    };
    let bound = bound.map(|at| sample.labels.remove(at).1);
    let attributes: Vec<KeyValue> = sample.labels.into_iter().map(attribute).collect();
    let number = |start_time_unix_nano| NumberDataPoint {
        attributes: attributes.clone(),
        start_time_unix_nano,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(sample.value)),
        ..Default::default()
    };
    match &mut metric.data {
        Some(Data::Sum(sum)) if part == "_total" => sum.data_points.push(number(start)),
        Some(Data::Gauge(gauge)) => gauge.data_points.push(number(0)),
        Some(Data::Histogram(histogram)) => {
            let points = &mut histogram.data_points;
            if points.last().is_none_or(|point| point.attributes != attributes) {
                points.push(HistogramDataPoint {
                    attributes,
                    start_time_unix_nano: start,
                    time_unix_nano: now,
                    ..Default::default()
                });
            }
            let Some(point) = points.last_mut() else { return };
            match (part, bound) {
                ("_sum", _) => point.sum = Some(sample.value),
                ("_count", _) => point.count = sample.value as u64,
                ("_bucket", Some(bound)) => {
                    // Prometheus' buckets hold the ones below them too, and the last has no bound.
                    let below: u64 = point.bucket_counts.iter().sum();
                    point.bucket_counts.push((sample.value as u64).saturating_sub(below));
                    point.explicit_bounds.extend(bound.parse().ok().filter(|bound: &f64| bound.is_finite()));
                }
                _ => {}
            }
        }
        _ => {}
    }
}

fn attribute((name, value): (&str, String)) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value)) };
    KeyValue { key: name.to_owned(), value: Some(value), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP g_info The service.\n# TYPE g info\ng_info{version=\"0.1\"} 1\n\
        # HELP g_vms VMs.\n# TYPE g_vms gauge\ng_vms{network=\"a\"} 3\ng_vms{network=\"b \\\"\\\\n\\n\"} 4\n\
        # HELP g_sent_bytes Sent.\n# TYPE g_sent_bytes counter\n# UNIT g_sent_bytes bytes\ng_sent_bytes_total 5\n\
        # HELP g_took_seconds Took.\n# TYPE g_took_seconds histogram\n# UNIT g_took_seconds seconds\n\
        g_took_seconds_sum{n=\"a\"} 1.5\ng_took_seconds_count{n=\"a\"} 7\n\
        g_took_seconds_bucket{le=\"0.1\",n=\"a\"} 2\ng_took_seconds_bucket{n=\"a\",le=\"1.0\"} 6\n\
        g_took_seconds_bucket{n=\"a\",le=\"+Inf\"} 7\n# EOF\n";

    fn strings(attributes: &[KeyValue]) -> Vec<(String, String)> {
        let of = |kv: &KeyValue| match &kv.value.as_ref().unwrap().value {
            Some(Value::StringValue(value)) => (kv.key.clone(), value.clone()),
            other => panic!("{other:?}"),
        };
        attributes.iter().map(of).collect()
    }

    #[test]
    fn a_page_keeps_its_values_names_and_labels() {
        let found = metrics(PAGE, 1, 2);
        let names: Vec<_> = found.iter().map(|metric| (metric.name.as_str(), metric.unit.as_str())).collect();
        assert_eq!(names, [("g_info", ""), ("g_vms", ""), ("g_sent_bytes", "By"), ("g_took_seconds", "s")]);
        let Some(Data::Gauge(vms)) = &found[1].data else { panic!("{:?}", found[1]) };
        assert_eq!(vms.data_points[0].value, Some(number_data_point::Value::AsDouble(3.0)));
        let quoted = [("network".to_owned(), "b \"\\n\n".to_owned())];
        assert_eq!(strings(&vms.data_points[1].attributes), quoted);
        let Some(Data::Sum(sent)) = &found[2].data else { panic!("{:?}", found[2]) };
        assert!(sent.is_monotonic);
        let point = &sent.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(5.0)));
        let Some(Data::Histogram(took)) = &found[3].data else { panic!("{:?}", found[3]) };
        let [point] = took.data_points.as_slice() else { panic!("{took:?}") };
        assert_eq!((point.sum, point.count), (Some(1.5), 7));
        assert_eq!((&point.bucket_counts, &point.explicit_bounds), (&vec![2, 4, 1], &vec![0.1, 1.0]));
        assert_eq!(strings(&point.attributes), [("n".to_owned(), "a".to_owned())]);
    }
}
