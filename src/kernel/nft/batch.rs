//! What can be changed in nf_tables, as messages of a batch.

use super::expr;
use super::wire::{Batch, Buffer};
use super::{OBJECT_COUNTER, family};
use crate::walls::nft::{
    Chain, Data, Element, Field, HookKind, HookPoint, Key, Rule, Set, Table, TableName, Value,
};

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const NEWOBJ: u16 = 18;

/// Elements of one message: all of them are one attribute, which holds 64 KiB at most.
const CHUNK: usize = 400;

/// Who else may change a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody while the socket that made it is open; it stays when that is closed (Linux 6.9).
    Persistent,
    /// Whoever may use nf_tables.
    Shared,
}

impl Default for Batch {
    fn default() -> Self {
        Self::empty()
    }
}

impl Batch {
    /// The table with all in it, in the place of any of that name.
    pub fn replace(&mut self, table: &Table, ownership: Ownership) {
        self.remove(table.into());
        let name = TableName::from(table);
        self.new_table(name, Some(ownership));
        for counter in &table.counters {
            self.on(name, format!("counter {counter}"), NEWOBJ, libc::NLM_F_CREATE, |buffer| {
                buffer.text(2, counter);
                buffer.u32(3, OBJECT_COUNTER);
                buffer.nested(4, |_| {});
            });
        }
        for set in &table.sets {
            self.set(name, set);
        }
        for chain in &table.chains {
            self.chain(name, chain);
        }
        // Rules after all chains: they jump to each other. Elements last: they do too.
        for chain in &table.chains {
            self.rules(name, chain);
        }
        for set in &table.sets {
            self.add(name, set.name, &set.elements);
        }
    }

    /// A table that need not be there.
    pub fn remove(&mut self, table: TableName) {
        self.new_table(table, None);
        self.change(format!("removing table {}", table.name), DELTABLE, 0, family(table.family), |buffer| {
            buffer.text(1, table.name);
        });
    }

    fn new_table(&mut self, table: TableName, ownership: Option<Ownership>) {
        let name = format!("table {}", table.name);
        self.change(name, NEWTABLE, libc::NLM_F_CREATE, family(table.family), |buffer| {
            buffer.text(1, table.name);
            if ownership == Some(Ownership::Persistent) {
                // NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST.
                buffer.u32(2, 2 | 4);
            }
        });
    }

    /// A change to something in a table, whose name is attribute 1 in all of them.
    fn on(
        &mut self,
        table: TableName,
        what: String,
        message: u16,
        flags: i32,
        write: impl FnOnce(&mut Buffer),
    ) {
        self.change(what, message, flags, family(table.family), |buffer| {
            buffer.text(1, table.name);
            write(buffer);
        });
    }

    fn set(&mut self, table: TableName, set: &Set) {
        let id = self.sequence() + 1;
        self.on(table, format!("set {}", set.name), NEWSET, libc::NLM_F_CREATE, |buffer| {
            buffer.text(2, set.name);
            buffer.u32(3, set_flags(set));
            buffer.u32(4, type_of(&set.key));
            buffer.u32(5, set.key.iter().map(|field| padded(&set.key, *field)).sum());
            match &set.data {
                Some(Data::Verdict) => {
                    buffer.u32(6, 0xffff_ff00);
                    buffer.u32(7, 16);
                }
                Some(Data::Fields(fields)) => {
                    buffer.u32(6, type_of(fields));
                    buffer.u32(7, fields.iter().map(|field| padded(fields, *field)).sum());
                }
                None => {}
            }
            buffer.nested(9, |buffer| {
                if let Some(dynamic) = set.dynamic {
                    buffer.u32(1, dynamic.size);
                }
                if set.key.len() > 1 {
                    buffer.nested(2, |buffer| {
                        for field in &set.key {
                            buffer.nested(1, |buffer| buffer.u32(1, field.octets()));
                        }
                    });
                }
            });
            buffer.u32(10, id);
            if let Some(timeout) = set.dynamic.and_then(|dynamic| dynamic.timeout_ms) {
                buffer.u64(11, timeout);
            }
            buffer.bytes(13, &byte_orders(set));
            if set.counted {
                buffer.nested(17, expr::counter);
            }
        });
    }

    /// A chain, empty, hooked in if it is a base chain.
    fn chain(&mut self, table: TableName, chain: &Chain) {
        self.on(table, format!("chain {}", chain.name), NEWCHAIN, libc::NLM_F_CREATE, |buffer| {
            buffer.text(3, &chain.name);
            if let Some(hook) = chain.hook {
                buffer.nested(4, |buffer| {
                    buffer.u32(1, hook_number(hook.point));
                    buffer.bytes(2, &hook.priority.to_be_bytes());
                });
                let kind = match hook.kind {
                    HookKind::Filter => "filter",
                    HookKind::Nat => "nat",
                };
                buffer.u32(5, 1);
                buffer.text(7, kind);
            }
        });
    }

    fn rules(&mut self, table: TableName, chain: &Chain) {
        for rule in &chain.rules {
            self.rule(table, &chain.name, rule);
        }
    }

    fn rule(&mut self, table: TableName, chain: &str, rule: &Rule) {
        let name = format!("rule \"{}\" of chain {chain}", rule.comment);
        self.on(table, name, NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |buffer| {
            buffer.text(2, chain);
            expr::list(buffer, 4, &rule.expressions);
            buffer.bytes(7, &comment(&rule.comment));
        });
    }

    /// A chain with its rules, beside those that are there.
    pub fn new_chain(&mut self, table: TableName, chain: &Chain) {
        self.chain(table, chain);
        self.rules(table, chain);
    }

    /// A chain that nothing leads to any more, with its rules.
    pub fn remove_chain(&mut self, table: TableName, chain: &str) {
        self.on(table, format!("removing chain {chain}"), DELCHAIN, 0, |buffer| buffer.text(3, chain));
    }

    pub fn add(&mut self, table: TableName, set: &str, elements: &[Element]) {
        self.elements(table, set, elements, NEWSETELEM, libc::NLM_F_CREATE);
    }

    /// Elements that are there; one that is not fails the batch.
    pub fn delete(&mut self, table: TableName, set: &str, elements: &[Element]) {
        self.elements(table, set, elements, DELSETELEM, 0);
    }

    fn elements(&mut self, table: TableName, set: &str, elements: &[Element], message: u16, flags: i32) {
        for chunk in elements.chunks(CHUNK) {
            let what = if message == NEWSETELEM { "adding to" } else { "removing from" };
            self.on(table, format!("{what} set {set}"), message, flags, |buffer| {
                buffer.text(2, set);
                buffer.nested(3, |buffer| {
                    for element in chunk {
                        buffer.nested(1, |buffer| write_element(buffer, element, message == NEWSETELEM));
                    }
                });
            });
        }
    }
}

fn write_element(buffer: &mut Buffer, element: &Element, with_value: bool) {
    let key = |buffer: &mut Buffer, kind: u16, key: &Key| {
        buffer.nested(kind, |buffer| buffer.bytes(1, &key.0));
    };
    key(buffer, 1, &element.key);
    match element.value.as_ref().filter(|_| with_value) {
        Some(Value::Data(data)) => key(buffer, 2, data),
        Some(Value::Verdict(verdict)) => buffer.nested(2, |buffer| expr::verdict(buffer, verdict)),
        None => {}
    }
    if let Some(end) = &element.end {
        key(buffer, 10, end);
    }
}

/// A set of one field is as long as the field; fields side by side start on registers.
fn padded(fields: &[Field], field: Field) -> u32 {
    if fields.len() > 1 { field.padded() } else { field.octets() }
}

/// NFT_SET_INTERVAL 4, MAP 8, TIMEOUT 0x10, EVAL 0x20, CONCAT 0x80.
fn set_flags(set: &Set) -> u32 {
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    flag(set.ranges, 4)
        | flag(set.data.is_some(), 8)
        | flag(set.dynamic.is_some_and(|dynamic| dynamic.timeout_ms.is_some()), 0x10)
        | flag(set.dynamic.is_some(), 0x20)
        | flag(set.key.len() > 1, 0x80)
}

/// What nft(8) calls the type, for its listings: six bits a field.
fn type_of(fields: &[Field]) -> u32 {
    let of = |field: &Field| match field {
        Field::IfName => 41,
        Field::Mac => 9,
        Field::Address => 7,
        Field::Protocol => 12,
        Field::Port => 13,
        Field::Id => 19,
        Field::Priority => 23,
    };
    fields.iter().fold(0, |types, field| types << 6 | of(field))
}

/// Tells nft(8) which numbers are in the host's byte order (libnftnl's NFTNL_UDATA_SET_KEYBYTEORDER 0, DATABYTEORDER 1).
fn byte_orders(set: &Set) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut note = |of: u8, fields: &[Field]| {
        if let [Field::IfName | Field::Id | Field::Priority] = fields {
            bytes.extend([of, 4]);
            bytes.extend(1_u32.to_ne_bytes());
        }
    };
    note(0, &set.key);
    if let Some(Data::Fields(fields)) = &set.data {
        note(1, fields);
    }
    bytes
}

fn hook_number(point: HookPoint) -> u32 {
    match point {
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    }
}

/// As nft(8) keeps a comment: type 0, length, text and its NUL. At most 128 bytes of text.
fn comment(text: &str) -> Vec<u8> {
    let text: String = text.chars().filter(char::is_ascii).take(127).collect();
    // At most 128.
    #[allow(clippy::cast_possible_truncation)]
    let mut bytes = vec![0, text.len() as u8 + 1];
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes
}
