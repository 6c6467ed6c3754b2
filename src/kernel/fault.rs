//! Faults that tests inject before and after each step: a debug build reads `before|after STEP fail|kill` from the file named
//! by GUESTNET_FAULT, does it once, and removes the file; `refuse` fails as long as the file is there. Release builds have none
//! of it.

use std::io;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;

    use super::{When, io};

    fn file() -> Option<&'static str> {
        static FILE: OnceLock<Option<String>> = OnceLock::new();
        FILE.get_or_init(|| std::env::var("GUESTNET_FAULT").ok()).as_deref()
    }

    /// Whether steps are to be done one by one.
    pub(in super::super) fn possible() -> bool {
        file().is_some()
    }

    pub(in super::super) fn point(when: When, step: &str) -> io::Result<()> {
        let Some(file) = file() else { return Ok(()) };
        let Ok(fault) = std::fs::read_to_string(file) else { return Ok(()) };
        let when = if when == When::Before { "before" } else { "after" };
        let injected = || Err(io::Error::other(format!("fault injected {when} {step}")));
        match fault.trim().strip_prefix(&format!("{when} {step} ")) {
            Some("refuse") => injected(),
            Some("fail") => {
                std::fs::remove_file(file)?;
                injected()
            }
            Some("kill") => {
                std::fs::remove_file(file)?;
                let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(not(debug_assertions))]
mod armed {
    use super::{When, io};

    pub(in super::super) fn possible() -> bool {
        false
    }

    pub(in super::super) fn point(_when: When, _step: &str) -> io::Result<()> {
        Ok(())
    }
}

pub(super) use armed::{point, possible};
