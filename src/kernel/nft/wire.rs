//! nfnetlink messages: attributes, and the batch that the kernel carries out whole or not at all
//! (linux/netfilter/nfnetlink.h). Byte order inside is the network's; headers are the host's.

pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const HEADER: usize = 16;

/// A growing netlink message, or several.
#[derive(Debug, Default)]
pub(super) struct Buffer(pub(super) Vec<u8>);

impl Buffer {
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        write: impl FnOnce(&mut Self),
    ) {
        self.header(kind, flags, seq, family, 0, write);
    }

    fn header(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        resource: u16,
        write: impl FnOnce(&mut Self),
    ) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(seq.to_ne_bytes());
        self.0.extend([0; 4]);
        // struct nfgenmsg: family, version 0, resource id.
        self.0.extend([family, 0]);
        self.0.extend(resource.to_be_bytes());
        write(self);
        // A batch of ours is some megabytes at most: its length fits.
        #[allow(clippy::cast_possible_truncation)]
        let length = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.nested_as(kind, |buffer| buffer.0.extend(value));
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.nested_as(kind, |buffer| {
            buffer.0.extend(value.as_bytes());
            buffer.0.push(0);
        });
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        self.nested_as(kind | libc::NLA_F_NESTED as u16, write);
    }

    fn nested_as(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        write(self);
        // Whoever writes keeps an attribute below 64 KiB: elements are sent in chunks, rules are short.
        #[allow(clippy::cast_possible_truncation)]
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }
}

/// Changes that happen together. Each has a name for the error that it may meet.
#[derive(Debug)]
pub struct Batch {
    buffer: Buffer,
    names: Vec<String>,
    /// Where the last change's header starts: it is the one to be acknowledged.
    last: usize,
}

impl Batch {
    pub(super) fn empty() -> Self {
        let mut buffer = Buffer::default();
        buffer.header(BATCH_BEGIN, libc::NLM_F_REQUEST as u16, 0, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        Self { buffer, names: Vec::new(), last: 0 }
    }

    /// One more change; `name` says which in an error.
    pub(super) fn change(
        &mut self,
        name: String,
        message: u16,
        flags: i32,
        family: u8,
        write: impl FnOnce(&mut Buffer),
    ) {
        self.names.push(name);
        self.last = self.buffer.0.len();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | message;
        let (flags, seq) = ((libc::NLM_F_REQUEST | flags) as u16, self.sequence());
        self.buffer.message(kind, flags, seq, family, write);
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Sequence number of the last change; the batch's own begin is 0.
    pub(super) fn sequence(&self) -> u32 {
        self.names.len().try_into().unwrap_or(u32::MAX)
    }

    pub(super) fn name(&self, sequence: u32) -> &str {
        let at = (sequence as usize).checked_sub(1);
        at.and_then(|at| self.names.get(at)).map_or("the whole of it", String::as_str)
    }

    /// The bytes to send.
    pub(super) fn finish(&mut self) -> &[u8] {
        let flags = self.last + 6;
        let acknowledged = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16
            | u16::from_ne_bytes([self.buffer.0[flags], self.buffer.0[flags + 1]]);
        self.buffer.0[flags..flags + 2].copy_from_slice(&acknowledged.to_ne_bytes());
        let seq = self.sequence() + 1;
        self.buffer.header(BATCH_END, libc::NLM_F_REQUEST as u16, seq, 0, NFNL_SUBSYS_NFTABLES, |_| {});
        &self.buffer.0
    }
}

/// The attributes in `bytes`, each with its type without flags; what is cut off ends them.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & libc::NLA_TYPE_MASK as u16;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        8 => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        2 => Some(u16::from_be_bytes(bytes.try_into().ok()?).into()),
        1 => bytes.first().map(|byte| u64::from(*byte)),
        _ => None,
    }
}

pub(super) fn string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The messages in what was received: type, flags, sequence, and what follows the header.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, sequence, body))
    })
}
