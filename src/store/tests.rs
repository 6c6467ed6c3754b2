use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use futures_util::future::join_all;

use super::*;
use crate::model::{DhcpOptions, Mac, RateLimit, Reading, Slot, TapOptions};

/// The `n`th of many VMs that have nothing in common.
pub(super) fn vm(n: u32) -> Vm {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 2)) + n);
    Vm {
        vm_id: format!("vm_{n}").parse().unwrap(),
        network: "default".parse().unwrap(),
        workspace: n.is_multiple_of(2).then(|| "acme".parse().unwrap()),
        slot: Slot(n),
        mac: Mac::for_address(address),
        address,
        hostname: format!("web-{n}").parse().unwrap(),
        rate_limit: n.is_multiple_of(2).then(|| RateLimit {
            rate: 250.try_into().unwrap(),
            burst: n.is_multiple_of(4).then(|| 64.try_into().unwrap()),
        }),
        tap: TapOptions {
            uid: n.is_multiple_of(3).then_some(n),
            multi_queue: n.is_multiple_of(5),
            offload: !n.is_multiple_of(7),
            gid: None,
        },
        created_at_us: 1_700_000_000_000_000 + i64::from(n),
        dhcp_options: DhcpOptions {
            ntp_servers: vec![[10, 100, 0, 1].into(); n as usize % 2],
            ..DhcpOptions::default()
        },
    }
}

fn id(vm: &Vm) -> VmId {
    vm.vm_id.clone()
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("deep/state");
    let store = Store::open(&directory).unwrap();
    store.insert(vm(2), Account::default()).await.unwrap();
    store.insert(vm(1), Account::default()).await.unwrap();
    store.insert(vm(3), Account::default()).await.unwrap();
    assert!(store.remove(id(&vm(3))).await.unwrap());
    assert!(!store.remove(id(&vm(3))).await.unwrap());
    assert_eq!(store.load().unwrap(), [vm(1), vm(2)]);
    assert_eq!(store.generation().unwrap(), 4);
    drop(store);

    let store = Store::open(&directory).unwrap();
    assert_eq!(store.load().unwrap(), [vm(1), vm(2)]);
    assert_eq!(store.generation().unwrap(), 4);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&directory.join("guestnet.db"))), (0o700, 0o600));
}

#[tokio::test]
async fn a_freed_address_is_remembered_until_it_is_given_out_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    for n in [5, 4] {
        store.insert(vm(n), Account::default()).await.unwrap();
        store.remove(id(&vm(n))).await.unwrap();
    }
    let freed: Vec<Ipv4Addr> = store.freed().unwrap().into_iter().map(|freed| freed.address).collect();
    assert_eq!(freed, [vm(5).address, vm(4).address]);
    store.insert(Vm { address: vm(5).address, ..vm(6) }, Account::default()).await.unwrap();
    assert_eq!(store.freed().unwrap().len(), 1);
}

#[tokio::test]
async fn a_clash_names_what_is_taken_and_by_whom() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.insert(vm(1), Account::default()).await.unwrap();
    let cases = [
        (Vm { vm_id: id(&vm(1)), ..vm(2) }, "vm_id vm_1 is already taken by VM vm_1"),
        (Vm { mac: vm(1).mac, ..vm(2) }, "MAC address 06:00:0a:64:00:03 is already taken by VM vm_1"),
        (
            Vm { address: vm(1).address, ..vm(2) },
            "address 10.100.0.3 of network default is already taken by VM vm_1",
        ),
        (Vm { slot: vm(1).slot, ..vm(2) }, "slot 1 is already taken by VM vm_1"),
    ];
    for (clash, wanted) in cases {
        assert_eq!(store.insert(clash, Account::default()).await.unwrap_err().to_string(), wanted);
    }
    let elsewhere = Vm { network: "blue".parse().unwrap(), address: vm(1).address, ..vm(2) };
    store.insert(elsewhere, Account::default()).await.unwrap();
    assert_eq!(store.load().unwrap().len(), 2);
}

#[tokio::test]
async fn sixty_four_callers_share_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    // Holds the writer up for as long as it takes all callers to queue.
    let other = Connection::open(directory.path().join("guestnet.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let inserts = join_all((0..64).map(|n| store.insert(vm(n), Account::default())));
    let queued = async { other.execute_batch("COMMIT").unwrap() };
    // join! polls in order: the inserts are queued when the other connection lets go, but for a few that tokio may have
    // poll twice.
    let (answers, ()) = tokio::join!(inserts, queued);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(store.load().unwrap().len(), 64);
    assert!(store.generation().unwrap() <= 8, "{} commits", store.generation().unwrap());
}

#[tokio::test]
async fn what_was_counted_of_a_vm_is_not_kept_for_a_later_one_with_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let of = |vm: &Vm, device| StoredAccount {
        vm_id: id(vm),
        created_at_us: vm.created_at_us,
        account: Account::on(device, Reading::default()),
    };
    let (first, second) = (vm(1), Vm { created_at_us: vm(2).created_at_us, ..vm(1) });
    store.insert(first.clone(), of(&first, 7).account).await.unwrap();
    store.remove(id(&first)).await.unwrap();
    store.insert(second.clone(), of(&second, 8).account).await.unwrap();
    // A checkpoint that was under way.
    store.keep_accounts(vec![of(&first, 9)]).await.unwrap();
    assert_eq!(store.accounts().unwrap(), [of(&second, 8)]);
    store.keep_accounts(vec![of(&second, 10)]).await.unwrap();
    assert_eq!(store.accounts().unwrap(), [of(&second, 10)]);
}

/// Runs as its own child: with STORE in the environment it inserts until it is killed.
#[tokio::test]
async fn what_was_answered_survives_kill_9() {
    if let Some(directory) = std::env::var_os("GUESTNET_TEST_STORE") {
        let store = Store::open(Path::new(&directory)).unwrap();
        for n in 0..u32::MAX {
            store.insert(vm(n), Account::default()).await.unwrap();
            println!("\nanswered {n}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let place = directory.path().join(round.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::what_was_answered_survives_kill_9", "--nocapture"])
            .env("GUESTNET_TEST_STORE", &place)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answered =
            lines.map_while(Result::ok).filter_map(|l| l.strip_prefix("answered ")?.parse::<u32>().ok());
        answered.by_ref().nth(20 + 7 * round).unwrap();
        child.kill().unwrap();
        let last = answered.last();
        child.wait().unwrap();
        let kept = Store::open(&place).unwrap().load().unwrap();
        let least = last.map_or(21 + 7 * round, |last| last as usize + 1);
        assert!(kept.len() >= least, "{} of {least}", kept.len());
        assert_eq!(kept, (0..kept.len() as u32).map(vm).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_second_guestnet_on_the_same_directory_is_told_who_has_it() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains(directory.path().to_str().unwrap()), "{error}");
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    first.insert(vm(1), Account::default()).await.unwrap();
    drop(first);
    Store::open(directory.path()).unwrap();
}

#[test]
fn a_newer_guestnets_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path()).unwrap());
    let file = directory.path().join("guestnet.db");
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = std::fs::read(&file).unwrap();
    let error = Store::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("newer guestnet (schema 99") && error.contains("guestnet.db"), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_damaged_database_stops_the_start_and_is_never_recreated() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    for n in 0..200 {
        store.insert(vm(n), Account::default()).await.unwrap();
    }
    drop(store);
    let file = directory.path().join("guestnet.db");
    let sound = std::fs::read(&file).unwrap();
    let mut torn = sound.clone();
    torn[4096..12288].fill(0xff);
    let mut headless = sound.clone();
    headless[..64].fill(0);
    let cases = [torn, headless, sound[..sound.len() / 2].to_vec(), Vec::new(), b"not a database".to_vec()];
    for (case, bytes) in cases.into_iter().enumerate() {
        std::fs::write(&file, &bytes).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "case {case}: {error}");
        let text = error.to_string();
        assert!(text.contains(file.to_str().unwrap()) && text.contains("restore a copy"), "{text}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "case {case}");
    }
    std::fs::remove_file(&file).unwrap();
    std::fs::write(directory.path().join("guestnet.db-wal"), b"the last commits").unwrap();
    assert!(matches!(Store::open(directory.path()).unwrap_err(), StoreError::Damaged { .. }));

    std::fs::remove_file(directory.path().join("guestnet.db-wal")).unwrap();
    std::fs::write(&file, sound).unwrap();
    assert_eq!(Store::open(directory.path()).unwrap().load().unwrap().len(), 200);
}

#[test]
fn an_unfinished_first_start_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("guestnet.db-new"), b"half").unwrap();
    assert_eq!(Store::open(directory.path()).unwrap().load().unwrap(), []);
    assert!(!directory.path().join("guestnet.db-new").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let path = root.path().to_owned();
    // Root may write anywhere; this one thread looks at files as nobody does (setfsuid(2)).
    let errors = std::thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        [Store::open(&path), Store::open(&path.join("state"))].map(|opened| opened.unwrap_err().to_string())
    });
    for error in errors.join().unwrap() {
        assert!(error.contains(root.path().to_str().unwrap()), "{error}");
        assert!(error.contains("Permission denied") && error.contains("writable"), "{error}");
    }
}

#[tokio::test]
async fn a_reboot_forgets_the_devices_but_no_vm() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.record_boot("boot-a").await.unwrap(), BootChange::First);
    let link = |ifindex, name: &str, kind, owner: &str| OwnedLink {
        ifindex,
        name: name.parse().unwrap(),
        kind,
        owner: owner.into(),
    };
    store.insert(vm(1), Account::default()).await.unwrap();
    store.record_link(link(7, "br-vms", LinkKind::Bridge, "default")).await.unwrap();
    store.record_link(link(8, "gv1", LinkKind::Port, "vm_1")).await.unwrap();
    store.record_link(link(9, "gv1", LinkKind::Port, "vm_1")).await.unwrap();
    store.record_link(link(10, "gv2", LinkKind::Port, "vm_2")).await.unwrap();
    assert!(store.forget_link(10).await.unwrap());
    assert!(!store.forget_link(10).await.unwrap());
    let forward = |old: &str| ChangedSysctl { path: "net/ipv4/ip_forward".into(), old_value: old.into() };
    assert!(store.record_sysctl(forward("0")).await.unwrap());
    assert!(!store.record_sysctl(forward("1")).await.unwrap());
    drop(store);

    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.record_boot("boot-a").await.unwrap(), BootChange::Same);
    let ours = [link(7, "br-vms", LinkKind::Bridge, "default"), link(9, "gv1", LinkKind::Port, "vm_1")];
    assert_eq!(store.links().unwrap(), ours);
    assert_eq!(store.sysctls().unwrap(), [forward("0")]);

    assert_eq!(store.record_boot("boot-b").await.unwrap(), BootChange::Rebooted);
    assert_eq!((store.links().unwrap(), store.sysctls().unwrap()), (vec![], vec![]));
    assert_eq!(store.load().unwrap(), [vm(1)]);
    assert!(!store.forget_sysctl("net/ipv4/ip_forward").await.unwrap());
}
