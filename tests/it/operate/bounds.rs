//! Deadlines, callers that hang up, and what each kind of caller can cost the others.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::lab::daemon::Paths;
use crate::lab::{Daemon, Lab, lan, text};
use crate::slots::eventually;

const SERVICE: &str = "guestnet.v1.GuestNetworkService";

/// An HTTP/1.1 request of an RPC, with headers that end in a line's end.
fn request(rpc: &str, headers: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST /{SERVICE}/{rpc} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    );
    format!("{head}{headers}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn answer_to(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_change_outlives_its_callers_deadline_and_its_caller_and_is_logged_with_who_asked() {
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 2\n");
    // Nothing is written down meanwhile.
    let database = rusqlite::Connection::open(Paths::of(&lab).state.join("guestnet.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let record = |name: &str| format!(r#"{{"name":"{name}","type":"A","value":"10.9.0.8"}}"#);
    let late = request("SetDnsRecord", "connect-timeout-ms: 200\r\n", &record("late.corp"));
    let late = answer_to(daemon.socket(), &late);
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("deadline_exceeded"), "{late}");
    database.execute_batch("COMMIT").unwrap();
    let logged = || {
        let log = daemon.log();
        let mut lines = log.lines();
        lines.any(|line| line.contains("\"verb\":\"set DNS record\"") && line.contains("uid 0"))
    };
    eventually("the record is logged with its caller", logged);
    let records = daemon.json(&["dns", "record", "list"]);
    assert!(records.to_string().contains("late.corp"), "{records}");
}

/// A stream in HTTP/2, as curl has it: headers and trailers, then what came.
fn stream(
    lab: &Lab,
    socket: &Path,
    kind: &str,
    timeout: &str,
    path: &str,
    message: &[u8],
) -> (Child, Vec<u8>) {
    let mut curl = lab.host_command("curl");
    curl.args(["-sSN", "--http2-prior-knowledge", "--max-time", "60", "-D", "/dev/stderr", "--unix-socket"]);
    curl.arg(socket).args(["-H", &format!("Content-Type: application/{kind}"), "-H", "TE: trailers"]);
    if !timeout.is_empty() {
        curl.args(["-H", timeout]);
    }
    curl.args(["--data-binary", "@-", "-o", "-"]).arg(format!("http://localhost/{path}"));
    let mut curl = curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    curl.stdin.take().unwrap().write_all(&[&[0], length.as_slice(), message].concat()).unwrap();
    // The first item's head says that the stream has begun, or has been refused.
    let mut first = vec![0; 5];
    let _ = curl.stdout.as_mut().unwrap().read_exact(&mut first);
    (curl, first)
}

fn rest(child: Child) -> String {
    let output: Output = child.wait_with_output().unwrap();
    text(&output)
}

#[test]
fn a_stream_ends_at_its_callers_deadline_in_each_protocol() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let watch = format!("{SERVICE}/WatchEvents");
    let (connect, _) =
        stream(&lab, daemon.socket(), "connect+json", "Connect-Timeout-Ms: 300", &watch, b"{}");
    let said = rest(connect);
    assert!(said.contains("\"code\":\"deadline_exceeded\""), "{said}");
    let (grpc, _) = stream(&lab, daemon.socket(), "grpc", "grpc-timeout: 300m", &watch, b"");
    let said = rest(grpc);
    assert!(said.contains("grpc-status: 4"), "{said}");
    // Health's watch is a stream like the others; and the seats of those that have ended are free again.
    let health = "grpc.health.v1.Health/Watch";
    let (health, _) = stream(&lab, daemon.socket(), "grpc", "grpc-timeout: 300m", health, b"");
    assert!(rest(health).contains("grpc-status: 4"));
}

fn read_only(lab: &Lab) -> (Daemon<'_>, std::path::PathBuf) {
    let socket = lab.directory().join("read.sock");
    (Daemon::start_with(lab, &format!("read_only_socket = {socket:?}\n")), socket)
}

#[test]
fn callers_that_may_only_read_keep_nobody_out_who_changes_things() {
    let lab = Lab::new();
    let (daemon, socket) = read_only(&lab);
    // Watches of theirs, health's among them, take their own seats and no more.
    let watch = |at: usize| {
        let path = if at.is_multiple_of(2) {
            format!("{SERVICE}/WatchEvents")
        } else {
            "grpc.health.v1.Health/Watch".into()
        };
        stream(&lab, &socket, "connect+json", "", &path, b"{}").0
    };
    let mut watches: Vec<Child> = (0..16).map(watch).collect();
    assert!(rest(watch(16)).contains("16 watches are open"));
    assert!(rest(watch(17)).contains("16 watches are open"));
    let (full, _) = stream(
        &lab,
        daemon.socket(),
        "connect+json",
        "Connect-Timeout-Ms: 300",
        &format!("{SERVICE}/WatchEvents"),
        b"{}",
    );
    assert!(rest(full).contains("deadline_exceeded"));
    for watch in &mut watches {
        let _ = watch.kill();
        let _ = watch.wait();
    }
    // More requests of theirs than are served at a time, none of which ever comes to its end.
    let whole = request("ListVmNetworks", "", r#"{"pageSize":1}"#);
    let stalled: Vec<UnixStream> = (0..200)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(&whole[..whole.len() - 1]).unwrap();
            stream
        })
        .collect();
    let begun = std::time::Instant::now();
    daemon.guestnet(&["vm", "create", "a"]);
    // They are given up after 30 s; nobody has waited for that.
    assert!(begun.elapsed() < std::time::Duration::from_secs(25), "{:?}", begun.elapsed());
    drop(stalled);
}

#[test]
fn who_may_only_read_does_not_read_user_data() {
    let lab = Lab::new();
    let (daemon, socket) = read_only(&lab);
    daemon.guestnet(&["vm", "create", "a"]);
    let call = |rpc: &str, body: Value| -> Value {
        let mut curl: Command = lab.host_command("curl");
        curl.args([
            "-sS",
            "--max-time",
            "20",
            "-H",
            "Content-Type: application/json",
            "-d",
            &body.to_string(),
        ]);
        let output =
            curl.arg("--unix-socket").arg(&socket).arg(format!("http://x/{SERVICE}/{rpc}")).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
    };
    let seed = json!({"vmId": "a", "target": "cloud-init"});
    assert!(call("RenderGuestConfig", seed.clone())["files"].is_array(), "there is nothing secret in it yet");
    let secret = lab.directory().join("user-data");
    std::fs::write(&secret, "#cloud-config\npassword: hunter2\n").unwrap();
    daemon.guestnet(&["user-data", "set", "a", secret.to_str().unwrap()]);
    for (rpc, body) in [("GetUserData", json!({"vmId": "a"})), ("RenderGuestConfig", seed)] {
        let refused = call(rpc, body);
        assert_eq!(refused["code"], "permission_denied", "{rpc}: {refused}");
        assert_eq!(refused["details"][0]["debug"]["reason"], "READ_ONLY_CALLER", "{rpc}: {refused}");
    }
    assert!(call("RenderGuestConfig", json!({"vmId": "a", "target": "cmdline"}))["files"].is_array());
    assert!(daemon.guestnet(&["user-data", "show", "a"]).contains("hunter2"));
}

/// A caller over HTTP/2 that gives its answers no room, so that not a byte of them can be sent; `calls` times the same call.
fn never_reads(
    socket: &Path,
    calls: u32,
    kind: &str,
    rpc: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> UnixStream {
    over_http2(socket, 0, calls, kind, rpc, headers, body)
}

/// A caller over HTTP/2 that gives each of its answers room for `window` bytes (RFC 9113 section 6.9.2), and reads their heads.
fn over_http2(
    socket: &Path,
    window: u32,
    calls: u32,
    kind: &str,
    rpc: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> UnixStream {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // Literal fields that are never indexed (RFC 7541 section 6.2.3), none longer than 126 bytes.
    let literal = |(name, value): &(&str, &str)| {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0x10], text(name), text(value)].concat()
    };
    let path = format!("/{SERVICE}/{rpc}");
    let kind = format!("application/{kind}");
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", &path),
        ("content-type", &kind),
    ];
    let head: Vec<u8> = head.iter().chain(headers).flat_map(literal).collect();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[&[0, 4], window.to_be_bytes().as_slice()].concat()));
    for call in 0..calls {
        let stream = 2 * call + 1;
        bytes.extend([frame(1, 4, stream, &head), frame(0, 1, stream, body)].concat());
    }
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&bytes).unwrap();
    // Every answer has begun: its head needs no room (RFC 9113 section 5.2.1).
    let mut begun = 0;
    while begun < calls {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        std::io::copy(&mut Read::by_ref(&mut stream).take(length.into()), &mut std::io::sink()).unwrap();
        begun += u32::from(head[3] == 1);
    }
    stream
}

fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
}

#[test]
fn callers_that_never_read_their_answers_keep_nobody_out_for_long() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    daemon.guestnet(&["vm", "create", "a"]);
    // As many as there are places, and as many answers as there are at a time.
    let unread: Vec<_> =
        (0..256).map(|_| never_reads(daemon.socket(), 1, "json", "ListVmNetworks", &[], b"{}")).collect();
    let listed = answer_to(daemon.socket(), &request("ListVmNetworks", "", "{}"));
    assert!(listed.starts_with("HTTP/1.1 200") && listed.contains("\"vmId\":\"a\""), "{listed}");
    eventually("all of them are closed", || unread.iter().all(is_closed));
}

#[test]
fn an_answer_counts_as_long_as_nobody_reads_it_and_then_costs_its_caller_the_connection() {
    let lab = Lab::new();
    let (daemon, socket) = read_only(&lab);
    daemon.guestnet(&["vm", "create", "a"]);
    let list = request("ListVmNetworks", "", "{}");
    // One whose answer has all the room that it takes; it keeps its connection for the next call.
    let reads = over_http2(&socket, 65_535, 1, "json", "ListVmNetworks", &[], b"{}");
    let begun = std::time::Instant::now();
    // All the room that there is for callers who only read.
    let unread: Vec<_> =
        (0..2).map(|_| never_reads(&socket, 32, "json", "ListVmNetworks", &[], b"{}")).collect();
    daemon.guestnet(&["vm", "create", "b"]);
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "who may change things has waited");
    let listed = answer_to(&socket, &list);
    assert!(listed.starts_with("HTTP/1.1 200") && listed.contains("\"vmId\":\"b\""), "{listed}");
    assert!(begun.elapsed() >= std::time::Duration::from_secs(5), "there was room for one more at once");
    assert!(begun.elapsed() < std::time::Duration::from_secs(25), "it has waited as if nobody else did");
    eventually("both are closed", || unread.iter().all(is_closed));
    assert!(!is_closed(&reads));
}

#[test]
fn who_waits_for_room_hears_at_its_deadline_and_what_it_asked_for_is_not_done() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    // All the room that there is.
    let unread: Vec<_> =
        (0..8).map(|_| never_reads(daemon.socket(), 32, "json", "ListVmNetworks", &[], b"{}")).collect();
    let begun = std::time::Instant::now();
    let record = r#"{"name":"late.corp","type":"A","value":"10.9.0.8"}"#;
    let late = answer_to(daemon.socket(), &request("SetDnsRecord", "connect-timeout-ms: 200\r\n", record));
    assert!(late.starts_with("HTTP/1.1 504") && late.contains("NO_ROOM"), "{late}");
    assert!(late.contains("\"code\":\"deadline_exceeded\""), "{late}");
    for (kind, timeout, says) in [
        ("grpc", "grpc-timeout: 200m", "grpc-status: 4"),
        ("connect+json", "Connect-Timeout-Ms: 200", "\"code\":\"deadline_exceeded\""),
    ] {
        let path = format!("{SERVICE}/DeleteVmNetwork");
        let said = rest(stream(&lab, daemon.socket(), kind, timeout, &path, b"{}").0);
        assert!(said.contains(says) && said.contains("not begun") | said.contains("not%20begun"), "{said}");
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    // Whoever waits gets the room of those who do not read.
    let records = daemon.json(&["dns", "record", "list"]);
    assert!(!records.to_string().contains("late.corp"), "{records}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(25), "{:?}", begun.elapsed());
    eventually("those who do not read are closed", || unread.iter().all(is_closed));
}

/// HTTP/1.1 has no windows: what its caller does not read stays in the socket, and beyond that with the service.
#[test]
fn an_answer_that_the_socket_has_no_room_for_counts_until_it_is_read() {
    let lab = Lab::new();
    lan::make(&lab);
    let socket = lab.directory().join("read.sock");
    let daemon = Daemon::start_with(&lab, &format!("read_only_socket = {socket:?}\n{}", lan::network("")));
    // Some times what a socket holds (net.core.wmem_default).
    let lines: String = (0..3_000)
        .map(|n: u32| {
            format!("52:54:00:00:{:02x}:{:02x} 10.9.{}.{}\n", n >> 8, n & 255, 1 + n / 250, n % 250 + 1)
        })
        .collect();
    let file = lab.directory().join("hosts");
    std::fs::write(&file, lines).unwrap();
    daemon.guestnet(&["reservation", "import", file.to_str().unwrap()]);
    let list = request("ListReservations", "", "{}");
    let begun = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&list).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    };
    let mut unread: Vec<UnixStream> = (0..64).map(|_| begun()).collect();
    let mut waits = UnixStream::connect(&socket).unwrap();
    waits.write_all(&request("ListNetworks", "", "{}")).unwrap();
    // Those who read slowly have a second, from when somebody waits.
    waits.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    let nothing = waits.read(&mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "64 answers are under way");
    // One that reads to the end makes room for one.
    let mut whole = Vec::new();
    unread.pop().unwrap().read_to_end(&mut whole).unwrap();
    assert!(whole.len() > 300_000, "{}", whole.len());
    waits.set_read_timeout(None).unwrap();
    let mut answer = String::new();
    waits.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("lan0"), "{answer}");
}

/// Half of the seats of callers who only read, whose answers nobody reads; one caller has no more.
fn watches_nobody_reads(socket: &Path, headers: &[(&str, &str)]) -> UnixStream {
    never_reads(socket, 8, "connect+json", "WatchEvents", headers, b"\0\0\0\0\x02{}")
}

/// A watch by a process of its own, which reads.
fn watch(lab: &Lab, socket: &Path, timeout: &str) -> Child {
    stream(lab, socket, "connect+json", timeout, &format!("{SERVICE}/WatchEvents"), b"{}").0
}

struct Ends(Vec<Child>);

impl Drop for Ends {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_watch_that_nobody_reads_gives_its_seat_to_one_that_is_read() {
    let lab = Lab::new();
    let (daemon, socket) = read_only(&lab);
    let unread = watches_nobody_reads(&socket, &[]);
    let mut read = Ends((0..8).map(|_| watch(&lab, &socket, "")).collect());
    let begun = || rest(watch(&lab, &socket, "Connect-Timeout-Ms: 100"));
    let mut said = Vec::new();
    eventually("a watch that is read gets in", || {
        said.push(begun());
        said.last().unwrap().contains("deadline_exceeded")
    });
    // Not at once: whoever reads slowly has some seconds.
    assert!(said[0].contains("16 watches are open"), "{}", said[0]);
    assert!(daemon.log().contains("a watch that nobody reads has given its seat"), "{}", daemon.log());
    assert!(read.0.iter_mut().all(|watch| watch.try_wait().unwrap().is_none()), "one that is read has ended");
    assert!(!is_closed(&unread), "its connection has other calls");
}

#[test]
fn a_watch_that_nobody_reads_gives_its_seat_back_at_its_deadline() {
    let lab = Lab::new();
    let (daemon, socket) = read_only(&lab);
    let endless = watches_nobody_reads(&socket, &[]);
    let _read = Ends((0..8).map(|_| watch(&lab, &socket, "")).collect());
    let begun = || rest(watch(&lab, &socket, "Connect-Timeout-Ms: 100"));
    let said = begun();
    assert!(said.contains("16 watches are open"), "{said}");
    drop(endless);
    eventually("the seats of a caller that is gone are free", || begun().contains("deadline_exceeded"));
    let unread = watches_nobody_reads(&socket, &[("connect-timeout-ms", "1000")]);
    eventually("the seats are free at the deadline", || begun().contains("deadline_exceeded"));
    assert!(!daemon.log().contains("a watch that nobody reads has given its seat"), "{}", daemon.log());
    drop(unread);
}
