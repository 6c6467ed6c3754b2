//! Killed at any system call of a create or a delete, the service as it is shipped comes back to what it has answered: where a test
//! injects faults by name, requests go to the kernel one by one; here a whole batch has gone, and its answer was never read.

use crate::attributes::OfHost;
use crate::consistent::assert_consistent;
use crate::crash::Train;
use crate::lab::{Daemon, Lab, TapGuest, WEB};
use crate::slots::{Traced, has_ended};

/// Those that change something, and those that wait for the kernel's word on it.
const CALLS: &str =
    "sendto,sendmsg,recvfrom,recvmsg,pwrite64,fdatasync,fsync,symlink,symlinkat,unlink,ioctl,setns";

#[test]
fn killed_at_any_system_call_it_comes_back_to_what_it_has_answered() {
    let lab = Lab::new();
    let start = || Daemon::start_with(&lab, "[[network]]\npool_size = 4\n");
    let mut daemon = start();
    let live = daemon.json(&["vm", "create", "live"]);
    let train = Train::start(&lab, &live);
    let fresh = OfHost::read(&lab).attributes(&lab, &live);
    for verb in ["create", "delete"] {
        let mut kills = 0;
        // Calls are counted by thread: the first that comes to so many dies, with all others.
        for number in 1..100 {
            let before = if verb == "create" { "delete" } else { "create" };
            daemon.guestnet(&["vm", before, "vm1"]);
            let inject = format!("inject={CALLS}:signal=KILL:when={number}");
            let traced =
                Traced::start_or_ended(&lab, &daemon, &["-e", &format!("trace={CALLS}"), "-e", &inject]);
            let answered = daemon.client(&["vm", verb, "vm1"]).status.success();
            if !has_ended(&daemon) {
                traced.stop();
                assert!(answered, "{verb}: neither killed nor answered");
                break;
            }
            kills += 1;
            daemon.crash();
            daemon = start();
            assert_consistent(&lab, &daemon);
            let vms = daemon.json(&["vm", "list"]);
            let vm1 = vms.as_array().unwrap().iter().find(|vm| vm["vm_id"] == "vm1");
            assert!(!answered || vm1.is_some() == (verb == "create"), "{verb}, call {number}: {vms}");
            if let Some(vm1) = vm1 {
                assert_eq!(OfHost::read(&lab).attributes(&lab, vm1), fresh, "{verb}, call {number}");
                TapGuest::attach(&lab, vm1).run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
            }
        }
        assert!((5..99).contains(&kills), "{kills} kills in a {verb}");
    }
    train.arrive();
}
