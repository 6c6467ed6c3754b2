//! Queueing disciplines: the two-way redirect between a VM's veth and its TAP, and the token buckets that limit it.

use netlink_packet_core::DefaultNla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use futures_util::StreamExt;

use crate::model::RateMbps;

/// ETH_P_ALL in network byte order, as the filter's protocol wants it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Sends every frame that comes in on `from` out on `to`: what a guest writes to its TAP leaves by the veth and the
/// other way round. matchall would be simpler; u32 with an empty match is what every kernel has.
pub(super) async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), rtnetlink::Error> {
    let ingress = || handle.qdisc().add(from as i32).ingress().execute();
    match ingress().await {
        // A TAP that outlived its veth still has the redirect to the old one.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {
            let mut old = TcMessage::with_index(from as i32);
            old.header.parent = TcHandle::INGRESS;
            let mut delete = handle.qdisc().del(from as i32);
            *delete.message_mut() = old;
            delete.execute().await?;
            ingress().await?;
        }
        other => other?,
    }
    handle
        .traffic_filter(from as i32)
        .add()
        .parent(u32::from(TcHandle { major: 0xffff, minor: 0 }))
        .priority(1)
        .protocol(ALL_PROTOCOLS)
        .redirect(to)?
        .execute()
        .await
}

/// A token bucket filter as `device`'s root qdisc (tc-tbf(8)); replaces the one that is there, without a gap.
pub(super) async fn limit(handle: &Handle, device: u32, rate: RateMbps) -> Result<(), rtnetlink::Error> {
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes.push(TcAttribute::Kind("tbf".into()));
    message.attributes.push(TcAttribute::Options(token_bucket(rate)));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

// include/uapi/linux/pkt_sched.h
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// Bytes that may pass at once: four whole GSO packets, or two milliseconds of a fast guest's rate.
fn burst(rate: RateMbps) -> u32 {
    let two_milliseconds = rate.bytes_per_second() / 500;
    two_milliseconds.max(256 * 1024).min(u32::MAX.into()) as u32
}

/// Bytes that may wait: fifty milliseconds' worth.
fn queue_limit(rate: RateMbps) -> u32 {
    let fifty_milliseconds = rate.bytes_per_second() / 20 + u64::from(burst(rate));
    fifty_milliseconds.min(u32::MAX.into()) as u32
}

fn token_bucket(rate: RateMbps) -> Vec<TcOption> {
    let bytes_per_second = rate.bytes_per_second();
    // struct tc_tbf_qopt: two struct tc_ratespec of 12 bytes (rate, peak), then limit, buffer, mtu as u32. The rate
    // stands in full in TCA_TBF_RATE64 and the bucket in TCA_TBF_BURST; an Ethernet link layer needs no rate table.
    let mut parameters = [0_u8; 36];
    parameters[1] = TC_LINKLAYER_ETHERNET;
    parameters[8..12].copy_from_slice(&u32::try_from(bytes_per_second).unwrap_or(u32::MAX).to_ne_bytes());
    parameters[24..28].copy_from_slice(&queue_limit(rate).to_ne_bytes());
    vec![
        TcOption::Other(DefaultNla::new(TCA_TBF_PARMS, parameters.to_vec())),
        TcOption::Other(DefaultNla::new(TCA_TBF_RATE64, bytes_per_second.to_ne_bytes().to_vec())),
        TcOption::Other(DefaultNla::new(TCA_TBF_BURST, burst(rate).to_ne_bytes().to_vec())),
    ]
}
