//! Traces and metrics as a collector gets them; the caller's trace in the log, with a collector or without.

use crate::lab::{Daemon, Lab};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// An RPC by curl, in the trace of `traceparent`.
fn call(lab: &Lab, daemon: &Daemon<'_>, traceparent: &str, rpc: &str, body: &str) -> serde_json::Value {
    let mut curl = lab.host_command("curl");
    curl.args(["-sS", "--max-time", "60", "-H", "Content-Type: application/json", "-d", body]);
    curl.args(["-H", &format!("traceparent: {traceparent}"), "-H", "tracestate: vendor=1", "--unix-socket"]);
    curl.arg(daemon.socket()).arg(format!("http://localhost/guestnet.v1.GuestNetworkService/{rpc}"));
    serde_json::from_str(&crate::lab::succeed(&mut curl)).unwrap()
}

#[test]
fn the_log_line_of_a_change_names_the_trace_of_its_caller() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    call(&lab, &daemon, &format!("00-{TRACE}-{CALLER}-01"), "CreateVmNetwork", r#"{"vmId":"a"}"#);
    call(&lab, &daemon, "00-garbage", "CreateVmNetwork", r#"{"vmId":"b"}"#);
    let policy = r#"{"policy":{"vmId":"a","rules":[]}}"#;
    call(&lab, &daemon, &format!("00-{TRACE}-{CALLER}-01"), "ApplyNetworkPolicy", policy);
    let log = daemon.log();
    let line =
        |of: &str| log.lines().find(|line| line.contains(of)).unwrap_or_else(|| panic!("no {of} in {log}"));
    assert!(line(r#""vm_id":"a""#).contains(TRACE), "{log}");
    assert!(!line(r#""vm_id":"b""#).contains("trace_id"), "{log}");
    let policy = line("apply policy");
    assert!(policy.contains(TRACE) && policy.contains("uid 0"), "{policy}");
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_that_cannot_send_to_a_collector_says_so_at_its_start() {
    let lab = Lab::new();
    let config = "[telemetry]\nendpoint = \"http://127.0.0.1:4318\"\n";
    let refused = crate::lab::daemon::serve_command(&lab, config).output().unwrap();
    crate::lab::assert_says(&refused, 2, &["telemetry.endpoint", "--features otlp"]);
}

#[cfg(feature = "otlp")]
mod collected {
    use std::fs;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::Value;

    use super::super::foreign::{project, tools};
    use super::*;

    /// A program that is not ours, and decodes with OpenTelemetry's own messages.
    struct Receiver {
        child: Child,
        lines: PathBuf,
    }

    impl Receiver {
        fn start(lab: &Lab, listen: &str) -> Self {
            let (script, lines) = (tools().join("otlp_receiver.py"), lab.directory().join("received"));
            fs::copy(project("tests/foreign/otlp_receiver.py"), &script).unwrap();
            let mut python = lab.host_command("python3");
            let child = python.arg(script).arg(listen).arg(&lines).stdin(Stdio::null()).spawn().unwrap();
            let receiver = Self { child, lines };
            receiver.wait_for("it to listen", |line| line["listening"] == listen);
            receiver
        }

        fn all(&self) -> Vec<Value> {
            let text = fs::read_to_string(&self.lines).unwrap_or_default();
            // The last line may be half there.
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        }

        fn wait_for(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                let all = self.all();
                if let Some(found) = all.iter().find(|line| is_it(line)) {
                    return found.clone();
                }
                assert!(Instant::now() < deadline, "waited for {what}; received: {all:#?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }

        fn span(&self, trace: &str, name: &str) -> Value {
            self.wait_for(&format!("{name} in {trace}"), |line| {
                line["trace"] == trace && line["name"] == name
            })
        }
    }

    impl Drop for Receiver {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    const CREATE: &str = "guestnet.v1.GuestNetworkService/CreateVmNetwork";

    #[test]
    fn a_collector_gets_the_callers_trace_with_what_a_call_was_made_of_and_the_metrics() {
        let lab = Lab::new();
        let receiver = Receiver::start(&lab, "127.0.0.1:4318");
        let config = "[telemetry]\nendpoint = \"http://127.0.0.1:4318\"\nmetrics_interval_seconds = 1\n";
        let daemon = Daemon::start_with(&lab, config);
        let unsampled = "1".repeat(32);
        call(&lab, &daemon, &format!("00-{unsampled}-{CALLER}-00"), "CreateVmNetwork", r#"{"vmId":"b"}"#);
        call(&lab, &daemon, &format!("00-{TRACE}-{CALLER}-01"), "CreateVmNetwork", r#"{"vmId":"a"}"#);

        let rpc = receiver.span(TRACE, CREATE);
        assert_eq!((&rpc["parent"], &rpc["state"]), (&CALLER.into(), &"vendor=1".into()), "{rpc}");
        // SPAN_KIND_SERVER; no status is no error.
        assert_eq!((&rpc["kind"], &rpc["status"]), (&2.into(), &0.into()), "{rpc}");
        for (key, value) in [
            ("rpc.system", "connect_rpc"),
            ("rpc.service", "guestnet.v1.GuestNetworkService"),
            ("rpc.method", "CreateVmNetwork"),
            ("guestnet.vm_id", "a"),
        ] {
            assert_eq!(rpc["attributes"][key], value, "{rpc}");
        }
        assert_eq!(rpc["resource"]["service.name"], "guestnet", "{rpc}");
        for part in ["slot.take", "store.commit", "kernel.bind"] {
            let part = receiver.span(TRACE, part);
            assert_eq!(part["parent"], rpc["id"], "{part}");
            assert!(part["took_ns"].as_u64() <= rpc["took_ns"].as_u64(), "{part} {rpc}");
        }
        // It was called first, and its caller records nothing.
        assert!(receiver.all().iter().all(|line| line["trace"] != unsampled.as_str()));

        let other = "2".repeat(32);
        let taken = r#"{"vmId":"c","ipAddress":"10.100.0.2"}"#;
        call(&lab, &daemon, &format!("00-{other}-{CALLER}-01"), "CreateVmNetwork", taken);
        let failed = receiver.span(&other, CREATE);
        // STATUS_CODE_ERROR.
        assert_eq!(failed["status"], 2, "{failed}");
        assert_eq!(failed["attributes"]["error.type"], "already_exists", "{failed}");

        // A trace that begins here has an id too, which the log names.
        daemon.guestnet(&["vm", "delete", "b"]);
        let name = "guestnet.v1.GuestNetworkService/DeleteVmNetwork";
        let root = receiver.wait_for(name, |line| line["name"] == name);
        assert_eq!(root["parent"], "", "{root}");
        assert!(daemon.log().contains(root["trace"].as_str().unwrap()), "{root} {}", daemon.log());
        receiver.span(root["trace"].as_str().unwrap(), "kernel.unbind");

        let vms = receiver
            .wait_for("one VM", |line| line["metric"] == "guestnet_vms" && line["value"]["as_double"] == 1.0);
        assert_eq!(
            (&vms["kind"], &vms["attributes"]["network"]),
            (&"gauge".into(), &"default".into()),
            "{vms}"
        );
        let bound = receiver.wait_for("two binds", |line| {
            line["metric"] == "guestnet_bind_duration_seconds" && line["value"]["count"] == "2"
        });
        assert_eq!((&bound["kind"], &bound["unit"]), (&"histogram".into(), &"s".into()), "{bound}");
        let counts = bound["value"]["bucket_counts"].as_array().unwrap();
        let sum: u64 = counts.iter().map(|count| count.as_str().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!((sum, counts.len()), (2, 1 + bound["value"]["explicit_bounds"].as_array().unwrap().len()));
        let events = receiver.wait_for("the event of the delete", |line| {
            line["metric"] == "guestnet_events"
                && line["attributes"]["kind"] == "unbound"
                && line["value"]["as_double"] == 1.0
        });
        assert_eq!(events["kind"], "sum", "{events}");
    }

    #[test]
    fn a_collector_that_is_gone_or_stuck_costs_its_traces_and_nothing_else() {
        let lab = Lab::new();
        let socket = lab.directory().join("otlp.sock");
        let config = format!("[telemetry]\nendpoint = \"unix:{}\"\n", socket.display());
        let daemon = Daemon::start_with(&lab, &config);
        let lost = "the collector takes no traces";
        // More than the queue of spans holds, while nobody listens.
        let many = || {
            let mut curl: Command = lab.host_command("curl");
            curl.args([
                "-sS",
                "--fail",
                "-o",
                "/dev/null",
                "-H",
                "Content-Type: application/json",
                "-d",
                "{}",
            ]);
            curl.arg("--unix-socket").arg(daemon.socket());
            curl.arg("http://localhost/guestnet.v1.GuestNetworkService/ListNetworks?[1-3000]");
            crate::lab::succeed(&mut curl);
        };
        many();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !daemon.log().contains(lost) {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let receiver = Receiver::start(&lab, socket.to_str().unwrap());
        call(&lab, &daemon, &format!("00-{TRACE}-{CALLER}-01"), "CreateVmNetwork", r#"{"vmId":"a"}"#);
        receiver.span(TRACE, CREATE);
        assert!(daemon.log().contains("takes traces and metrics again"), "{}", daemon.log());
        assert_eq!(daemon.log().matches(lost).count(), 1, "said once: {}", daemon.log());

        // It accepts, and says nothing any more.
        kill(Pid::from_raw(receiver.child.id() as i32), Signal::SIGSTOP).unwrap();
        many();
        daemon.guestnet(&["vm", "create", "b"]);
        assert!(daemon.stop().success(), "and a stop does not wait for it");
    }
}
