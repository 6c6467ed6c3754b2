//! PURE: a question as it is sent upstream. In: the question, an id, with or without EDNS, and random bits. Out: the message.
//! Written by hand: it is one header, one name and one fixed record, and every miss pays for it.

use std::io;

use crate::dns::answer::Question;
use crate::dns::query::{CLASS_IN, HEADER, flag, qtype};
use crate::dns::reply::UDP_PAYLOAD;

/// The question under `id`. AD in a query asks for AD in the answer (RFC 6840 section 5.7); who did not want it is not told
/// (`answer`). None of the guest's EDNS options goes on: client subnet, cookies and the rest are between it and us.
pub(super) fn query(question: &Question, id: u16, edns: bool) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + 255 + 15);
    let cd = if question.checking_disabled { flag::CD } else { 0 };
    let words = [id, flag::RD | flag::AD | cd, 1, 0, 0, u16::from(edns)];
    message.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    message.extend_from_slice(question.name.as_wire());
    message.extend_from_slice(&question.qtype.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    if edns {
        // RFC 6891 section 6.1.2: root, OPT, payload, extended rcode and version, DO, no options.
        message.extend_from_slice(&[0, 0, qtype::OPT as u8]);
        message.extend_from_slice(&UDP_PAYLOAD.to_be_bytes());
        message.extend_from_slice(&[0, 0, u8::from(question.dnssec_ok) << 7, 0, 0, 0]);
    }
    message
}

/// Gives each letter of the question's name the case that the next of `bits` says, so that who guesses id and port has to
/// guess these as well (draft-vixie-dnsext-dns0x20).
pub(super) fn mix_case(message: &mut [u8], name_len: usize, bits: impl Iterator<Item = bool>) {
    let Some(name) = message.get_mut(HEADER..HEADER + name_len) else { return };
    // A length byte is at most 63 and no letter is below 65: only labels change.
    for (byte, upper) in name.iter_mut().filter(|byte| byte.is_ascii_alphabetic()).zip(bits) {
        *byte = if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
    }
}

/// A message with its length before it (RFC 1035 section 4.2.2), to be sent in one write (RFC 7766 section 8).
pub(super) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes()[..], message].concat())
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;

    use super::*;
    use crate::dns::name::Name;

    fn question() -> Question {
        let name = Name::from_text("www.example.com").unwrap();
        Question { name, qtype: 28, dnssec_ok: true, checking_disabled: true }
    }

    #[test]
    fn a_question_is_read_back_as_it_was_meant() {
        let message = Message::from_vec(&query(&question(), 7, true)).unwrap();
        assert_eq!(
            (message.metadata.id, message.queries[0].to_string()),
            (7, "www.example.com. IN AAAA".into())
        );
        assert!(message.metadata.recursion_desired && message.metadata.checking_disabled);
        let edns = message.edns.unwrap();
        assert!(edns.flags().dnssec_ok && edns.max_payload() == 1232 && edns.options().as_ref().is_empty());
        assert!(Message::from_vec(&query(&question(), 7, false)).unwrap().edns.is_none());
    }

    #[test]
    fn only_letters_change_their_case() {
        let mut message = query(&question(), 7, true);
        let name_len = question().name.as_wire().len();
        mix_case(&mut message, name_len, [true, false].into_iter().cycle());
        assert_eq!(&message[HEADER..HEADER + name_len], b"\x03WwW\x07eXaMpLe\x03CoM\0");
    }
}
