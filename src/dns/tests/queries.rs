//! What is not a plain question.

use super::*;

#[tokio::test]
async fn odd_queries_get_the_code_their_rfc_names() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let rcode = async |message: Message| ask(&server, message).await.metadata.response_code;

    let mut chaos = Message::query();
    let mut version = Query::query(name("version.bind."), RecordType::TXT);
    version.set_query_class(DNSClass::CH);
    chaos.add_query(version);
    assert_eq!(rcode(chaos).await, ResponseCode::Refused);

    let mut status = question("www.example.com.", RecordType::A);
    status.metadata.op_code = OpCode::Notify;
    assert_eq!(rcode(status).await, ResponseCode::NotImp);

    let mut two = question("www.example.com.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(rcode(two).await, ResponseCode::FormErr);
    assert_eq!(rcode(Message::query()).await, ResponseCode::FormErr);

    assert_eq!(rcode(question("example.com.", RecordType::AXFR)).await, ResponseCode::Refused);

    let mut cautious = question("www.example.com.", RecordType::A);
    cautious.metadata.recursion_desired = false;
    assert_eq!(rcode(cautious).await, ResponseCode::Refused);

    let mut version_1 = with_edns(question("www.example.com.", RecordType::A), 1232, false);
    version_1.edns.as_mut().unwrap().set_version(1);
    let bytes = exchange(&server, &version_1.to_vec().unwrap()).await;
    let answer = Message::from_vec(&bytes).unwrap();
    // BADVERS is 16: its low bits in the header are 0, its high bits in an OPT record of version 0.
    assert_eq!((bytes[3] & 0xf, answer.edns.as_ref().unwrap().rcode_high()), (0, 1));
    assert_eq!(answer.edns.unwrap().version(), 0);

    let any = ask(&server, question("www.example.com.", RecordType::ANY)).await;
    assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
    assert_eq!(upstream.seen(), 0);
}

#[tokio::test]
async fn a_response_is_not_answered_and_the_next_query_is() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.local_addr()).await.unwrap();
    let echo = question("web.vm.internal.", RecordType::A).into_response();
    let query = question("gateway.vm.internal.", RecordType::A);
    socket.send(&echo.to_vec().unwrap()).await.unwrap();
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, query.metadata.id);
    assert_eq!(server.counters().dropped, 1);
}

#[tokio::test]
async fn who_is_no_guest_of_the_network_is_refused() {
    let upstream = Upstream::prompt().await;
    let endpoints = DnsEndpoints { guests_only: true, ..endpoints(&[upstream.address]) };
    let server = start_with(network("default"), Registry::default(), &endpoints);
    let answer = lookup(&server, "gateway.vm.internal.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert!(answer.answers.is_empty());
}

#[tokio::test]
async fn a_record_nobody_knows_beside_the_question_changes_no_answer() {
    let upstream = Upstream::that(|asked| now(asked.code(ResponseCode::ServFail))).await;
    let server = forwarding(&[&upstream]);
    for (owner, rcode) in [("gateway.vm.internal.", 0), ("www.example.com.", 2)] {
        let mut bytes = question(owner, RecordType::A).to_vec().unwrap();
        bytes[11] = 1;
        // Of type 0 and class 0, with twelve bytes of data.
        bytes.extend_from_slice(b"\0\0\0\0\0\0\0\0\0\0\x0c\0\x0a\0\x08\x01\x02\x03\x04\x05\x06\x07\x08");
        let answer = exchange(&server, &bytes).await;
        assert_eq!((answer[3] & 0xf, answer[5]), (rcode, 1), "{owner}");
    }
}

/// A query without a question, with a cookie of these bytes.
fn cookie_query(cookie: &[u8]) -> Vec<u8> {
    let mut query = b"\x12\x34\x01\0\0\0\0\0\0\0\0\x01\0\0\x29\x04\xd0\0\0\0\0\0".to_vec();
    query.extend([cookie.len() as u8 + 4, 0, 10, 0, cookie.len() as u8]);
    query.extend_from_slice(cookie);
    query
}

/// RFC 7873 section 5.4.
#[tokio::test]
async fn who_asks_for_a_cookie_alone_gets_it_and_is_told_whether_one_is_good() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let cookie = async |bytes: &[u8]| {
        let answer = Message::from_vec(&exchange(&server, &cookie_query(bytes)).await).unwrap();
        assert!(answer.queries.is_empty() && answer.answers.is_empty());
        let edns = answer.edns.as_ref().unwrap();
        let cookie = match edns.options().as_ref().first() {
            Some((code, EdnsOption::Unknown(_, cookie))) if u16::from(*code) == 10 => cookie.clone(),
            other => panic!("no cookie: {other:?}"),
        };
        (answer.metadata.response_code, cookie)
    };
    let (rcode, ours) = cookie(&[7; 8]).await;
    assert_eq!((rcode, ours.len(), &ours[..8]), (ResponseCode::NoError, 24, &[7; 8][..]));
    assert_eq!(cookie(&ours).await, (ResponseCode::NoError, ours.clone()));
    let mut other = ours.clone();
    other[20] ^= 1;
    assert_eq!(cookie(&other).await, (ResponseCode::BADCOOKIE, ours.clone()));
    assert_eq!(cookie(&ours[..20]).await, (ResponseCode::BADCOOKIE, ours.clone()));
    // Another client's part of it is not good for this one.
    let mut stolen = ours;
    stolen[..8].fill(9);
    assert_eq!(cookie(&stolen).await.0, ResponseCode::BADCOOKIE);
    // A question that brings a bad one is answered all the same (section 5.2.3), as nothing here depends on it.
    let mut query = with_edns(question("gateway.vm.internal.", RecordType::A), 1232, false);
    query.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(10, other));
    assert_eq!(addresses(&ask(&server, query).await).len(), 1);
}
