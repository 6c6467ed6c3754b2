//! The options of a request, none half read: one that lies about its length makes the whole request malformed. PURE. In: the
//! BOOTP header and what follows it. Out: the options that matter here, borrowed from there but where one came in pieces.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::borrow::Cow;

use dhcproto::v4::{MAGIC, OptionCode};

use super::packet::{FILE, HEADER, SNAME};
use super::{Kind, Silence};

/// The options that matter here, as sent. An option given in pieces is joined (RFC 3396 section 7).
#[derive(Default)]
pub(super) struct Options<'a> {
    pub(super) kind: Option<[u8; 1]>,
    pub(super) overload: Option<[u8; 1]>,
    pub(super) requested: Option<[u8; 4]>,
    pub(super) server_id: Option<[u8; 4]>,
    pub(super) max_size: Option<[u8; 2]>,
    pub(super) rapid_commit: Option<[u8; 0]>,
    pub(super) parameters: Option<Cow<'a, [u8]>>,
    pub(super) vendor_class: Option<Cow<'a, [u8]>>,
    pub(super) hostname: Option<Cow<'a, [u8]>>,
    pub(super) fqdn: Option<Cow<'a, [u8]>>,
    pub(super) client_id: Option<Cow<'a, [u8]>>,
    pub(super) agent: Option<Cow<'a, [u8]>>,
}

impl<'a> Options<'a> {
    /// `rest` is what follows the header. Order of the areas: RFC 2131 section 4.1.
    pub(super) fn read(header: &'a [u8; HEADER], rest: &'a [u8]) -> Result<Self, Silence> {
        let mut options = Self::default();
        match rest.split_first_chunk::<4>() {
            Some((&MAGIC, area)) => options.add(area)?,
            // BOOTP clients may send no vendor information (RFC 951 section 3), as klibc's ipconfig does.
            Some((&[0, 0, 0, 0], _)) | None => return Ok(options),
            Some(_) => return Err(Silence::Malformed),
        }
        let [overload] = options.overload.unwrap_or([0]);
        if overload & 1 != 0 {
            options.add(&header[FILE])?;
        }
        if overload & 2 != 0 {
            options.add(&header[SNAME])?;
        }
        Ok(options)
    }

    fn add(&mut self, mut area: &'a [u8]) -> Result<(), Silence> {
        while let Some((code, data)) = next(&mut area)? {
            match OptionCode::from(code) {
                OptionCode::MessageType => fixed(&mut self.kind, data)?,
                OptionCode::OptionOverload => fixed(&mut self.overload, data)?,
                OptionCode::RequestedIpAddress => fixed(&mut self.requested, data)?,
                OptionCode::ServerIdentifier => fixed(&mut self.server_id, data)?,
                OptionCode::MaxMessageSize => fixed(&mut self.max_size, data)?,
                OptionCode::RapidCommit => fixed(&mut self.rapid_commit, data)?,
                OptionCode::ParameterRequestList => joined(&mut self.parameters, data)?,
                OptionCode::ClassIdentifier => joined(&mut self.vendor_class, data)?,
                OptionCode::Hostname => joined(&mut self.hostname, data)?,
                OptionCode::ClientFQDN => joined(&mut self.fqdn, data)?,
                OptionCode::ClientIdentifier => joined(&mut self.client_id, data)?,
                OptionCode::RelayAgentInformation => joined(&mut self.agent, data)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn kind(&self) -> Result<Kind, Silence> {
        match self.kind {
            None => Ok(Kind::Bootp),
            Some([1]) => Ok(Kind::Discover),
            Some([3]) => Ok(Kind::Request),
            Some([4]) => Ok(Kind::Decline),
            Some([7]) => Ok(Kind::Release),
            Some([8]) => Ok(Kind::Inform),
            // OFFER, ACK, NAK and FORCERENEW (RFC 3203).
            Some([2 | 5 | 6 | 9]) => Err(Silence::ServerMessage),
            Some(_) => Err(Silence::Malformed),
        }
    }
}

/// Takes the next option off `area`; none at the End option or the end of the area. One that is shorter than it says is an
/// error.
fn next<'a>(area: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Silence> {
    loop {
        match **area {
            [] | [255, ..] => return Ok(None),
            [0, ref rest @ ..] => *area = rest,
            [code, length, ref rest @ ..] => {
                let (data, rest) = rest.split_at_checked(length.into()).ok_or(Silence::Malformed)?;
                *area = rest;
                return Ok(Some((code, data)));
            }
            [_] => return Err(Silence::Malformed),
        }
    }
}

/// An option of one length, given once.
fn fixed<const N: usize>(slot: &mut Option<[u8; N]>, data: &[u8]) -> Result<(), Silence> {
    let value = data.try_into().map_err(|_| Silence::Malformed)?;
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Silence::Malformed),
    }
}

/// An option of any length, in one or more pieces, together no longer than one option can be.
fn joined<'a>(slot: &mut Option<Cow<'a, [u8]>>, data: &'a [u8]) -> Result<(), Silence> {
    match slot {
        None => *slot = Some(Cow::Borrowed(data)),
        Some(value) => value.to_mut().extend_from_slice(data),
    }
    let length = slot.as_ref().map_or(0, |value| value.len());
    if length <= 255 { Ok(()) } else { Err(Silence::Malformed) }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dhcproto::Encodable as _;
    use proptest::prelude::*;

    use super::super::fixture::{ADDRESS, bare, discover, frame, parse, with_options};
    use super::*;

    #[test]
    fn options_that_lie_about_their_length_are_malformed() {
        for (what, options) in [
            ("past the end", &[53, 1, 1, 12, 200, b'x'][..]),
            ("no length", &[53, 1, 1, 12][..]),
            ("long message type", &[53, 2, 1, 1][..]),
            ("empty message type", &[53, 0][..]),
            ("short address", &[53, 1, 1, 50, 3, 10, 100, 1][..]),
            ("long address", &[53, 1, 1, 54, 5, 10, 100, 0, 1, 0][..]),
            ("message type twice", &[53, 1, 1, 0, 53, 1, 3][..]),
            ("rapid commit with data", &[53, 1, 1, 80, 1, 0][..]),
            ("short maximum size", &[53, 1, 1, 57, 1, 2][..]),
            ("unknown message type", &[53, 1, 200][..]),
        ] {
            assert_eq!(parse(&with_options(options)), Err(Silence::Malformed), "{what}");
        }
    }

    #[test]
    fn a_missing_end_option_is_forgiven_and_nothing_after_it_is_read() {
        assert_eq!(parse(&with_options(&[53, 1, 1])).unwrap().kind, Kind::Discover);
        assert_eq!(parse(&with_options(&[53, 1, 1, 255, 12, 200])).unwrap().kind, Kind::Discover);
    }

    #[test]
    fn a_long_option_in_pieces_is_joined_and_has_a_limit() {
        let sent = with_options(&[61, 2, 1, 2, 53, 1, 1, 61, 1, 3, 61, 1, 4]);
        let request = parse(&sent).unwrap();
        assert_eq!(request.client_id.as_deref(), Some(&[1, 2, 3, 4][..]));

        let mut pieces = vec![53, 1, 1];
        for _ in 0..2 {
            pieces.extend([61, 200]);
            pieces.extend([7; 200]);
        }
        assert_eq!(parse(&with_options(&pieces)), Err(Silence::Malformed));
    }

    #[test]
    fn options_overflow_into_file_and_sname() {
        let mut payload = discover(&[]).to_vec().unwrap();
        payload.truncate(240);
        payload.extend([52, 1, 3, 255]);
        payload[108..112].copy_from_slice(&[53, 1, 1, 255]);
        payload[44..51].copy_from_slice(&[50, 4, 10, 100, 1, 2, 255]);
        let sent = frame(&payload, Ipv4Addr::BROADCAST);
        let request = parse(&sent).unwrap();
        assert_eq!((request.kind, request.requested), (Kind::Discover, Some(ADDRESS)));
    }

    #[test]
    fn bootp_needs_no_options_and_no_cookie() {
        let payload = bare().to_vec().unwrap();
        for length in [236, 240] {
            let sent = frame(&payload[..length], Ipv4Addr::BROADCAST);
            let request = parse(&sent).unwrap();
            assert_eq!(request.kind, Kind::Bootp, "{length} bytes");
        }
        let mut zeros = payload;
        zeros.truncate(236);
        zeros.resize(300, 0);
        assert_eq!(parse(&frame(&zeros, Ipv4Addr::BROADCAST)).unwrap().kind, Kind::Bootp);
    }

    #[test]
    fn text_that_is_not_utf8_does_not_hide_what_follows() {
        let sent = with_options(&[12, 2, 0xff, 0xfe, 53, 1, 3, 50, 4, 10, 100, 1, 2]);
        let request = parse(&sent).unwrap();
        assert_eq!((request.kind, request.requested), (Kind::Request, Some(ADDRESS)));
    }

    proptest! {
        #[test]
        fn any_options_are_read_or_refused(options in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&with_options(&options));
        }
    }
}
