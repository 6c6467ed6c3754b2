//! nf_tables by netlink, without a program: our tables put in place whole, changed in batches, their counters read; and
//! the connections that the kernel tracks. In: `walls::nft` data. Out: done, or which change the kernel refused.

mod batch;
mod conntrack;
mod expr;
mod foreign;
mod socket;
mod wire;

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use batch::Ownership;
pub use conntrack::Connection;
pub use wire::Batch;

use super::error::{Doing, KernelError};
use super::fault::{self, When};
use crate::walls::nft::{Family, Table, TableName};
use socket::Socket;
use wire::{NFNL_SUBSYS_NFTABLES, attribute, attributes, number, string};

/// NFT_OBJECT_COUNTER.
const OBJECT_COUNTER: u32 = 1;
const GETTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 1;
const GETCHAIN: u16 = NFNL_SUBSYS_NFTABLES << 8 | 4;
const GETRULE: u16 = NFNL_SUBSYS_NFTABLES << 8 | 7;
const GETSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 13;
const GETOBJ: u16 = NFNL_SUBSYS_NFTABLES << 8 | 19;

fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Bridge => 7,
    }
}

/// What a rule, an element or a named counter has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The firewall of the namespace that it was opened in. Clones share one socket, which owns the tables that it makes.
#[derive(Clone)]
pub struct Nft(Arc<Mutex<Socket>>);

impl Nft {
    pub fn open() -> Result<Self, KernelError> {
        let socket = Socket::open().doing(|| "opening an nfnetlink socket".into())?;
        Ok(Self(Arc::new(Mutex::new(socket))))
    }

    /// The port by which the kernel names what is done here.
    pub fn port(&self) -> u32 {
        self.socket().port
    }

    /// The tables, whole, in the place of those of the same names, at once: no packet meets neither or both. Ours alone
    /// where the kernel can do that, so that nobody's `flush ruleset` takes them away.
    pub fn replace(&self, tables: &[Table]) -> Result<Ownership, KernelError> {
        let put = |ownership: Ownership| {
            let mut batch = Batch::default();
            for table in tables {
                batch.replace(table, ownership);
            }
            self.socket().commit(batch)
        };
        let fault = |when| fault::point(when, "all-walls").doing(|| "putting up the firewall".into());
        fault(When::Before)?;
        // Linux 5.12 to 6.8 refuse the flags of such a table; older ones lack the locked ports that guestnet needs.
        let older = fault::point(When::Before, "owned-tables")
            .map_err(|_| ("table".into(), io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        let ownership = match older.and_then(|()| put(Ownership::Persistent)) {
            Ok(()) => Ownership::Persistent,
            Err((_, error)) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                put(Ownership::Shared).map(|()| Ownership::Shared).map_err(refused)?
            }
            Err(error) => return Err(refused(error)),
        };
        fault(When::After)?;
        Ok(ownership)
    }

    /// The batch, whole or not at all, as a step of that name. After an error it may have been carried out all the same, and the
    /// answer lost.
    pub fn commit(&self, step: &str, batch: Batch) -> Result<(), KernelError> {
        let work = || self.socket().commit(batch).map_err(refused);
        fault::step(step, || "changing the firewall".into(), work)
    }

    pub fn has(&self, table: TableName) -> Result<bool, KernelError> {
        let names = self.socket().dump(
            GETTABLE,
            family(table.family),
            |_| {},
            |_, body| attribute(body, 1).map(string),
        );
        Ok(names.doing(|| "listing tables of nf_tables".into())?.iter().any(|name| name == table.name))
    }

    /// The port of the socket that alone may change the table; none where anybody may, or there is no table.
    pub fn owner(&self, table: TableName) -> Result<Option<u32>, KernelError> {
        // NFTA_TABLE_OWNER, which is there for an owned table only.
        let read = |_, body: &[u8]| {
            let owner = u32::from_be_bytes(*attribute(body, 7)?.first_chunk()?);
            Some((attribute(body, 1).map(string)?, owner))
        };
        let owners = self.socket().dump(GETTABLE, family(table.family), |_| {}, read);
        let owners = owners.doing(|| "listing tables of nf_tables".into())?;
        Ok(owners.into_iter().find(|(name, _)| name == table.name).map(|(_, owner)| owner))
    }

    /// What the named counters of a table have counted.
    pub fn counters(&self, table: TableName) -> Result<Vec<(String, Count)>, KernelError> {
        let read = |_, body: &[u8]| Some((string(attribute(body, 2)?), count(attribute(body, 4)?)));
        let counted = self.socket().dump(
            GETOBJ,
            family(table.family),
            |buffer| {
                buffer.text(1, table.name);
                buffer.u32(3, OBJECT_COUNTER);
            },
            read,
        );
        counted.doing(|| format!("reading the counters of table {}", table.name))
    }

    /// What each element of a counted set has counted, by its key.
    pub fn element_counts(&self, table: TableName, set: &str) -> Result<Vec<(Vec<u8>, Count)>, KernelError> {
        let element = |element: &[u8]| {
            let key = attribute(attribute(element, 1)?, 1)?.to_vec();
            let expression = attribute(element, 7)?;
            Some((key, count(attribute(expression, 2)?)))
        };
        let read = |_, body: &[u8]| {
            let elements = attributes(attribute(body, 3)?);
            Some(elements.filter_map(|(_, bytes)| element(bytes)).collect::<Vec<_>>())
        };
        let counted = self.socket().dump(
            GETSETELEM,
            family(table.family),
            |buffer| {
                buffer.text(1, table.name);
                buffer.text(2, set);
            },
            read,
        );
        Ok(counted.doing(|| format!("reading the elements of set {set}"))?.concat())
    }

    /// Whether a set has an element.
    pub fn has_element(
        &self,
        table: TableName,
        set: &str,
        key: &crate::walls::nft::Key,
    ) -> Result<bool, KernelError> {
        let asked = self.socket().ask(GETSETELEM, family(table.family), |buffer| {
            buffer.text(1, table.name);
            buffer.text(2, set);
            buffer.nested(3, |buffer| {
                buffer.nested(1, |buffer| buffer.nested(1, |buffer| buffer.bytes(1, &key.0)));
            });
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|()| true).doing(|| format!("looking into set {set}")),
        }
    }

    /// What each rule of a chain has counted, in order; nothing for a rule without a counter.
    pub fn rule_counts(&self, table: TableName, chain: &str) -> Result<Vec<Option<Count>>, KernelError> {
        let read = |_, body: &[u8]| {
            // The kernel of before 5.4 sends other chains' rules too.
            if attribute(body, 2).map(string)? != chain {
                return None;
            }
            let expressions = attributes(attribute(body, 4)?);
            let counter = expressions.filter_map(|(_, expression)| {
                (string(attribute(expression, 1)?) == "counter").then(|| attribute(expression, 2)).flatten()
            });
            Some(counter.map(count).next())
        };
        let counted = self.socket().dump(
            GETRULE,
            family(table.family),
            |buffer| {
                buffer.text(1, table.name);
                buffer.text(2, chain);
            },
            read,
        );
        counted.doing(|| format!("reading the rules of chain {chain}"))
    }

    /// The connections that `address` has opened or answers.
    pub fn connections(&self, address: Ipv4Addr) -> Result<Vec<Connection>, KernelError> {
        conntrack::of(&self.socket(), address).doing(|| format!("listing the connections of {address}"))
    }

    /// Every IPv4 connection.
    pub fn all_connections(&self) -> Result<Vec<Connection>, KernelError> {
        conntrack::all(&self.socket()).doing(|| "listing all connections".into())
    }

    /// Forgets every connection of guests that are gone; how many there were.
    pub(super) fn forget(&self, guests: &HashSet<Ipv4Addr>) -> Result<usize, KernelError> {
        let doing = || "forgetting the connections of former guests".to_owned();
        let forget = || conntrack::forget(&self.socket(), guests).doing(doing);
        fault::step("forget-connections", doing, forget)
    }

    /// Ends connections; those that are gone are fine.
    pub fn end(&self, connections: &[Connection]) -> Result<(), KernelError> {
        let socket = self.socket();
        let work = || {
            connections.iter().try_for_each(|connection| {
                conntrack::end(&socket, connection)
                    .doing(|| format!("ending a connection from {}", connection.source))
            })
        };
        fault::step("end-connections", || "ending connections".into(), work)
    }

    // A panic while it was held cannot leave half an exchange: late answers are discarded before the next.
    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused((what, error): (String, io::Error)) -> KernelError {
    KernelError::new(format!("changing the firewall: {what}"), error)
}

fn count(bytes: &[u8]) -> Count {
    let read = |kind| attribute(bytes, kind).and_then(number).unwrap_or_default();
    Count { bytes: read(1), packets: read(2) }
}
