use std::io;

/// A kernel operation that failed: what was tried on what, and the kernel's answer.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct KernelError {
    pub doing: String,
    pub source: io::Error,
}

impl KernelError {
    pub(super) fn new(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { doing: doing.into(), source: source.into() }
    }
}

/// Says what was being done when an operation fails.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, KernelError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, KernelError> {
        self.map_err(|source| KernelError::new(what(), source))
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, KernelError> {
        self.map_err(|errno| KernelError::new(what(), io::Error::from(errno)))
    }
}

impl<T> Doing<T> for Result<T, rtnetlink::Error> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, KernelError> {
        self.map_err(|error| KernelError::new(what(), netlink_to_io(error)))
    }
}

pub(super) fn netlink_to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Makes removing what is gone already a success.
pub(super) fn gone_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if is_gone(message.raw_code()) => Ok(()),
        other => other,
    }
}

/// Makes adding what is there already a success.
pub(super) fn there_is_fine(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::EEXIST => Ok(()),
        other => other,
    }
}

fn is_gone(code: i32) -> bool {
    [libc::ENODEV, libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL].contains(&-code)
}
