//! Which options a reply carries, most needed first: the one list of what a guest gets in its lease. PURE. In: the answer,
//! the request, the binding. Out: dhcproto options in the order they are written.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use dhcproto::v4::{DhcpOption, MessageType};
use hickory_proto::rr::Name;

use super::{Answer, Request};
use crate::model::GuestNet;
use crate::registry::Binding;

/// What a client that names no options is sent.
const UNASKED: [u8; 5] = [6, 12, 15, 26, 28];

/// The options of `answer` in the order of their need: what does not fit is left out from the end. Requested ones follow in
/// the client's order (RFC 2132 section 9.8).
pub(super) fn options(answer: Answer, request: &Request, binding: &Binding) -> Vec<DhcpOption> {
    let guest = &binding.guest;
    let mut options = Vec::with_capacity(16);
    // RFC 2131 table 3 says which message may carry what; BOOTP knows none of these (RFC 1534 section 2).
    if let Some(message_type) = message_type(answer) {
        options.push(DhcpOption::MessageType(message_type));
        options.push(DhcpOption::ServerIdentifier(guest.gateway));
    }
    if answer == Answer::RapidAck {
        options.push(DhcpOption::RapidCommit);
    }
    if matches!(answer, Answer::Offer | Answer::Ack | Answer::RapidAck) {
        options.extend(times(binding.network.lease_seconds));
    }
    // RFC 6842 section 3: echoed as sent, in every reply.
    if let (Some(id), true) = (&request.client_id, answer != Answer::Bootp) {
        options.push(DhcpOption::ClientIdentifier(id.clone()));
    }
    if answer == Answer::Nak {
        options.push(DhcpOption::Message("this address is not reserved for this MAC".to_owned()));
        return options;
    }
    // Always, and in this order (RFC 2132 section 3.3).
    options.push(DhcpOption::SubnetMask(guest.subnet.netmask()));
    options.push(DhcpOption::Router(vec![guest.gateway]));

    let mut done = [false; 256];
    for code in request.parameters.as_deref().unwrap_or(&UNASKED) {
        // A list that repeats itself does not repeat its options.
        if !std::mem::replace(&mut done[usize::from(*code)], true) {
            options.extend(on_request(*code, guest));
        }
    }
    options
}

fn message_type(answer: Answer) -> Option<MessageType> {
    match answer {
        Answer::Offer => Some(MessageType::Offer),
        Answer::Ack | Answer::RapidAck | Answer::Inform => Some(MessageType::Ack),
        Answer::Nak => Some(MessageType::Nak),
        Answer::Bootp => None,
    }
}

/// Lease time, T1 = 0.5 and T2 = 0.875 of it (RFC 2131 section 4.4.5). A lease without end is not renewed.
fn times(seconds: u32) -> Vec<DhcpOption> {
    let mut times = vec![DhcpOption::AddressLeaseTime(seconds)];
    if seconds != u32::MAX {
        times.push(DhcpOption::Renewal(seconds / 2));
        times.push(DhcpOption::Rebinding(seconds - seconds / 8));
    }
    times
}

/// An address fact under its code, if there is one. Mask and router are not here: they are sent in any case.
fn on_request(code: u8, guest: &GuestNet) -> Option<DhcpOption> {
    match code {
        6 => {
            let servers: Vec<Ipv4Addr> = guest.dns_servers.iter().filter_map(ipv4).collect();
            (!servers.is_empty()).then_some(DhcpOption::DomainNameServer(servers))
        }
        // From the API, not from the guest.
        12 => Some(DhcpOption::Hostname(guest.hostname.to_string())),
        15 => Some(DhcpOption::DomainName(guest.domain.to_string())),
        26 => Some(DhcpOption::InterfaceMtu(guest.mtu)),
        28 => Some(DhcpOption::BroadcastAddr(guest.subnet.broadcast())),
        119 => {
            let mut name = Name::from_str(guest.domain.as_str()).ok()?;
            name.set_fqdn(true);
            Some(DhcpOption::DomainSearch(vec![name]))
        }
        // A client that takes this option ignores the router option, so the default route is in it (RFC 3442).
        121 => Some(DhcpOption::ClasslessStaticRoute(vec![(Default::default(), guest.gateway)])),
        _ => None,
    }
}

/// Option 6 has room for IPv4 only; servers of the other family are left out.
fn ipv4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}
