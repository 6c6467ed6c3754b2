//! Where the log goes and what that may cost: nothing.

use std::io::Read;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::daemon::{Paths, serve_command};
use crate::lab::{Lab, guestnet_binary, text};
use crate::slots::eventually;

#[test]
fn a_log_that_nobody_reads_holds_up_nobody_and_says_later_what_it_lost() {
    let lab = Lab::new();
    let metrics = lab.directory().join("metrics.sock");
    let mut serve = serve_command(&lab, &format!("[metrics]\nsocket = {metrics:?}\n"));
    // Every call says a lot, so.
    serve.env("GUESTNET_LOG", "trace").env("GUESTNET_LOG_FORMAT", "json");
    let mut service =
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = service.stderr.take().unwrap();
    let status = || {
        let mut client = lab.host_command(guestnet_binary());
        client.arg("--socket").arg(Paths::of(&lab).socket).arg("status").output().unwrap()
    };
    eventually("it is up", || status().status.success());
    let lost = || {
        let mut curl = lab.host_command("curl");
        curl.args(["-sS", "--max-time", "20", "--unix-socket"]).arg(&metrics).arg("http://localhost/metrics");
        let page = text(&curl.output().unwrap());
        let line = page.lines().find_map(|line| line.strip_prefix("guestnet_log_lines_lost_total "));
        line.unwrap_or_else(|| panic!("{page}")).parse::<f64>().unwrap()
    };
    eventually("more is said than there is room for", || {
        let answer = status();
        assert!(answer.status.success(), "{}", text(&answer));
        lost() > 0.0
    });
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        log.read_to_end(&mut read).unwrap();
        String::from_utf8(read).unwrap()
    });
    kill(Pid::from_raw(service.id() as i32), Signal::SIGTERM).unwrap();
    assert!(service.wait().unwrap().success());
    let read = reader.join().unwrap();
    assert!(read.contains("lines of the log were lost here"), "{} bytes", read.len());
    assert!(read.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "a line is broken");
}
