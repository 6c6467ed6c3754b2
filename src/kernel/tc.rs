//! Queueing disciplines: the two-way redirect between a slot's veth and its TAP, and the token buckets that limit it.

use std::io;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use netlink_sys::Socket;

use super::error::gone_is_fine;
use super::raw::{attribute, several};
use super::rtnl::{Request, Rtnl};
use crate::model::RateLimit;
use crate::plan::ObservedLimit;

/// ETH_P_ALL in network byte order, as the filter's protocol wants it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
/// The ingress qdisc's handle, ffff:.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// A filter's priority, and the protocol of what it matches.
const FILTER_INFO: TcHandle = TcHandle { major: 1, minor: ALL_PROTOCOLS };
/// What the kernel gives the first filter: table 800:, entry 800.
const FIRST_FILTER: u32 = 0x8000_0800;

/// Takes the redirect of what comes in on `from` away, if there is one.
pub(super) fn remove_redirect(rtnl: &mut Rtnl, from: u32) -> io::Result<()> {
    let mut ingress = TcMessage::with_index(from as i32);
    ingress.header.parent = TcHandle::INGRESS;
    match rtnl.request(0, RouteNetlinkMessage::DelQueueDiscipline(ingress)) {
        // A device that never had one: EINVAL.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => gone_is_fine(other),
    }
}

/// Sends every frame that comes in on `from` out on `to`: what a guest writes to its TAP leaves by the veth and the
/// other way round. matchall would be simpler; u32 with an empty match is what every kernel has.
pub(super) fn redirect(from: u32, to: u32) -> [Request; 2] {
    let mut ingress = TcMessage::with_index(from as i32);
    ingress.header.parent = TcHandle::INGRESS;
    ingress.header.handle = INGRESS;
    ingress.attributes.push(TcAttribute::Kind("ingress".into()));

    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut filter = TcMessage::with_index(from as i32);
    filter.header.parent = INGRESS;
    filter.header.info = u32::from(FILTER_INFO);
    filter.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    let new = NLM_F_CREATE | NLM_F_EXCL;
    [
        Request::new(new, RouteNetlinkMessage::NewQueueDiscipline(ingress)),
        Request::new(new, RouteNetlinkMessage::NewTrafficFilter(filter)),
    ]
}

/// Whether every frame that comes in on one of each two goes out on the other, as `redirect` has it both ways. In the socket's namespace.
/// Each filter is asked for by the handle that the kernel has given it, both at once: a dump of each takes twice as long.
pub(super) fn are_redirected<const N: usize>(
    socket: &mut Socket,
    ways: [(u32, u32); N],
) -> io::Result<[bool; N]> {
    // struct tcmsg, and TCA_KIND, which has the kernel ask no module.
    let kind = [&8_u16.to_ne_bytes()[..], &TCA_KIND.to_ne_bytes(), b"u32\0"].concat();
    let filter = |(from, _): (u32, u32)| {
        let numbers = [from, FIRST_FILTER, INGRESS.into(), FILTER_INFO.into()];
        [&[0; 4][..], &numbers.map(u32::to_ne_bytes).concat(), &kind].concat()
    };
    let filters = ways.map(filter);
    let asked = filters.each_ref().map(Vec::as_slice);
    let answers = several(socket, 1, RTM_GETTFILTER, asked, RTM_NEWTFILTER, redirects_to)?;
    let mut redirected = [false; N];
    for ((redirected, answer), (_, to)) in redirected.iter_mut().zip(answers).zip(ways) {
        *redirected = match answer {
            // No such filter, no ingress queue, no such device.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) =>
            {
                false
            }
            answer => answer? == Some(to),
        };
    }
    Ok(redirected)
}

/// Where a u32 filter's first action sends what it matches.
fn redirects_to(message: &[u8]) -> Option<u32> {
    let attributes = message.get(20..)?;
    let actions = attribute(attribute(attributes, TCA_OPTIONS)?, TCA_U32_ACT)?;
    let options = attribute(attribute(actions, FIRST_ACTION)?, TCA_ACT_OPTIONS)?;
    // struct tc_mirred: five numbers that all actions have, what to do, with which device.
    let mirred = attribute(options, TCA_MIRRED_PARMS)?;
    let number = |at: usize| Some(u32::from_ne_bytes(*mirred.get(at..)?.first_chunk()?));
    (number(20)? == TCA_EGRESS_REDIR).then(|| number(24))?
}

/// A token bucket filter as `device`'s root qdisc (tc-tbf(8)); changes the one that is there, without a gap. Without a limit,
/// what is there goes.
pub(super) fn set_limit(rtnl: &mut Rtnl, device: u32, limit: Option<RateLimit>) -> io::Result<()> {
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = TcHandle::ROOT;
    let Some(limit) = limit else {
        // ENOENT, of a device that has a qdisc of the kernel's own making: there was no limit.
        return gone_is_fine(rtnl.request(0, RouteNetlinkMessage::DelQueueDiscipline(message)));
    };
    message.attributes.push(TcAttribute::Kind("tbf".into()));
    message.attributes.push(TcAttribute::Options(token_bucket(limit)));
    rtnl.request(NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// The token bucket that a device has as its root qdisc, if that is one.
pub(super) fn limit_of(qdisc: &TcMessage) -> Option<ObservedLimit> {
    let kind = qdisc.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    // The parser does not know tbf: its options are one attribute, as they came.
    let options = qdisc.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Other(nla) => {
                let mut value = vec![0; nla.value_len()];
                nla.emit_value(&mut value);
                Some(value)
            }
            _ => None,
        }),
        _ => None,
    })?;
    limit(kind.as_bytes(), &options)
}

/// The same of a message as it came.
pub(super) fn limit_in(message: &[u8]) -> Option<ObservedLimit> {
    let attributes = message.get(20..)?;
    limit(attribute(attributes, TCA_KIND)?, attribute(attributes, TCA_OPTIONS)?)
}

/// The limit that a qdisc of that kind is, by its options as they came.
pub(super) fn limit(kind: &[u8], options: &[u8]) -> Option<ObservedLimit> {
    if kind.strip_suffix(b"\0").unwrap_or(kind) != b"tbf" {
        return None;
    }
    let option = |wanted| attribute(options, wanted);
    let parameters = option(TCA_TBF_PARMS)?;
    let number = |at: usize| Some(u64::from(u32::from_ne_bytes(*parameters.get(at..)?.first_chunk()?)));
    let in_full = option(TCA_TBF_RATE64).and_then(|rate| Some(u64::from_ne_bytes(*rate.first_chunk()?)));
    let bytes_per_second = in_full.or(number(8))?;
    // A time in ticks of 64 ns (PSCHED_SHIFT).
    let nanoseconds = u128::from(number(28)?) * 64;
    let burst = nanoseconds * u128::from(bytes_per_second) / 1_000_000_000;
    Some(ObservedLimit { bytes_per_second, burst: u64::try_from(burst).ok()? })
}

// include/uapi/linux/rtnetlink.h, pkt_cls.h, tc_act/tc_mirred.h
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_ACT: u16 = 7;
const FIRST_ACTION: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
// include/uapi/linux/pkt_sched.h
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// Bytes that may pass at once.
fn burst(limit: RateLimit) -> u32 {
    // At most 2^30.
    limit.burst().kib() * 1_024
}

/// Bytes that may wait: fifty milliseconds' worth, and two packets that TCP has not segmented.
fn queue_limit(limit: RateLimit) -> u32 {
    let fifty_milliseconds = limit.rate.bytes_per_second() / 20;
    // At most 625,000,000.
    fifty_milliseconds.max(2 * 65_536) as u32
}

fn token_bucket(limit: RateLimit) -> Vec<TcOption> {
    let bytes_per_second = limit.rate.bytes_per_second();
    // struct tc_tbf_qopt: two struct tc_ratespec of 12 bytes (rate, peak), then limit, buffer, mtu as u32. The rate
    // stands in full in TCA_TBF_RATE64 and the bucket in TCA_TBF_BURST; an Ethernet link layer needs no rate table.
    let mut parameters = [0_u8; 36];
    parameters[1] = TC_LINKLAYER_ETHERNET;
    parameters[8..12].copy_from_slice(&u32::try_from(bytes_per_second).unwrap_or(u32::MAX).to_ne_bytes());
    parameters[24..28].copy_from_slice(&queue_limit(limit).to_ne_bytes());
    vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters.to_vec())),
        TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, bytes_per_second.to_ne_bytes().to_vec())),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst(limit).to_ne_bytes().to_vec())),
    ]
}
