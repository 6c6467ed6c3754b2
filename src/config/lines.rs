//! PURE: where a key stands. In: the file's text and a key as errors have it. Out: its line.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The line of `key`, from 1; of the nearest table above it when the key itself is not there. None when nothing of it is.
pub(super) fn of(text: &str, key: &str) -> Option<usize> {
    let (file, _) = DeTable::parse_recoverable(text);
    let mut table = file.get_ref();
    let mut found = None;
    for part in key.split('.') {
        let (name, at) = match part.strip_suffix(']').and_then(|part| part.split_once('[')) {
            Some((name, at)) => (name, at.parse::<usize>().ok()),
            None => (part, None),
        };
        let Some((key, value)) = table.get_key_value(name) else { break };
        found = Some(key.span().start);
        let value: &Spanned<DeValue<'_>> = match at {
            None => value,
            Some(at) => match value.get_ref().get(at) {
                Some(item) => item,
                None => break,
            },
        };
        if at.is_some() {
            found = Some(value.span().start);
        }
        match value.get_ref().as_table() {
            Some(below) => table = below,
            None => break,
        }
    }
    found.map(|at| 1 + text.get(..at).map_or(0, |before| before.matches('\n').count()))
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn a_key_is_found_where_it_stands() {
        let text = "[api]\nsocket = \"/x\"\n\n[[network]]\nmtu = 1\n[network.resolver]\nmin_ttl = 1\n\
                    [[network.resolver.rule]]\nname = \"a\"\n[[network.resolver.rule]]\nname = \"b\"\nfile = \"/l\"\n\
                    [[network]]\nname = \"two\"\n";
        for (key, line) in [
            ("api.socket", 2),
            ("network[0].mtu", 5),
            ("network[0].resolver.min_ttl", 7),
            ("network[0].resolver.rule[0].name", 9),
            ("network[0].resolver.rule[1].file", 12),
            ("network[0].resolver.rule[1].names", 10),
            ("network[1].name", 14),
            ("network[1].mtu", 13),
        ] {
            assert_eq!(of(text, key), Some(line), "{key}");
        }
        assert_eq!(of(text, "metrics.socket"), None);
        assert_eq!(of("", "UNKEY_METALD_NETWORK_DNS"), None);
    }
}
