//! How long a caller waits, by its own headers. In: a request's head. Out: the time that it gives. Pure.

use std::time::Duration;

use http::HeaderMap;

/// What a caller gives: Connect's header in milliseconds, gRPC's with a unit (gRPC over HTTP/2, Timeout). Which of them counts its protocol
/// says, and that the content type.
pub(super) fn patience(headers: &HeaderMap) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if header("content-type").is_some_and(|kind| kind.starts_with("application/grpc")) {
        return grpc_timeout(header("grpc-timeout")?);
    }
    header("connect-timeout-ms")?.parse().ok().map(Duration::from_millis)
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.saturating_mul(3_600)),
        "M" => Duration::from_secs(number.saturating_mul(60)),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_of_grpc_has_a_unit() {
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout("2M"), Some(Duration::from_secs(120)));
        for text in ["", "5", "S", "-1S", "5s"] {
            assert_eq!(grpc_timeout(text), None, "{text}");
        }
    }
}
