//! The iptables of before nf_tables (iptables-legacy), of whose changes the kernel tells nobody. Out: what is different in its tables
//! from one glance to the next, by two system calls each: rules, and the policy of FORWARD. Nothing is asked where nobody uses them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::plan::CHAINS;
use crate::plan::drift::{Change, Rules, RulesFamily};

/// Those that our rules are in.
const TABLES: [&str; 2] = ["filter", "nat"];
/// Tables that are in use in this namespace, one a line. Asking for another one would load its module.
const IN_USE: &str = "/proc/thread-self/net/ip_tables_names";
// include/uapi/linux/netfilter_ipv4/ip_tables.h
const IPT_SO_GET_INFO: libc::c_int = 64;
const IPT_SO_GET_ENTRIES: libc::c_int = 65;
/// struct ipt_get_entries before the entries.
const ENTRIES: usize = 40;
// Within struct ipt_entry.
const TARGET_OFFSET: usize = 88;
const NEXT_OFFSET: usize = 90;
const COUNTERS: std::ops::Range<usize> = 96..112;
// Within struct xt_entry_target; a standard one has no name and a verdict after it.
const TARGET_NAME: usize = 2;
const VERDICT: usize = 32;
/// -NF_DROP - 1.
const DROP: i32 = -1;
const NF_INET_FORWARD: usize = 2;

/// struct ipt_getinfo.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    /// Where the policies are.
    underflow: [u32; 5],
    num_entries: u32,
    size: u32,
}

/// What there is to be told of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Table {
    /// Of its rules, but for what they have counted.
    digest: u64,
    forward_drops: bool,
    /// It has our chain: iptables is this one here.
    ours: bool,
}

/// The tables that are in use, at a glance.
pub(super) fn tables() -> io::Result<BTreeMap<&'static str, Table>> {
    let in_use = match std::fs::read_to_string(IN_USE) {
        // A kernel without them.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    let in_use = TABLES.into_iter().filter(|table| in_use.lines().any(|name| name == *table));
    in_use.map(|table| Ok((table, glance(table)?))).collect()
}

/// What is different. A table that nobody has used before is one without rules.
pub(super) fn changes(
    before: &BTreeMap<&'static str, Table>,
    now: &BTreeMap<&'static str, Table>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for name in TABLES {
        let (was, is) = (before.get(name), now.get(name));
        let ours = [was, is].into_iter().flatten().any(|table| table.ours);
        let family = if ours { RulesFamily::Ipv4 } else { RulesFamily::Legacy };
        let rules = |chain: Option<&str>, forward_drops| {
            let (table, chain) = (name.to_owned(), chain.map(str::to_owned));
            Change::Rules(Rules { family, table, chain, forward_drops, gone: false })
        };
        if was != is {
            changes.push(rules(None, None));
        }
        let drops = |table: Option<&Table>| table.is_some_and(|table| table.forward_drops);
        if drops(was) != drops(is) {
            changes.push(rules(Some("FORWARD"), Some(drops(is))));
        }
    }
    changes
}

fn glance(name: &str) -> io::Result<Table> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut info = Info::default();
    info.name[..name.len()].copy_from_slice(name.as_bytes());
    let length = size_of::<Info>();
    // SAFETY: `info` is `length` bytes of plain data that outlive the call, as the kernel's struct is.
    unsafe { get(&socket, IPT_SO_GET_INFO, (&raw mut info).cast(), length)? };
    let mut entries = vec![0; ENTRIES + info.size as usize];
    entries[..info.name.len()].copy_from_slice(&info.name);
    entries[info.name.len()..][..4].copy_from_slice(&info.size.to_ne_bytes());
    // A table of another size by now is EAGAIN.
    // SAFETY: as many bytes of plain data as are said, which outlive the call.
    unsafe { get(&socket, IPT_SO_GET_ENTRIES, entries.as_mut_ptr().cast(), entries.len())? };
    Ok(read(&mut entries[ENTRIES..], info.underflow[NF_INET_FORWARD] as usize, name == "filter"))
}

/// # Safety
/// `value` is `length` bytes that the kernel may write any value to.
unsafe fn get(
    socket: &UdpSocket,
    option: libc::c_int,
    value: *mut libc::c_void,
    length: usize,
) -> io::Result<()> {
    let mut length = length as libc::socklen_t;
    // SAFETY: as the caller promises; `length` outlives the call.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_IP, option, value, &raw mut length) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `entries` are one struct ipt_entry after the other; the policy of FORWARD is at `forward`, if the table has one.
fn read(entries: &mut [u8], forward: usize, has_forward: bool) -> Table {
    let short =
        |entry: &[u8], at: usize| Some(usize::from(u16::from_ne_bytes(*entry.get(at..)?.first_chunk()?)));
    let mut at = 0;
    while let Some(entry) = entries.get_mut(at..).filter(|entry| !entry.is_empty()) {
        let Some(next) = short(entry, NEXT_OFFSET).filter(|next| *next > 0) else { break };
        if let Some(counters) = entry.get_mut(COUNTERS) {
            counters.fill(0);
        }
        at += next;
    }
    let policy = || {
        let entry = entries.get(forward..)?;
        let target = entry.get(short(entry, TARGET_OFFSET)?..)?;
        let verdict = i32::from_ne_bytes(*target.get(VERDICT..)?.first_chunk()?);
        Some(target.get(TARGET_NAME) == Some(&0) && verdict == DROP)
    };
    let mut digest = DefaultHasher::new();
    entries.hash(&mut digest);
    let (chain, _) = CHAINS[0];
    Table {
        digest: digest.finish(),
        forward_drops: has_forward && policy().unwrap_or_default(),
        ours: entries.windows(chain.len()).any(|bytes| bytes == chain.as_bytes()),
    }
}
