//! `traceparent` of W3C Trace Context: bytes of any caller in, ids out. Pure.

/// Which span a call was made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace: u128,
    pub span: u64,
    /// Whether the caller records it.
    pub sampled: bool,
}

impl TraceParent {
    /// None for what does not fit, which is as if it were not there (W3C Trace Context, section 3.2.2).
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version = hex::<2>(parts.next()?)?;
        let (trace, span) = (hex::<32>(parts.next()?)?, hex::<16>(parts.next()?)?);
        let flags = hex::<2>(parts.next()?)?;
        // Later versions may say more behind; ff is none.
        let fits = version != 0xff && (version != 0 || parts.next().is_none());
        let parent = Self { trace, span: u64::try_from(span).ok()?, sampled: flags & 1 == 1 };
        (fits && parent.trace != 0 && parent.span != 0).then_some(parent)
    }

    /// As headers and logs have it.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }
}

/// Exactly so many hexadecimal digits, none of them a capital.
fn hex<const DIGITS: usize>(text: &str) -> Option<u128> {
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == DIGITS && text.bytes().all(digits)).then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_taken_from_what_the_standard_allows_and_from_nothing_else() {
        let fits = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = TraceParent::parse(fits).unwrap();
        assert_eq!(parent.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((parent.span, parent.sampled), (0xb7ad_6b71_6920_3331, true));
        assert!(!TraceParent::parse(&fits.replace("-01", "-02")).unwrap().sampled);
        // A later version, with more behind.
        assert_eq!(TraceParent::parse(&format!("cc{}-what", &fits[2..])), Some(parent));
        for wrong in [
            "",
            "00",
            &format!("{fits}-more"),
            &format!("{fits}-"),
            &fits.replace("00-", "ff-"),
            &fits.replace("0af7", "0AF7"),
            &fits.replace("0af7", "+af7"),
            &fits.replace("0af7", "af7"),
            &fits.replace("-01", "-1"),
            &fits.replace("-01", ""),
            &fits.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &fits.replace("b7ad6b7169203331", &"0".repeat(16)),
            &fits.replace('-', "é"),
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }
}
