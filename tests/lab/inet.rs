//! What the internet of the lab offers: two DNS resolvers that know a few names, and a web server that tells who asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::{Namespace, WEB, WEB_NAME};

/// The daemon's default upstreams; here they are addresses of the lab's internet.
pub const RESOLVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Starts the servers; they end with the process.
pub fn start(inet: &Namespace) {
    for resolver in RESOLVERS {
        let socket = inet.run(|| UdpSocket::bind((resolver, 53)).expect("an upstream's socket"));
        std::thread::spawn(move || resolve(&socket));
    }
    let listener = inet.run(|| TcpListener::bind((WEB, 80)).expect("the web server's socket"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One at a time is enough for a lab; a client that stalls is dropped.
            let _ = serve(stream);
        }
    });
}

fn resolve(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        if let Ok(query) = Message::from_vec(&buffer[..length]) {
            let answer = answer(&query).to_vec().expect("an answer that encodes");
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn answer(query: &Message) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    let Some(question) = query.queries.first() else { return answer };
    answer.add_query(question.clone());
    let known: Name = format!("{WEB_NAME}.").parse().expect("a name");
    if *question.name() == known {
        if question.query_type() == RecordType::A {
            let address: Ipv4Addr = WEB.parse().expect("an address");
            answer.add_answer(Record::from_rdata(known, 60, RData::A(address.into())));
        }
    } else {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    answer
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let client = stream.peer_addr()?.ip();
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let page = format!("hello {client}, this is the internet\n");
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{page}",
        page.len()
    )
}
