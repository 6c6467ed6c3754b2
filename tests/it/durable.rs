//! Durable before answered: seen from outside, by the system calls of the service.

use std::collections::HashSet;

use connectrpc::Protocol;
use futures_util::future::join_all;
use guestnet::proto::guestnet::v1::{CreateVmNetworkRequest, ListNetworksRequest};

use crate::lab::api::client_of;
use crate::lab::daemon::Paths;
use crate::lab::{Daemon, Lab};
use crate::slots::{Traced, eventually};

/// Whether a line of strace says that the log is on the disk: one that has returned, or the second of two where another thread's call
/// came in between. `open` are threads of which the first has been read.
fn is_sync_of_the_log(line: &str, open: &mut HashSet<String>) -> bool {
    let thread = line.split_whitespace().next().unwrap_or_default().to_owned();
    let sync = line.contains("fsync(") || line.contains("fdatasync(");
    if sync && line.contains("guestnet.db-wal") && line.contains("<unfinished") {
        open.insert(thread);
        return false;
    }
    if line.contains("sync resumed>") {
        return open.remove(&thread) && line.contains("= 0");
    }
    sync && line.contains("guestnet.db-wal") && line.ends_with("= 0")
}

#[test]
fn a_create_and_a_delete_are_on_the_disk_before_they_are_answered() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    crate::drift::quiet(&daemon);
    let calls = ["-y", "-s", "4096", "-e", "trace=pwrite64,fsync,fdatasync,write,writev,sendto,sendmsg"];
    let traced = Traced::start(&lab, &daemon, &calls);
    let call = |rpc: &str, body: &str| {
        let mut curl = lab.host_command("curl");
        curl.args(["-sS", "--unix-socket"]).arg(daemon.socket());
        curl.args(["-H", "Content-Type: application/json", "-d", body]);
        curl.arg(format!("http://localhost/guestnet.v1.GuestNetworkService/{rpc}"));
        let answer = crate::lab::text(&curl.output().unwrap());
        assert!(!answer.contains("\"code\""), "{answer}");
    };
    for (rpc, body) in [
        ("CreateVmNetwork", r#"{"vmId":"vm1"}"#),
        ("UpdateVmNetwork", r#"{"vmId":"vm1","rateLimitMbps":7}"#),
        ("DeleteVmNetwork", r#"{"vmId":"vm1"}"#),
    ] {
        let before = traced.calls().lines().count();
        call(rpc, body);
        let answers = |line: &str| line.contains("socket:[") && line.contains("HTTP/1.1 200");
        eventually("the answer is in the log", || traced.calls().lines().skip(before).any(answers));
        let calls = traced.calls();
        let lines: Vec<&str> = calls.lines().skip(before).collect();
        let answered = lines.iter().position(|line| answers(line)).unwrap();
        let mut open = HashSet::new();
        let wrote = |line: &&str| line.contains("pwrite64(") && line.contains("guestnet.db-wal");
        let written = lines.iter().position(wrote).expect("nothing was written to the log");
        let synced = lines.iter().position(|line| is_sync_of_the_log(line, &mut open));
        let synced = synced.unwrap_or_else(|| panic!("{rpc}: never synced\n{}", lines.join("\n")));
        assert!(written < synced && synced < answered, "{rpc}:\n{}", lines.join("\n"));
        // Nothing is written after the sync that the answer tells of.
        let late = lines[synced..answered].iter().filter(|line| wrote(line)).count();
        assert_eq!(late, 0, "{rpc}:\n{}", lines.join("\n"));
    }
    traced.stop();
}

#[test]
fn creates_at_the_same_time_share_a_sync() {
    const CREATES: usize = 32;
    let lab = Lab::new();
    let daemon = Daemon::start_with(&lab, "[[network]]\npool_size = 48\n");
    eventually("slots are ready", || crate::slots::slots(&lab) >= CREATES);
    let traced = Traced::start(&lab, &daemon, &["-y", "-e", "trace=fsync,fdatasync"]);
    let database = rusqlite::Connection::open(Paths::of(&lab).state.join("guestnet.db")).unwrap();
    // Holds the writer up until all have come to it.
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = {
        let _runtime = runtime.enter();
        client_of(daemon.socket(), Protocol::Connect)
    };
    // A VM has its name before it comes to the writer.
    let named = || lab.on_host("find", &["/run/netns", "-name", "vm-vm*"]).lines().count();
    let answers = std::thread::scope(|scope| {
        scope.spawn(move || {
            eventually("all are bound", || named() == CREATES);
            database.execute_batch("COMMIT").unwrap();
        });
        runtime.block_on(async {
            // From its first answer on, a client knows how many calls a connection takes at a time.
            client.list_networks(ListNetworksRequest::default()).await.unwrap();
            let create = |n: usize| {
                let request = CreateVmNetworkRequest { vm_id: format!("vm{n}"), ..Default::default() };
                client.create_vm_network(request)
            };
            join_all((0..CREATES).map(create)).await
        })
    });
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let calls = traced.stop();
    let mut open = HashSet::new();
    let syncs = calls.lines().filter(|line| is_sync_of_the_log(line, &mut open)).count();
    assert!((1..=CREATES / 2).contains(&syncs), "{syncs} syncs for {CREATES} creates\n{calls}");
}
