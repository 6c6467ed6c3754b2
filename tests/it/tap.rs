//! The TAP as a jailed VMM opens it: by a user of its own, with as many queues and such headers as it asked for.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::Value;

use crate::lab::tap_guest::{PLAIN, open_tap};
use crate::lab::{Daemon, Lab, Namespace, TapGuest, WEB, assert_says};

const NOBODY: u32 = 65_534;

fn netns(lab: &Lab, vm: &Value) -> Namespace {
    lab.host.enter(&Path::new("/run/netns").join(vm["namespace"].as_str().unwrap()))
}

/// The device node that a jail has, in this thread's eyes alone: the machine's own may be root's.
fn everybodys_tun() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("jail"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let tun = Path::new("/dev/net/tun");
    // Documentation/admin-guide/devices.txt: character device 10, 200.
    mknod(tun, SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).unwrap();
    std::fs::set_permissions(tun, Permissions::from_mode(0o666)).unwrap();
}

/// Opens the VM's TAP inside its netns as that user and group, with no capability.
fn open_as(netns: &Namespace, uid: u32, gid: u32, flags: i32) -> io::Result<File> {
    netns.run(|| {
        everybodys_tun();
        // Of this thread alone, which ends after it: the raw calls, not libc's, which change the whole process.
        let none: *const libc::gid_t = std::ptr::null();
        // SAFETY: no groups are read, for there are none; the others take integers, no memory.
        let done = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, 0, none),
                libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                libc::syscall(libc::SYS_setresuid, uid, uid, uid),
            ]
        };
        assert_eq!(done, [0, 0, 0], "{}", io::Error::last_os_error());
        open_tap("tap0", flags)
    })
}

fn refused(result: io::Result<File>) -> Option<i32> {
    result.expect_err("a TAP that opens").raw_os_error()
}

#[test]
fn an_unprivileged_vmm_opens_its_tap_and_other_users_cannot() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "vm1", "--tap-uid", "65534"]);
    assert_eq!((vm["tap_uid"].as_u64(), &vm["tap_gid"]), (Some(65_534), &Value::Null));
    let inside = netns(&lab, &vm);
    assert_eq!(refused(open_as(&inside, 1_234, 1_234, libc::IFF_VNET_HDR)), Some(libc::EPERM));
    let tap = open_as(&inside, NOBODY, NOBODY, libc::IFF_VNET_HDR).expect("nobody's TAP");
    let guest = TapGuest::attach_to(tap, &vm);
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    drop(guest);

    let by_group = daemon.json(&["vm", "create", "vm2", "--tap-gid", "4242"]);
    let inside = netns(&lab, &by_group);
    assert_eq!(refused(open_as(&inside, NOBODY, NOBODY, libc::IFF_VNET_HDR)), Some(libc::EPERM));
    open_as(&inside, NOBODY, 4_242, libc::IFF_VNET_HDR).expect("the group's TAP");

    // It outlives a restart, and is not handed on with the slot.
    assert!(daemon.stop().success());
    let daemon = Daemon::start(&lab);
    open_as(&inside, NOBODY, 4_242, libc::IFF_VNET_HDR).expect("the group's TAP");
    assert_says(&daemon.client(&["vm", "create", "vm2", "--tap-gid", "1"]), 1, &["tap_gid", "4242"]);
    daemon.guestnet(&["vm", "delete", "vm1", "vm2"]);
    for vm_id in ["vm3", "vm4"] {
        let vm = daemon.json(&["vm", "create", vm_id, "--tap-uid", "1234"]);
        let inside = netns(&lab, &vm);
        assert_eq!(refused(open_as(&inside, NOBODY, 4_242, libc::IFF_VNET_HDR)), Some(libc::EPERM));
        open_as(&inside, 1_234, 1_234, libc::IFF_VNET_HDR).expect("1234's TAP");
    }
    // A slot that had an owner is nobody's when the next VM asks for none.
    daemon.guestnet(&["vm", "delete", "vm3", "vm4"]);
    let vm = daemon.json(&["vm", "create", "vm5"]);
    open_as(&netns(&lab, &vm), NOBODY, NOBODY, libc::IFF_VNET_HDR).expect("anybody's TAP");
}

#[test]
fn a_vmm_opens_a_queue_per_processor_where_it_asked_for_that() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let single = daemon.json(&["vm", "create", "single"]);
    let queues = libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    assert_eq!(refused(netns(&lab, &single).run(|| open_tap("tap0", queues))), Some(libc::EINVAL));
    for _ in 0..2 {
        let vm = daemon.json(&["vm", "create", "multi", "--tap-multi-queue", "--tap-uid", "65534"]);
        assert_eq!(vm["tap_multi_queue"], true);
        let inside = netns(&lab, &vm);
        let first = open_as(&inside, NOBODY, NOBODY, queues).expect("a first queue");
        let second = open_as(&inside, NOBODY, NOBODY, queues).expect("a second queue");
        let busy = daemon.client(&["vm", "delete", "multi"]);
        assert!(!busy.status.success(), "deleted under a VMM that has its queues open");
        drop(second);
        // With the one that is left the guest goes on.
        let guest = TapGuest::attach_to(first, &vm);
        guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
        drop(guest);
        daemon.guestnet(&["vm", "delete", "multi"]);
    }
    // Its slot is of no use to a VM that asks for one queue.
    for number in 0..3 {
        let vm = daemon.json(&["vm", "create", &format!("vm{number}")]);
        drop(netns(&lab, &vm).run(|| open_tap("tap0", libc::IFF_VNET_HDR)).expect("a TAP with one queue"));
    }
}

#[test]
fn a_vmm_without_virtio_headers_gets_plain_whole_frames() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let vm = daemon.json(&["vm", "create", "plain", "--tap-no-offload"]);
    assert_eq!(vm["tap_offload"], false);
    let tap = netns(&lab, &vm).run(|| open_tap("tap0", PLAIN)).expect("a TAP without headers");
    let guest = TapGuest::attach_to_plain(tap, &vm);
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", WEB]);
    // A page comes as TCP: segments of the guest's MTU, checksums complete, or nothing would be read.
    let page = guest.run("timeout", &["10", "busybox", "wget", "-q", "-O", "-", "http://198.51.100.10/"]);
    assert!(page.contains("this is the internet"), "{page}");
}
