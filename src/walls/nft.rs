//! nf_tables as data: tables, chains, sets, rules, elements, each as nft(8) knows them. Pure; `kernel::nft` writes them as
//! netlink. A rule is a list of expressions over registers, as the kernel runs it.

use std::net::Ipv4Addr;

use crate::model::Mac;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Inet,
    Bridge,
}

/// A table of ours, as batches and dumps name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableName {
    pub family: Family,
    pub name: &'static str,
}

impl From<&Table> for TableName {
    fn from(table: &Table) -> Self {
        Self { family: table.family, name: table.name }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: &'static str,
    pub counters: Vec<&'static str>,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub point: HookPoint,
    pub priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A chain. Base chains accept what no rule decides: a chain that is being put in place must not drop for lack of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

impl Chain {
    pub fn new(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), hook: None, rules }
    }

    pub fn base(name: &str, kind: HookKind, point: HookPoint, priority: i32, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), hook: Some(Hook { kind, point, priority }), rules }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Shown by `nft list ruleset`; names what the rule is for.
    pub comment: String,
    pub expressions: Vec<Expr>,
}

/// A field of a key or of a map's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    IfName,
    Mac,
    Address,
    Protocol,
    Port,
    /// A number of ours, in the host's byte order.
    Id,
    /// The same as a packet's priority.
    Priority,
}

impl Field {
    /// Bytes of the value itself; in a key each field starts on a 4-byte register.
    pub fn octets(self) -> u32 {
        match self {
            Self::IfName => 16,
            Self::Mac => 6,
            Self::Address | Self::Id | Self::Priority => 4,
            Self::Port => 2,
            Self::Protocol => 1,
        }
    }

    pub fn padded(self) -> u32 {
        self.octets().next_multiple_of(4)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    Verdict,
    Fields(Vec<Field>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: &'static str,
    pub key: Vec<Field>,
    /// What a map leads to.
    pub data: Option<Data>,
    /// Keys are ranges; two fields at least.
    pub ranges: bool,
    /// Each element counts the packets that it matched.
    pub counted: bool,
    /// Elements are added by rules, at most so many, each until it is idle for this long.
    pub dynamic: Option<Dynamic>,
    pub elements: Vec<Element>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dynamic {
    pub size: u32,
    pub timeout_ms: Option<u64>,
}

impl Set {
    pub fn of(name: &'static str, key: &[Field]) -> Self {
        let key = key.to_vec();
        Self { name, key, data: None, ranges: false, counted: false, dynamic: None, elements: Vec::new() }
    }

    pub fn map(name: &'static str, key: &[Field], data: Data) -> Self {
        Self { data: Some(data), ..Self::of(name, key) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Key,
    /// The end of a range, with the range's own end in it.
    pub end: Option<Key>,
    pub value: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Data(Key),
    Verdict(Verdict),
}

impl Element {
    pub fn of(key: Key) -> Self {
        Self { key, end: None, value: None }
    }

    pub fn to_data(key: Key, data: Key) -> Self {
        Self { key, end: None, value: Some(Value::Data(data)) }
    }

    pub fn to_verdict(key: Key, verdict: Verdict) -> Self {
        Self { key, end: None, value: Some(Value::Verdict(verdict)) }
    }
}

/// The bytes of a key or of data, field by field, each padded to a register.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Key(pub Vec<u8>);

impl Key {
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A device name, at most 15 bytes.
    pub fn if_name(self, name: &str) -> Self {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        self.with(&bytes)
    }

    pub fn mac(self, mac: Mac) -> Self {
        self.with(&mac.octets())
    }

    pub fn address(self, address: Ipv4Addr) -> Self {
        self.with(&address.octets())
    }

    pub fn protocol(self, number: u8) -> Self {
        self.with(&[number])
    }

    pub fn port(self, port: u16) -> Self {
        self.with(&port.to_be_bytes())
    }

    pub fn id(self, id: u32) -> Self {
        self.with(&id.to_ne_bytes())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// Index of a 4-byte register, 0 to 15.
pub type Register = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Meta {
    InputName,
    OutputName,
    InputGroup,
    L4Protocol,
    NetworkFamily,
    Priority,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Header {
    Link,
    Network,
    Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ct {
    State,
    Status,
}

/// What a packet is compared with, or what is done to it: the kernel's own expressions (linux/netfilter/nf_tables.h).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    Meta {
        key: Meta,
        to: Register,
    },
    Payload {
        header: Header,
        offset: u32,
        len: u32,
        to: Register,
    },
    Ct {
        key: Ct,
        to: Register,
    },
    /// The type of the destination address: local, broadcast, … (rtnetlink(7)).
    DestinationType {
        to: Register,
    },
    Equal {
        register: Register,
        value: Vec<u8>,
    },
    NotEqual {
        register: Register,
        value: Vec<u8>,
    },
    AtLeast {
        register: Register,
        value: Vec<u8>,
    },
    Between {
        register: Register,
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Mask {
        register: Register,
        mask: Vec<u8>,
    },
    /// The key is in the set.
    In {
        set: &'static str,
        key: Register,
    },
    NotIn {
        set: &'static str,
        key: Register,
    },
    /// The key's data goes to a register; a key that is not there ends the rule.
    Map {
        map: &'static str,
        key: Register,
        to: Register,
    },
    /// The verdict of the key; a key that is not there goes on.
    VerdictOf {
        map: &'static str,
        key: Register,
    },
    /// More than `rate` packets a second for this key, after `burst`.
    RateOver {
        set: &'static str,
        key: Register,
        rate: u64,
        burst: u32,
    },
    /// The key is in the set from now on.
    Remember {
        set: &'static str,
        key: Register,
    },
    /// More than `count` live connections for this key.
    ConnectionsOver {
        set: &'static str,
        key: Register,
        count: u32,
    },
    /// A register becomes a number.
    Number {
        to: Register,
        value: u32,
    },
    /// The packet's queueing priority becomes what is in the register.
    SetPriority {
        from: Register,
    },
    Counter,
    /// A counter of the table, by its name.
    Count(&'static str),
    /// The destination becomes the address and port in these registers.
    Redirect {
        address: Register,
        port: Register,
    },
    /// The source becomes the address of the interface that the packet leaves by.
    Masquerade,
    /// No connection is made of the packet (nft_ct.c).
    NoTrack,
    Verdict(Verdict),
}
