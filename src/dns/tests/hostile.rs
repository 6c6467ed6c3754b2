//! Bytes of any kind.

use super::*;

/// Bytes of any kind, and queries with a few bytes changed: these get further.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let near = (any::<bool>(), prop::collection::vec((0_usize..60, any::<u8>()), 0..4), 0_usize..60);
    let near = near.prop_map(|(edns, changes, cut)| {
        let plain = question("www.example.com.", RecordType::A);
        let query = if edns { with_edns(plain, 1232, true) } else { plain };
        let mut bytes = query.to_vec().unwrap();
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(bytes.len().max(cut) - cut.min(bytes.len()) / 8);
        bytes
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..600), near]
}

#[test]
fn no_bytes_stop_the_server() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let upstream = runtime.block_on(Upstream::prompt());
    let server = forwarding(&[&upstream]);
    proptest!(ProptestConfig::with_cases(64), |(messages in prop::collection::vec(hostile(), 1..32))| {
        runtime.block_on(async {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            for message in &messages {
                socket.send_to(message, server.local_addr()).await.unwrap();
            }
            let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
            for message in &messages {
                // Closed by the server at the first that is no query.
                let length = u16::try_from(message.len()).unwrap();
                if stream.write_u16(length).await.is_err() || stream.write_all(message).await.is_err() {
                    break;
                }
            }
            assert_eq!(addresses(&lookup(&server, "gateway.vm.internal.").await).len(), 1);
        });
    });
}

#[tokio::test]
async fn loops_and_names_that_are_too_long_are_format_errors() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let header = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0";
    let tail = b"\0\x01\0\x01";
    let long = [[1, b'a'].repeat(255), vec![0]].concat();
    for name in [
        &b"\xc0\x0c"[..], // to itself
        b"\x01a\xc0\x0c", // to its own start
        b"\xc0\x00",      // into the header
        b"\xff\xff",      // behind the end
        &long,            // 255 labels
        b"\x3fab\0",      // a label that goes on behind the end
        b"\x40a\0",       // a label type that nobody uses
    ] {
        let query = [header, name, tail].concat();
        let answer = exchange(&server, &query).await;
        assert_eq!((&answer[..2], answer[3] & 0xf), (&query[..2], 1), "{name:?}");
    }
    assert_eq!((upstream.seen(), addresses(&lookup(&server, "gateway.vm.internal.").await).len()), (0, 1));
}
