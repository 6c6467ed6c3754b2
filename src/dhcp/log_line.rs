//! A line of the lease log: `network mac address state until last-seen "vendor class" "wished name"`, times in Unix
//! seconds, `-` for none. PURE. In: a record. Out: a line, and the record back.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::journal::LogKey;
use super::record::{Record, Standing};
use crate::model::{Mac, NetworkName};

#[derive(Debug)]
pub(super) enum Line {
    Stands(Record),
    Gone,
}

pub(super) fn write(log: &mut String, network: &NetworkName, mac: Mac, record: &Record, now: SystemTime) {
    let Some(address) = record.address else { return };
    let (state, until) = match record.standing {
        Standing::Reserved | Standing::Offered => ("reserved", None),
        Standing::Bound(until) => ("bound", until),
        Standing::Released => ("released", None),
        Standing::Declined => ("declined", None),
    };
    let seconds = |time: Option<SystemTime>| {
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        since.map_or_else(|| "-".to_owned(), |since| since.as_secs().to_string())
    };
    let text = |text: &Option<Box<str>>| text.as_deref().map(|text| text.replace(['"', '\n'], "?"));
    // Writing to a String cannot fail.
    let _ = writeln!(
        log,
        "{network} {mac} {address} {state} {} {} \"{}\" \"{}\"",
        seconds(until),
        seconds(record.last_seen.or(Some(now))),
        text(&record.vendor_class).unwrap_or_default(),
        text(&record.wished_name).unwrap_or_default(),
    );
}

pub(super) fn write_gone(log: &mut String, network: &NetworkName, mac: Mac) {
    let _ = writeln!(log, "{network} {mac} gone");
}

/// None for what is no whole line.
pub(super) fn read(line: &str) -> Option<(NetworkName, Mac, Line)> {
    let mut words = line.splitn(7, ' ');
    let (network, mac): LogKey = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let address = words.next()?;
    if address == "gone" {
        return Some((network, mac, Line::Gone));
    }
    let (state, until, seen) = (words.next()?, words.next()?, words.next()?);
    let time = |word: &str| UNIX_EPOCH.checked_add(Duration::from_secs(word.parse().ok()?));
    let texts = words.next()?.strip_prefix('"')?.strip_suffix('"')?;
    let (class, name) = texts.split_once("\" \"")?;
    let text = |text: &str| (!text.is_empty()).then(|| text.into());
    let standing = match (state, until) {
        ("reserved", _) => Standing::Reserved,
        ("bound", "-") => Standing::Bound(None),
        ("bound", until) => Standing::Bound(Some(time(until)?)),
        ("released", _) => Standing::Released,
        ("declined", _) => Standing::Declined,
        _ => return None,
    };
    let record = Record {
        standing,
        address: Some(address.parse().ok()?),
        last_seen: time(seen),
        vendor_class: text(class),
        wished_name: text(name),
        ..Record::default()
    };
    Some((network, mac, Line::Stands(record)))
}
