//! Which options a reply carries, in the order of their need. PURE. In: the answer, the request, what the guest can be told.
//! Out: codes and data, one after the other.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{Answer, Request, Told};

/// What a client that names no options is sent, as far as it is set.
const UNASKED: [u8; 8] = [6, 12, 15, 26, 28, 42, 66, 67];
const REFUSAL: &[u8] = b"this address is not reserved for this MAC";

/// The options of `answer` in the order of their need: what does not fit is left out from the end. Requested ones follow in
/// the client's order (RFC 2132 section 9.8).
pub(super) fn options(
    answer: Answer,
    request: &Request<'_>,
    told: &Told,
    fqdn: Option<&[u8]>,
    put: &mut dyn FnMut(u8, &[u8]),
) {
    let tell = |code: u8, put: &mut dyn FnMut(u8, &[u8])| {
        if let Some(data) = told.get(code) {
            put(code, data);
        }
    };
    // RFC 2131 table 3 says which message may carry what; BOOTP knows none of these (RFC 1534 section 2).
    if let Some(message_type) = message_type(answer) {
        put(53, &[message_type]);
        tell(54, put);
    }
    if answer == Answer::RapidAck {
        put(80, &[]);
    }
    if matches!(answer, Answer::Offer | Answer::Ack | Answer::RapidAck) {
        for code in [51, 58, 59] {
            tell(code, put);
        }
    }
    // RFC 6842 section 3: echoed as sent, in every reply.
    if let (Some(id), true) = (&request.client_id, answer != Answer::Bootp) {
        put(61, id);
    }
    if answer == Answer::Nak {
        return put(56, REFUSAL);
    }
    // Always, and in this order (RFC 2132 section 3.3).
    for code in [1, 3] {
        tell(code, put);
    }

    let mut done = [0u64; 4];
    for code in request.parameters.as_deref().unwrap_or(&UNASKED) {
        // A list that repeats itself does not repeat its options.
        let (word, bit) = (usize::from(code >> 6), 1 << (code & 63));
        if done[word] & bit == 0 && !matches!(code, 1 | 3 | 51 | 54 | 58 | 59) {
            done[word] |= bit;
            tell(*code, put);
        }
    }
    if let Some(fqdn) = fqdn {
        put(81, fqdn);
    }
}

fn message_type(answer: Answer) -> Option<u8> {
    match answer {
        Answer::Offer => Some(2),
        Answer::Ack | Answer::RapidAck | Answer::Inform => Some(5),
        Answer::Nak => Some(6),
        Answer::Bootp => None,
    }
}

/// The answer to a client's option 81: the name that it has, and who serves it (RFC 4702 sections 2.1 and 4).
pub(super) fn fqdn(request: &Request<'_>, told: &Told) -> Option<Vec<u8>> {
    const SERVER_UPDATES: u8 = 1;
    const OVERRIDDEN: u8 = 2;
    const CANONICAL: u8 = 4;
    const NO_UPDATE: u8 = 8;
    let asked = *request.fqdn.as_deref()?.first()?;
    let flags = if told.name_served { SERVER_UPDATES } else { NO_UPDATE };
    let overridden = if (asked ^ flags) & SERVER_UPDATES == 0 { 0 } else { OVERRIDDEN };
    // RCODE1 and RCODE2 are 255 for clients that still read them.
    let mut data = vec![flags | overridden | asked & CANONICAL, 255, 255];
    if asked & CANONICAL == 0 {
        data.extend(told.full_name.bytes());
    } else {
        for label in told.full_name.split('.') {
            data.push(label.len() as u8);
            data.extend(label.bytes());
        }
        data.push(0);
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use dhcproto::v4::{DhcpOption, OptionCode};

    use super::super::fixture::{GATEWAY, LEASE, Lab, discover, network, parameters, with};
    use crate::model::{DnsMode, Network, Upstream};

    #[test]
    fn a_guest_is_told_the_facts_of_its_binding() {
        let offer = Lab::new().answer(&discover(&[parameters(&[1, 3, 6, 12, 15, 26, 28, 119, 121])]));
        let told = |code: u8| offer.option(code).unwrap_or_else(|| panic!("option {code}")).clone();
        assert_eq!(told(1), DhcpOption::SubnetMask([255, 255, 0, 0].into()));
        assert_eq!(told(3), DhcpOption::Router(vec![GATEWAY]));
        assert_eq!(told(6), DhcpOption::DomainNameServer(vec![GATEWAY]));
        assert_eq!(told(12), DhcpOption::Hostname("web-1".into()));
        assert_eq!(told(15), DhcpOption::DomainName("vm.internal".into()));
        assert_eq!(told(26), DhcpOption::InterfaceMtu(1500));
        assert_eq!(told(28), DhcpOption::BroadcastAddr([10, 100, 255, 255].into()));
        assert_eq!(told(51), DhcpOption::AddressLeaseTime(LEASE));
        assert_eq!(told(54), DhcpOption::ServerIdentifier(GATEWAY));
        assert_eq!(told(58), DhcpOption::Renewal(LEASE / 2));
        assert_eq!(told(59), DhcpOption::Rebinding(LEASE / 8 * 7));
        let DhcpOption::DomainSearch(search) = told(119) else { panic!("option 119") };
        assert_eq!(search[0].to_string(), "vm.internal.");
        let DhcpOption::ClasslessStaticRoute(routes) = told(121) else { panic!("option 121") };
        assert_eq!((routes[0].0.to_string(), routes[0].1), ("0.0.0.0/0".to_owned(), GATEWAY));
    }

    #[test]
    fn the_parameter_list_is_honoured_in_its_order_and_the_essentials_always_come() {
        let codes = |options: &[DhcpOption]| Lab::new().answer(&discover(options)).codes;
        assert_eq!(codes(&[]), [53, 54, 51, 58, 59, 1, 3, 6, 12, 15, 26, 28], "no list, no 119 and 121");
        assert_eq!(codes(&[parameters(&[42, 28, 6])]), [53, 54, 51, 58, 59, 1, 3, 28, 6]);
        assert_eq!(codes(&[parameters(&[6; 255])]), [53, 54, 51, 58, 59, 1, 3, 6], "asked 255 times");
        assert_eq!(codes(&[parameters(&[121, 3])]), [53, 54, 51, 58, 59, 1, 3, 121]);
    }

    #[test]
    fn with_dns_off_a_guest_is_told_the_ipv4_upstreams() {
        let upstreams =
            |list: &[&str]| -> Vec<Upstream> { list.iter().map(|ip| ip.parse().unwrap()).collect() };
        let off = |upstreams| Network { dns: DnsMode::Off, upstreams, ..network() };
        let offer = Lab::on(off(upstreams(&["2001:db8::1", "8.8.8.8", "8.8.4.4"]))).answer(&discover(&[]));
        let servers = vec![Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(8, 8, 4, 4)];
        assert_eq!(offer.option(6), Some(&DhcpOption::DomainNameServer(servers)));
        let offer = Lab::on(off(upstreams(&["2001:db8::1"]))).answer(&discover(&[]));
        assert_eq!(offer.option(6), None);
    }

    #[test]
    fn a_guests_own_options_go_before_its_networks() {
        let mut lab = with(
            r#"
                ntp_servers = ["10.100.0.1"]
                captive_portal = "http://10.100.0.1/portal"
                domain_search = ["corp.example"]
                static_routes = ["10.1.0.0/16 via 10.100.0.9"]
                ipv6_only_seconds = 300
                vendor_identifying = "00000137020161"
                raw = { 252 = "01", 253 = "02" }
            "#,
            r#"ntp_servers = ["10.100.0.8", "10.100.0.9"]
               vendor_specific = "0102"
               raw = { 253 = "03" }"#,
        );
        let offer = lab.answer(&discover(&[parameters(&[42, 43, 108, 114, 119, 121, 125, 252, 253])]));
        let told = |code: u8| offer.option(code).unwrap_or_else(|| panic!("option {code}")).clone();
        assert_eq!(told(42), DhcpOption::NtpServers(vec![[10, 100, 0, 8].into(), [10, 100, 0, 9].into()]));
        assert_eq!(offer.raw(43).unwrap(), [1, 2]);
        assert_eq!(offer.raw(108).unwrap(), 300u32.to_be_bytes());
        assert_eq!(offer.raw(114).unwrap(), b"http://10.100.0.1/portal");
        assert_eq!(offer.raw(125).unwrap(), [0, 0, 1, 0x37, 2, 1, 0x61]);
        assert_eq!((offer.raw(252).unwrap(), offer.raw(253).unwrap()), (vec![1], vec![3]));
        let DhcpOption::DomainSearch(search) = told(119) else { panic!("option 119") };
        let search: Vec<String> = search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["vm.internal.", "corp.example."]);
        let DhcpOption::ClasslessStaticRoute(routes) = told(121) else { panic!("option 121") };
        let routes: Vec<String> = routes.iter().map(|(to, via)| format!("{to} via {via}")).collect();
        assert_eq!(routes, ["10.1.0.0/16 via 10.100.0.9", "0.0.0.0/0 via 10.100.0.1"]);
        // Whoever asks for none of them is sent none, but for the time servers.
        assert_eq!(lab.answer(&discover(&[])).codes, [53, 54, 51, 58, 59, 1, 3, 6, 12, 15, 26, 28, 42]);
    }

    #[test]
    fn a_wished_name_is_answered_with_the_name_that_the_guest_has() {
        let fqdn = |flags: u8, name: &[u8]| {
            let data = [&[flags, 0, 0], name].concat();
            DhcpOption::Unknown(dhcproto::v4::UnknownOption::new(OptionCode::ClientFQDN, data))
        };
        // As text, and in DNS wire form (E); who updates the DNS is said as RFC 4702 section 4 wants it.
        let offer = Lab::new().answer(&discover(&[fqdn(0, b"evil.example")]));
        assert_eq!(offer.raw(81).unwrap(), b"\x03\xff\xffweb-1.vm.internal");
        let offer = Lab::new().answer(&discover(&[fqdn(5, b"\x04evil\x00")]));
        assert_eq!(offer.raw(81).unwrap(), b"\x05\xff\xff\x05web-1\x02vm\x08internal\x00");
        let off = Network { dns: DnsMode::Off, ..network() };
        for (asked, told) in [(1, 0b1010), (0, 0b1000), (8, 0b1000)] {
            let offer = Lab::on(off.clone()).answer(&discover(&[fqdn(asked, b"evil")]));
            assert_eq!(offer.raw(81).unwrap()[0], told, "S=0 here; O says where that is another answer");
        }
        assert_eq!(Lab::new().answer(&discover(&[])).raw(81), None);
    }
}
