//! Guests by TCP.

use super::*;

#[tokio::test]
async fn queries_on_one_connection_are_answered_out_of_order() {
    let upstream = Upstream::that(|asked| {
        let wait = if asked.name().starts_with("slow") { 300 } else { 0 };
        vec![(Duration::from_millis(wait), asked.a(300))]
    })
    .await;
    let server = forwarding(&[&upstream]);
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let (slow, fast) =
        (question("slow.example.com.", RecordType::A), question("fast.example.com.", RecordType::A));
    send_tcp(&mut stream, &slow).await;
    send_tcp(&mut stream, &fast).await;
    assert_eq!(receive_tcp(&mut stream).await.metadata.id, fast.metadata.id);
    assert_eq!(receive_tcp(&mut stream).await.metadata.id, slow.metadata.id);
}

#[tokio::test]
async fn idle_connections_of_one_guest_do_not_keep_another_out() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let mut idle = vec![];
    for _ in 0..40 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        idle.push(socket.connect(server.local_addr()).await.unwrap());
    }
    // The first 32 are held open, the others closed at once.
    let closed = timeout(PATIENCE, idle[39].read_u8()).await.expect("closed in time");
    assert!(closed.is_err());
    let answer = ask_tcp(&server, question("www.example.com.", RecordType::A)).await;
    assert_eq!(addresses(&answer), [ANSWER]);
    assert_eq!(server.counters().tcp_refused, 8);
}

#[tokio::test]
async fn a_connection_that_brings_no_whole_query_is_closed_however_it_dribbles() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let mut slow = TcpStream::connect(server.local_addr()).await.unwrap();
    slow.write_u16(40).await.unwrap();
    let since = Instant::now();
    let mut buffer = [0; 1];
    // A byte every half second: after ten seconds without a whole query it is over, and others were answered all the while.
    loop {
        if slow.write_u8(0).await.is_err() {
            break;
        }
        if let Ok(read) = timeout(Duration::from_millis(500), slow.read(&mut buffer)).await {
            assert_eq!(read.unwrap_or(0), 0);
            break;
        }
        let answer = ask_tcp(&server, question("www.example.com.", RecordType::A)).await;
        assert_eq!(addresses(&answer), [ANSWER]);
        assert!(since.elapsed() < Duration::from_secs(60), "still open");
    }
    assert!(since.elapsed() > Duration::from_secs(5), "{:?}", since.elapsed());
}

/// Its queries are answered from what is held, each with 64 KiB: what it does not take is not made.
#[tokio::test]
async fn who_asks_much_and_never_reads_takes_little_memory_and_is_closed() {
    const CONNECTIONS: usize = 8;
    const MOST_KIB: usize = 24 << 10;
    let upstream = with_the_longest_answer().await;
    let server = forwarding(&[&upstream]);
    let query = question("big.example.com.", RecordType::TXT);
    assert!(ask_tcp(&server, query.clone()).await.answers.len() > 230);
    let bytes = query.to_vec().unwrap();
    let framed = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    let many = framed.repeat(2_000);
    let before = resident();
    let never_reads = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut stream = socket.connect(server.local_addr()).await.unwrap();
        // Until the server takes no more; then until it ends the connection.
        let closed = async { while stream.write_all(&many).await.is_ok() {} };
        timeout(Duration::from_secs(60), closed).await.expect("closed")
    };
    let most = Mutex::new(0);
    let watched = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut most = most.lock().unwrap();
            *most = resident().saturating_sub(before).max(*most);
        }
    };
    let neighbour = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(ask_tcp(&server, query.clone()).await.answers.len() > 230);
    };
    tokio::select! {
        _ = async { tokio::join!(join_all((0..CONNECTIONS).map(|_| never_reads())), neighbour) } => {}
        () = watched => {}
    }
    let most = *most.lock().unwrap();
    assert!(most < MOST_KIB, "{most} KiB");
}

/// One that waits for an upstream, one from the zone, and then more than the guest may ask: all in one write.
#[tokio::test]
async fn who_asks_more_than_it_may_gets_the_answers_before_that_and_is_closed() {
    let upstream = Upstream::that(|asked| vec![(Duration::from_millis(200), asked.a(300))]).await;
    let settings = ResolverSettings { queries_per_second: 10, ..Default::default() };
    let server = resolver(settings, &[&upstream]);
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    let queries =
        [question("www.example.com.", RecordType::A), question("gateway.vm.internal.", RecordType::A)];
    let many = std::iter::repeat_n(&queries[1], 50);
    let framed = |query: &Message| {
        let bytes = query.to_vec().unwrap();
        [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
    };
    let bytes: Vec<u8> = queries.iter().chain(many).flat_map(framed).collect();
    stream.write_all(&bytes).await.unwrap();
    let mut received = vec![];
    timeout(PATIENCE, stream.read_to_end(&mut received)).await.expect("closed").unwrap();
    let mut answered = vec![];
    let mut rest = &received[..];
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (message, after) = after.split_at(u16::from_be_bytes(*length).into());
        answered.push(Message::from_vec(message).unwrap().metadata.id);
        rest = after;
    }
    assert!(answered.len() < queries.len() + 50, "{}", answered.len());
    assert_eq!(answered.last(), Some(&queries[0].metadata.id), "{answered:?}");
    assert!(server.counters().limited > 0);
}

/// 65,535 bytes leave no room for our OPT record, which has to be there (RFC 6891 section 7); and who is told TC by TCP has
/// nowhere else to ask.
#[tokio::test]
async fn an_answer_is_never_called_cut_by_tcp() {
    let upstream = with_the_longest_answer().await;
    let server = forwarding(&[&upstream]);
    let query = question("big.example.com.", RecordType::TXT);
    assert!(ask_tcp(&server, query.clone()).await.answers.len() > 230);
    let answer = ask_tcp(&server, with_edns(query, 1232, false)).await;
    assert!(!answer.metadata.truncation && answer.edns.is_some(), "{answer}");
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

/// 32 connections of one guest that ask for a name that is held as fast as they are answered, until dropped; from a thread of
/// their own.
struct Flood {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn of(server: SocketAddr, query: &Message) -> Self {
        let bytes = query.to_vec().unwrap();
        let many = [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat().repeat(1_000);
        let connection = async move |many: &[u8]| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            let (mut reader, mut writer) = socket.connect(server).await.unwrap().into_split();
            let mut buffer = vec![0; 64 << 10];
            let asks = async { while writer.write_all(many).await.is_ok() {} };
            let takes = async { while reader.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
            tokio::join!(asks, takes)
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = join_all((0..32).map(|_| connection(&many))) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.take();
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[tokio::test]
async fn one_guests_flood_by_tcp_leaves_a_neighbour_its_misses() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let held = question("held.example.com.", RecordType::A);
    ask(&server, held.clone()).await;
    let _flood = Flood::of(server.local_addr(), &held);
    while server.counters().queries < 5_000 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = server.counters().queries;
    for n in 0..10 {
        let since = Instant::now();
        let answer = lookup(&server, &format!("n{n}.example.com.")).await;
        assert_eq!(
            (answer.metadata.response_code, addresses(&answer)),
            (ResponseCode::NoError, vec![ANSWER])
        );
        // Some ms; the machine may do much else.
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    }
    let answer = ask_tcp(&server, question("by-tcp.example.com.", RecordType::A)).await;
    assert_eq!(addresses(&answer), [ANSWER]);
    assert!(server.counters().queries > before + 100, "the flood has ended");
}

#[tokio::test]
async fn a_message_longer_than_any_query_is_a_format_error() {
    let upstream = Upstream::prompt().await;
    let server = forwarding(&[&upstream]);
    let mut stream = TcpStream::connect(server.local_addr()).await.unwrap();
    for (length, code) in [
        (4_096, ResponseCode::NoError),
        (4_097, ResponseCode::FormErr),
        (usize::from(u16::MAX), ResponseCode::FormErr),
        (4_096, ResponseCode::NoError),
    ] {
        // A record of a type that nobody knows fills it up: the root's, of the class IN.
        let mut bytes = question("www.example.com.", RecordType::A).to_vec().unwrap();
        bytes[11] = 1;
        let data = length - bytes.len() - 11;
        bytes.extend_from_slice(b"\0\xff\0\0\x01\0\0\0\0");
        bytes.extend_from_slice(&(data as u16).to_be_bytes());
        bytes.resize(length, b'x');
        stream.write_u16(length as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(receive_tcp(&mut stream).await.metadata.response_code, code, "{length}");
    }
}
