//! How long a caller waits, by its own headers. In: a request's head. Out: the time that it gives, and the head with what is left of
//! that. Pure.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

/// What a caller gives: Connect's header in milliseconds, gRPC's with a unit (gRPC over HTTP/2, Timeout). Which of them counts its protocol
/// says, and that the content type.
pub(super) fn patience(headers: &HeaderMap) -> Option<Duration> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if is_grpc(headers) {
        return grpc_timeout(header("grpc-timeout")?);
    }
    header("connect-timeout-ms")?.parse().ok().map(Duration::from_millis)
}

/// Has a request with a deadline go on with what is `left` of it.
pub(super) fn go_on_with(headers: &mut HeaderMap, left: Duration) {
    if patience(headers).is_none() {
        return;
    }
    // gRPC has eight digits at most, Connect ten.
    let (seconds, milliseconds) = (left.as_secs().min(99_999_999), left.as_millis());
    let (name, text) = match is_grpc(headers) {
        true if milliseconds > 99_999_999 => ("grpc-timeout", format!("{seconds}S")),
        true => ("grpc-timeout", format!("{milliseconds}m")),
        false => ("connect-timeout-ms", milliseconds.min(9_999_999_999).to_string()),
    };
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(name, value);
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
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

    #[test]
    fn what_is_left_of_a_deadline_stands_where_it_stood() {
        let head = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .collect()
        };
        let left = Duration::from_millis(1_500);
        let mut connect = head(&[("content-type", "application/json"), ("connect-timeout-ms", "2000")]);
        go_on_with(&mut connect, left);
        let mut grpc = head(&[("content-type", "application/grpc+proto"), ("grpc-timeout", "2S")]);
        go_on_with(&mut grpc, left);
        assert_eq!((patience(&connect), patience(&grpc)), (Some(left), Some(left)));
        let mut none = head(&[("content-type", "application/grpc"), ("connect-timeout-ms", "2000")]);
        go_on_with(&mut none, left);
        assert_eq!((patience(&none), none.len()), (None, 2));
    }
}
