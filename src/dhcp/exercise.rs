//! The whole way of a frame, bytes to bytes, for fuzzers and the replay of their corpus. In: any bytes. Out: nothing, or a
//! panic that says which promise about replies was broken.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "for fuzzers and tests only")]

use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::{L4Checksum, Outcome, Record, Request, Told, checksum, decide, write_reply};
use crate::config::Config;
use crate::model::{DhcpOptions, GuestNet, Mac, Network};
use crate::registry::Reserved;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 100, 1, 2);

/// Two networks: one with few options and one with more than a reply has room for.
fn networks() -> &'static [Arc<Network>] {
    static NETWORKS: OnceLock<Vec<Arc<Network>>> = OnceLock::new();
    NETWORKS.get_or_init(|| {
        let (long, short) = ("aa".repeat(600), "bb".repeat(100));
        let many = format!(
            r#"ntp_servers = ["10.100.0.1"], bootfile_name = "vmlinuz", domain_search = ["corp.example"],
               static_routes = ["10.1.0.0/16 via 10.100.0.9"], raw = {{ 224 = "{long}", 225 = "{short}" }}"#
        )
        .replace('\n', " ");
        let network = |options: &str| {
            let text = format!("[[network]]\nplumbing = \"external\"\ndhcp_options = {{ {options} }}");
            Config::from_parts(Some(&text), |_| None).unwrap().networks[0].clone()
        };
        vec![network(""), network(&many)]
    })
}

/// Serves a frame as it is, and with what would end its way early mended: a fuzzer finds no checksum by chance. Panics when
/// a reply is not whole.
pub fn exercise(frame: &[u8]) {
    serve(frame);
    if let Some(mended) = mended(frame) {
        serve(&mended);
    }
}

/// The frame with lengths that fit it, its IP checksum, and its client's MAC as its source where no relay agent sent it.
fn mended(frame: &[u8]) -> Option<Vec<u8>> {
    const CHADDR: Range<usize> = 70..76;
    const GIADDR: Range<usize> = 66..70;
    let mut frame = frame.to_vec();
    frame.get(CHADDR)?;
    if frame[GIADDR] == [0; 4] {
        frame.copy_within(CHADDR, 6);
    }
    let header = usize::from(frame[14] & 15) * 4;
    let datagram = frame.len().checked_sub(14 + header)?;
    if header < 20 || datagram < 8 {
        return None;
    }
    let length = |length: usize| (length as u16).to_be_bytes();
    frame[16..18].copy_from_slice(&length(header + datagram));
    frame[14 + header + 4..14 + header + 6].copy_from_slice(&length(datagram));
    frame[24..26].fill(0);
    let sum = checksum::internet(&[&frame[14..14 + header]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}

/// On both networks, by whoever it is.
fn serve(frame: &[u8]) {
    for network in networks() {
        let Ok(request) = Request::parse(frame, L4Checksum::LeftToOffload) else { return };
        let options = DhcpOptions::default();
        let guest = GuestNet::of(network, request.mac, ADDRESS, "web-1".parse().unwrap(), &options);
        let network = network.clone();
        let reserved = Reserved { network, guest, options, vm_id: None, workspace: None };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut record = Record::default();
        let outcome = decide(&request, &reserved, &record, now);
        record.note(&request, outcome, ADDRESS, 3600, now);
        let Outcome::Reply(answer) = outcome else { continue };
        let mut reply = Vec::new();
        let server = Mac::for_address(GATEWAY);
        write_reply(&mut reply, &request, &reserved, &Told::new(&reserved), answer, server);
        check(&reply, &request);
    }
}

/// What is true of every reply: lengths, checksums, header, options that are whole and end with End, in every area.
fn check(frame: &[u8], request: &Request<'_>) {
    let (ip, udp, bootp) = (&frame[14..], &frame[34..], &frame[42..]);
    assert!(frame.len() <= 1514, "longer than a frame");
    assert_eq!(frame[12..14], [8, 0]);
    assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len(), "IP length");
    assert_eq!(checksum::internet(&[&ip[..20]]), 0, "IP checksum");
    assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), udp.len(), "UDP length");
    let destination = Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]);
    assert_eq!(checksum::udp(GATEWAY, destination, udp), 0, "UDP checksum");
    assert!(bootp.len() >= 300, "shorter than BOOTP");
    assert_eq!(bootp[..4], [2, 1, 6, 0], "op, htype, hlen, hops");
    assert_eq!(bootp[4..8], request.xid.to_be_bytes(), "transaction");
    assert_eq!(bootp[28..34], request.mac.octets(), "chaddr");
    let yiaddr = &bootp[16..20];
    assert!(yiaddr == ADDRESS.octets() || yiaddr == [0; 4], "yiaddr");
    let overload = options(&bootp[240..]);
    if overload & 1 != 0 {
        options(&bootp[108..236]);
    }
    if overload & 2 != 0 {
        options(&bootp[44..108]);
    }
}

/// The value of option 52.
fn options(mut area: &[u8]) -> u8 {
    let mut overload = 0;
    loop {
        match area {
            [255, rest @ ..] => {
                assert!(rest.iter().all(|byte| *byte == 0), "after End");
                return overload;
            }
            [code, length, rest @ ..] => {
                let data = &rest[..usize::from(*length)];
                if *code == 52 {
                    overload = data[0];
                }
                area = &rest[usize::from(*length)..];
            }
            _ => panic!("no End"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::{
        GATEWAY, agent, bare, broadcast, discover, init_reboot, message, renewing, selecting,
    };
    use super::*;

    /// One frame of every kind, as clients send them.
    fn seeds() -> Vec<Vec<u8>> {
        use dhcproto::v4::{DhcpOption, MessageType, OptionCode};
        let wishes = [
            DhcpOption::ParameterRequestList(
                [1, 3, 6, 12, 15, 26, 28, 42, 67, 119, 121, 224, 225].map(OptionCode::from).into(),
            ),
            DhcpOption::ClientIdentifier(vec![255, 1, 2, 3, 4, 0, 1]),
            DhcpOption::ClassIdentifier(b"udhcp 1.35.0".to_vec()),
            DhcpOption::Hostname("wish".into()),
            DhcpOption::MaxMessageSize(1500),
        ];
        let mut relayed = discover(&[agent()]);
        relayed.set_giaddr([10, 100, 0, 9]).set_hops(1);
        let mut informing = message(MessageType::Inform, &wishes);
        informing.set_ciaddr(ADDRESS);
        let messages = [
            discover(&[]),
            discover(&wishes),
            discover(&[DhcpOption::RapidCommit]),
            selecting(ADDRESS, GATEWAY),
            init_reboot(ADDRESS),
            renewing(ADDRESS),
            renewing(GATEWAY),
            informing,
            message(MessageType::Decline, &[DhcpOption::RequestedIpAddress(ADDRESS)]),
            message(MessageType::Release, &[DhcpOption::ServerIdentifier(GATEWAY)]),
            bare(),
            relayed,
        ];
        messages.iter().map(broadcast).collect()
    }

    fn corpus() -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/dhcp")
    }

    /// What fuzzing found, and one frame of every kind. GUESTNET_SEED_CORPUS=1 writes those anew.
    #[test]
    fn the_corpus_gets_whole_replies_or_none() {
        if std::env::var_os("GUESTNET_SEED_CORPUS").is_some() {
            for (n, frame) in seeds().iter().enumerate() {
                std::fs::write(corpus().join(format!("seed-{n:02}")), frame).unwrap();
            }
        }
        let files: Vec<_> = std::fs::read_dir(corpus()).unwrap().flatten().collect();
        assert!(files.len() >= seeds().len(), "{} files", files.len());
        for file in files {
            exercise(&std::fs::read(file.path()).unwrap());
        }
        let answered =
            seeds().iter().filter(|frame| Request::parse(frame, L4Checksum::LeftToOffload).is_ok()).count();
        assert_eq!(answered, seeds().len(), "every seed is a request");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        /// What a fuzzer does, for a while: a frame of a client with bytes changed, cut or doubled.
        #[test]
        fn a_mutated_frame_gets_a_whole_reply_or_none(
            seed in 0usize..12,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            options in proptest::collection::vec(any::<u8>(), 0..300),
            splice in any::<bool>(),
        ) {
            let mut frame = seeds().swap_remove(seed);
            if splice && frame.len() > 285 {
                // Other options after the message type, all else as it was.
                frame.truncate(285);
                frame.extend(options);
            }
            for (at, value) in changes {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            exercise(&frame);
        }
    }
}
