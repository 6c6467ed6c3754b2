//! Places options in a reply: in the options field, and where that is too small in the file and sname fields (RFC 2132
//! section 9.3). PURE. In: options in the order of their need. Out: the bytes of each area, closed by End. An option longer
//! than 255 bytes is several of its code (RFC 3396); one that fits nowhere is left out whole.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::Range;

const SNAME: Range<usize> = 44..108;
const FILE: Range<usize> = 108..236;
const OVERLOAD: u8 = 52;
const END: u8 = 255;

/// What an option takes, headers included.
pub(super) fn size(data: &[u8]) -> usize {
    data.len() + 2 * data.len().div_ceil(255).max(1)
}

/// The areas of a message that ends where `frame` ends.
pub(super) struct Areas<'a> {
    frame: &'a mut Vec<u8>,
    /// Where the message begins in `frame`.
    begin: usize,
    /// Where the options field ends at the latest, without what is kept free for its last options and End.
    limit: usize,
    /// file and sname, as far as options may be in them: where the next option goes, and where the area ends.
    fields: [Option<Range<usize>>; 2],
    used: u8,
}

impl<'a> Areas<'a> {
    /// For a message of at most `room` bytes, of which `last` are kept for `close`.
    pub(super) fn new(frame: &'a mut Vec<u8>, begin: usize, room: usize, last: usize) -> Self {
        let limit = begin + room.saturating_sub(last + 1);
        Self { frame, begin, limit, fields: [None, None], used: 0 }
    }

    /// Whether options of that size in all do not fit.
    pub(super) fn lacks(&self, needed: usize) -> bool {
        self.frame.len() + needed > self.limit
    }

    /// Opens sname and file, each if it is free.
    pub(super) fn overload(&mut self, sname: bool, file: bool) {
        let area = |free: bool, area: Range<usize>| {
            free.then_some(self.begin + area.start..self.begin + area.end - 1)
        };
        self.fields = [area(file, FILE), area(sname, SNAME)];
        if self.fields.iter().any(Option::is_some) {
            // For the option that says so.
            self.limit = self.limit.saturating_sub(3);
        }
    }

    pub(super) fn put(&mut self, code: u8, data: &[u8]) {
        let size = size(data);
        if self.frame.len() + size <= self.limit {
            return append(self.frame, code, data);
        }
        for (field, bit) in self.fields.iter_mut().zip([1, 2]) {
            if let Some(field) = field
                && size <= field.len()
                && let Ok(length) = u8::try_from(data.len())
            {
                let at = field.start;
                self.frame[at] = code;
                self.frame[at + 1] = length;
                self.frame[at + 2..at + size].copy_from_slice(data);
                field.start += size;
                self.used |= bit;
                return;
            }
        }
    }

    /// Ends every area. `agent` is the last option of all (RFC 3046 section 2.2).
    pub(super) fn close(self, agent: Option<&[u8]>) {
        if self.used != 0 {
            append(self.frame, OVERLOAD, &[self.used]);
        }
        for (field, bit) in self.fields.into_iter().zip([1, 2]) {
            if let Some(field) = field
                && self.used & bit != 0
            {
                self.frame[field.start] = END;
            }
        }
        if let Some(agent) = agent {
            append(self.frame, 82, agent);
        }
        self.frame.push(END);
    }
}

fn append(frame: &mut Vec<u8>, code: u8, data: &[u8]) {
    if data.is_empty() {
        frame.extend([code, 0]);
    }
    for piece in data.chunks(255) {
        frame.extend([code, piece.len() as u8]);
        frame.extend(piece);
    }
}
