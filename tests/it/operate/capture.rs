//! What a capture has of its guest whatever happens beside it: a restart of the service, a burst, a reader that is late.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::attacker::Attacker;
use crate::lab::{Daemon, Lab, text};
use crate::slots::eventually;

fn capture(daemon: &Daemon<'_>, packets: &str, file: &Path) -> Child {
    let mut capture =
        daemon.client_command(&["capture", "a", "--seconds", "120", "--packets", packets, "--out"]);
    capture.arg(file).stderr(Stdio::piped()).spawn().unwrap()
}

/// A datagram of the guest's that says `text`.
fn datagram(guest: &Attacker, text: &[u8]) -> Vec<u8> {
    guest.udp(Ipv4Addr::new(192, 0, 2, 9), (4_000, 4_000), text)
}

fn has(file: &Path, wanted: &[u8]) -> bool {
    fs::read(file).unwrap_or_default().windows(wanted.len()).any(|at| at == wanted)
}

#[test]
fn a_capture_goes_on_when_the_service_is_back() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    let file = lab.directory().join("a.pcap");
    let mut capture = capture(&daemon, "1000000", &file);
    eventually("the capture has begun", || {
        guest.send(&datagram(&guest, b"before"));
        has(&file, b"before")
    });
    assert!(daemon.stop().success());
    // Some rounds long nobody says whose the packets are.
    std::thread::sleep(Duration::from_secs(1));
    guest.send(&datagram(&guest, b"meanwhile"));
    assert!(capture.try_wait().unwrap().is_none(), "it has ended with the service");
    assert!(!has(&file, b"meanwhile"));
    let daemon = Daemon::start(&lab);
    eventually("what was heard meanwhile is there", || has(&file, b"meanwhile"));
    eventually("it goes on", || {
        guest.send(&datagram(&guest, b"after"));
        has(&file, b"after")
    });
    drop(guest);
    daemon.guestnet(&["vm", "delete", "a"]);
    let ended = capture.wait_with_output().unwrap();
    assert!(ended.status.success() && text(&ended).contains("VM a has left it"), "{}", text(&ended));
}

#[test]
fn a_late_reader_has_hundreds_of_packets_with_their_own_times_and_says_how_many_were_dropped() {
    const SENT: usize = 3_000;
    // Of a burst a veth takes a thousand at a time (net.core.netdev_max_backlog); a default receive buffer holds a hundred.
    const WANTED: usize = 500;
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = Attacker::new(&lab, &daemon.json(&["vm", "create", "a"]));
    let file = lab.directory().join("a.pcap");
    let capture = capture(&daemon, &WANTED.to_string(), &file);
    let mut begun = 0;
    eventually("the capture has begun", || {
        begun += 1;
        guest.send(&datagram(&guest, b"before"));
        has(&file, b"before")
    });
    assert!(begun < WANTED);
    let reader = Pid::from_raw(capture.id() as i32);
    kill(reader, Signal::SIGSTOP).unwrap();
    let burst = datagram(&guest, &[7; 1_400]);
    (0..SENT).for_each(|_| guest.send(&burst));
    // What the veth has taken arrives meanwhile, and nobody reads it.
    std::thread::sleep(Duration::from_millis(500));
    let resumed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    kill(reader, Signal::SIGCONT).unwrap();
    let ended = capture.wait_with_output().unwrap();
    let said = text(&ended);
    assert!(ended.status.success() && said.contains(&format!("{WANTED} packets on ")), "{said}");
    let dropped = said.split(", ").find_map(|part| part.split_once(" packets dropped by the kernel"));
    let dropped: usize = dropped.unwrap().0.parse().unwrap();
    assert!(dropped < SENT, "{said}");
    // Each record begins with seconds, microseconds and the two lengths (pcap-savefile(5)).
    let pcap = fs::read(&file).unwrap();
    let (mut rest, mut last) = (&pcap[24..], Duration::ZERO);
    while !rest.is_empty() {
        let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
        last = Duration::new(word(0).into(), word(4) * 1_000);
        rest = &rest[16 + word(8) as usize..];
    }
    assert!(last < resumed, "{last:?} is when it was read, from {resumed:?} on");
}
