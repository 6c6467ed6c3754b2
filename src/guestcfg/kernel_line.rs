//! A kernel command line as Firecracker and the kernel take it. In: the line so far and what is to be added. Out: the
//! joined line, or a refusal; and what stands on it already that speaks about the network.

use super::{Fact, Refusal, Warning};

/// Both Firecracker (boot_args) and the kernel (COMMAND_LINE_SIZE on x86 and arm64) hold 2,048 bytes with the final NUL.
const LIMIT: usize = 2047;

/// Firecracker adds `root=`, `pci=off` and some 40 bytes per virtio device by itself; less room than this may be too little.
const ROOM_FOR_THE_VMM: usize = 256;

/// An argument as it stands on the line, its name without quotes.
pub(super) struct Argument<'a> {
    pub(super) text: &'a str,
    pub(super) name: String,
    pub(super) value: &'a str,
    /// Where it begins.
    at: usize,
}

/// Splits a line as next_arg in lib/cmdline.c does: at white space outside double quotes.
pub(super) fn arguments(line: &str) -> Result<Vec<Argument<'_>>, Refusal> {
    if let Some(character) = line.chars().find(|c| !(' '..='~').contains(c)) {
        return Err(Refusal::Character(character));
    }
    let mut found = Vec::new();
    let mut quoted = false;
    let mut start = None;
    for (at, byte) in line.bytes().enumerate() {
        quoted ^= byte == b'"';
        match start {
            None if byte != b' ' => start = Some(at),
            Some(from) if byte == b' ' && !quoted => {
                found.push(argument(&line[from..at], from));
                start = None;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(Refusal::OpenQuote);
    }
    if let Some(from) = start {
        found.push(argument(&line[from..], from));
    }
    Ok(found)
}

fn argument(text: &str, at: usize) -> Argument<'_> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    // The kernel takes - and _ in names for the same (parameq in kernel/params.c).
    let name = name.trim_matches('"').replace('_', "-");
    Argument { text, name, value: value.trim_matches('"'), at }
}

/// `ours` on the line `before`, in front of a `--`: what comes after that is init's and the kernel does not read it.
pub(super) fn join(before: Option<&str>, ours: &str) -> Result<(String, Option<Warning>), Refusal> {
    let before = before.unwrap_or_default();
    let end =
        arguments(before)?.iter().find(|argument| argument.text == "--").map_or(before.len(), |end| end.at);
    let (kernel, init) = before.split_at(end);
    let parts = [kernel.trim_matches(' '), ours, init.trim_matches(' ')];
    let line = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let length = line.len();
    if length > LIMIT {
        return Err(Refusal::TooLong { length, limit: LIMIT });
    }
    let warning = (length > LIMIT - ROOM_FOR_THE_VMM).then(|| {
        Warning::new(
            Fact::Length,
            length,
            "2047 bytes fit, and Firecracker adds root= and some 40 bytes per virtio device of its own",
        )
    });
    Ok((line, warning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(line: &str) -> Vec<String> {
        arguments(line).unwrap().into_iter().map(|argument| argument.name).collect()
    }

    #[test]
    fn arguments_are_split_as_the_kernel_splits_them() {
        assert_eq!(names("  console=ttyS0  quiet"), ["console", "quiet"]);
        assert_eq!(names("a=\"b ip=x\" ip=y"), ["a", "ip"]);
        assert_eq!(names("\"ip=dhcp\" network_config=x"), ["ip", "network-config"]);
        assert!(names("   ").is_empty());
    }

    #[test]
    fn what_is_added_comes_before_the_arguments_of_init() {
        let (line, _) = join(Some(" quiet -- --single "), "ip=x").unwrap();
        assert_eq!(line, "quiet ip=x -- --single");
        assert_eq!(join(None, "ip=x").unwrap().0, "ip=x");
        assert_eq!(join(Some("a=\"x -- y\""), "ip=x").unwrap().0, "a=\"x -- y\" ip=x");
    }

    #[test]
    fn a_line_that_cannot_be_passed_on_is_refused() {
        assert_eq!(join(Some("a=\"b"), "ip=x").unwrap_err(), Refusal::OpenQuote);
        assert_eq!(join(Some("a\nb"), "ip=x").unwrap_err(), Refusal::Character('\n'));
        assert_eq!(join(Some("ä"), "ip=x").unwrap_err(), Refusal::Character('ä'));
    }

    #[test]
    fn a_line_fits_into_2048_bytes_with_its_final_nul() {
        let (line, warning) = join(Some(&"a".repeat(2042)), "ip=x").unwrap();
        assert_eq!(line.len(), 2047);
        assert!(warning.unwrap().to_string().contains("2047"));
        let refused = join(Some(&"a".repeat(2043)), "ip=x").unwrap_err();
        assert_eq!(refused, Refusal::TooLong { length: 2048, limit: 2047 });
        assert_eq!(join(Some("quiet"), "ip=x").unwrap().1, None);
    }
}
