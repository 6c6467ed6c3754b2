//! Expressions as attributes (linux/netfilter/nf_tables.h; the numbers are its NFTA_* names).

use super::wire::Buffer;
use crate::walls::nft::{Ct, Expr, Header, Meta, Register, Verdict};

/// NFT_REG32_00: the first 4-byte register.
const FIRST_REGISTER: u32 = 8;
/// NFT_REG_VERDICT.
const VERDICT_REGISTER: u32 = 0;

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

fn register(index: Register) -> u32 {
    FIRST_REGISTER + index
}

/// All of a rule's expressions, as the value of `kind`.
pub(super) fn list(buffer: &mut Buffer, kind: u16, expressions: &[Expr]) {
    buffer.nested(kind, |buffer| {
        for expression in expressions {
            buffer.nested(LIST_ELEM, |buffer| one(buffer, expression));
        }
    });
}

fn named(buffer: &mut Buffer, name: &str, write: impl FnOnce(&mut Buffer)) {
    buffer.text(EXPR_NAME, name);
    buffer.nested(EXPR_DATA, write);
}

/// The counter that each element of a counted set has.
pub(super) fn counter(buffer: &mut Buffer) {
    named(buffer, "counter", |_| {});
}

pub(super) fn verdict(buffer: &mut Buffer, verdict: &Verdict) {
    buffer.nested(DATA_VERDICT, |buffer| {
        let (code, chain): (i32, _) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        buffer.bytes(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            buffer.text(2, chain);
        }
    });
}

fn value(buffer: &mut Buffer, kind: u16, bytes: &[u8]) {
    buffer.nested(kind, |buffer| buffer.bytes(DATA_VALUE, bytes));
}

fn compare(buffer: &mut Buffer, index: Register, operation: u32, bytes: &[u8]) {
    named(buffer, "cmp", |buffer| {
        buffer.u32(1, register(index));
        buffer.u32(2, operation);
        value(buffer, 3, bytes);
    });
}

fn lookup(buffer: &mut Buffer, set: &str, key: Register, to: Option<u32>, inverted: bool) {
    named(buffer, "lookup", |buffer| {
        buffer.text(1, set);
        buffer.u32(2, register(key));
        if let Some(to) = to {
            buffer.u32(3, to);
        }
        buffer.u32(5, inverted.into());
    });
}

/// `operation` of each element's own expression: 0 adds an element and keeps it, 1 renews its timeout too.
fn dynamic(buffer: &mut Buffer, set: &str, key: Register, operation: u32, write: impl FnOnce(&mut Buffer)) {
    named(buffer, "dynset", |buffer| {
        element(buffer, set, key, operation);
        buffer.nested(7, write);
    });
}

fn element(buffer: &mut Buffer, set: &str, key: Register, operation: u32) {
    buffer.text(1, set);
    buffer.u32(3, operation);
    buffer.u32(4, register(key));
}

fn one(buffer: &mut Buffer, expression: &Expr) {
    match expression {
        Expr::Meta { key, to } => named(buffer, "meta", |buffer| {
            buffer.u32(1, register(*to));
            let key = match key {
                Meta::Priority => 2,
                Meta::InputName => 6,
                Meta::OutputName => 7,
                Meta::NetworkFamily => 15,
                Meta::L4Protocol => 16,
                Meta::InputGroup => 21,
            };
            buffer.u32(2, key);
        }),
        Expr::Payload { header, offset, len, to } => named(buffer, "payload", |buffer| {
            buffer.u32(1, register(*to));
            let base = match header {
                Header::Link => 0,
                Header::Network => 1,
                Header::Transport => 2,
            };
            buffer.u32(2, base);
            buffer.u32(3, *offset);
            buffer.u32(4, *len);
        }),
        Expr::Ct { key, to } => named(buffer, "ct", |buffer| {
            buffer.u32(1, register(*to));
            let key = match key {
                Ct::State => 0,
                Ct::Status => 2,
            };
            buffer.u32(2, key);
        }),
        Expr::DestinationType { to } => named(buffer, "fib", |buffer| {
            buffer.u32(1, register(*to));
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR.
            buffer.u32(2, 3);
            buffer.u32(3, 2);
        }),
        Expr::Equal { register, value } => compare(buffer, *register, 0, value),
        Expr::NotEqual { register, value } => compare(buffer, *register, 1, value),
        Expr::AtLeast { register, value } => compare(buffer, *register, 5, value),
        Expr::Between { register: index, from, to } => named(buffer, "range", |buffer| {
            buffer.u32(1, register(*index));
            buffer.u32(2, 0);
            value(buffer, 3, from);
            value(buffer, 4, to);
        }),
        Expr::Mask { register: index, mask } => named(buffer, "bitwise", |buffer| {
            buffer.u32(1, register(*index));
            buffer.u32(2, register(*index));
            // A mask is as long as the field it is for, 4 bytes at most.
            buffer.u32(3, mask.len().try_into().unwrap_or_default());
            value(buffer, 4, mask);
            value(buffer, 5, &vec![0; mask.len()]);
        }),
        Expr::In { set, key } => lookup(buffer, set, *key, None, false),
        Expr::NotIn { set, key } => lookup(buffer, set, *key, None, true),
        Expr::Map { map, key, to } => lookup(buffer, map, *key, Some(register(*to)), false),
        Expr::VerdictOf { map, key } => lookup(buffer, map, *key, Some(VERDICT_REGISTER), false),
        Expr::RateOver { set, key, rate, burst } => dynamic(buffer, set, *key, 1, |buffer| {
            named(buffer, "limit", |buffer| {
                buffer.u64(1, *rate);
                buffer.u64(2, 1);
                buffer.u32(3, *burst);
                buffer.u32(4, 0);
                buffer.u32(5, 1);
            });
        }),
        Expr::ConnectionsOver { set, key, count } => dynamic(buffer, set, *key, 0, |buffer| {
            named(buffer, "connlimit", |buffer| {
                buffer.u32(1, *count);
                buffer.u32(2, 1);
            });
        }),
        Expr::Remember { set, key } => named(buffer, "dynset", |buffer| element(buffer, set, *key, 0)),
        Expr::Number { to, value: number } => named(buffer, "immediate", |buffer| {
            buffer.u32(1, register(*to));
            value(buffer, 2, &number.to_ne_bytes());
        }),
        Expr::SetPriority { from } => named(buffer, "meta", |buffer| {
            buffer.u32(2, 2);
            buffer.u32(3, register(*from));
        }),
        Expr::Counter => counter(buffer),
        Expr::Count(name) => named(buffer, "objref", |buffer| {
            buffer.u32(1, super::OBJECT_COUNTER);
            buffer.text(2, name);
        }),
        Expr::Redirect { address, port } => named(buffer, "nat", |buffer| {
            buffer.u32(1, 1);
            buffer.u32(2, libc::AF_INET as u32);
            buffer.u32(3, register(*address));
            buffer.u32(5, register(*port));
        }),
        Expr::Masquerade => named(buffer, "masq", |_| {}),
        Expr::NoTrack => named(buffer, "notrack", |_| {}),
        Expr::Verdict(decided) => named(buffer, "immediate", |buffer| {
            buffer.u32(1, VERDICT_REGISTER);
            buffer.nested(2, |buffer| verdict(buffer, decided));
        }),
    }
}
