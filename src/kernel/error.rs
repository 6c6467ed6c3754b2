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

    /// Whether somebody else has what it was about in use.
    pub fn is_busy(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EBUSY)
    }

    /// Whether somebody else has the name it was about.
    pub fn is_taken(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    /// Whether the thing it was about is not there.
    pub(super) fn is_gone(&self) -> bool {
        is_gone(&self.source)
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

fn is_gone(error: &io::Error) -> bool {
    const GONE: [i32; 4] = [libc::ENODEV, libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| GONE.contains(&code))
}

/// Makes removing what is gone already a success.
pub(super) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}
