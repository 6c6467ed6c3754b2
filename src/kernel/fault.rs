//! Faults that tests inject: a debug build reads one from the file named by GUESTNET_FAULT, does it once, and removes the file.
//! `before|after STEP fail|kill|stop` waits for a step, by name; `at NUMBER fail|kill|stop` for the operation of that number from
//! then on, a step being some; `stop` has the process wait for SIGCONT; `refuse` instead of `fail` leaves the file, and fails
//! again. What follows on the line tells one fault from another. Release builds have none of it.

use std::io;

use super::error::{Doing, KernelError};

/// Every step there is; tests walk all of them. One that is not here ends a debug build that comes to it.
pub const STEPS: [&str; 45] = [
    // Of `plan`: steps and undos.
    "bridge",
    "unreachable",
    "namespace",
    "tap",
    "tap-options",
    "veth",
    "redirect",
    "rate",
    "unplug",
    "port",
    "name",
    "neighbour",
    "route",
    "forwarding",
    "undo-bridge",
    "undo-unreachable",
    "undo-namespace",
    "undo-veth",
    "undo-name",
    "undo-neighbour",
    "undo-route",
    "undo-forwarding",
    "undo-any-route",
    "undo-address",
    // Of slots.
    "hold-tap",
    "wipe",
    "wipe-some",
    "clear",
    // Of the host.
    "sysctl",
    "rules",
    "undo-rules",
    "undo-nat-rule",
    "metadata-rule",
    "dns-rules",
    // Of nf_tables and of connections.
    "owned-tables",
    "all-walls",
    "undo-all-walls",
    "walls",
    "undo-walls",
    "bridge-walls",
    "connected",
    "policy",
    "forward",
    "forget-connections",
    "end-connections",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

/// Does a step of that name, with what a test wants to happen before and after it. After a fault that follows it, it is done.
pub(super) fn step<T>(
    name: &str,
    doing: impl Fn() -> String,
    work: impl FnOnce() -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    point(When::Before, name).doing(&doing)?;
    let done = work()?;
    point(When::After, name).doing(&doing)?;
    Ok(done)
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{Mutex, OnceLock, PoisonError};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

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
        assert!(super::STEPS.contains(&step), "{step} is no step that tests know of");
        let Some((file, fault)) = read() else { return Ok(()) };
        let when = if when == When::Before { "before" } else { "after" };
        match fault.strip_prefix(&format!("{when} {step} ")) {
            Some(how) => happen(file, how, &format!("{when} {step}")),
            None => Ok(()),
        }
    }

    /// Comes before everything that asks the kernel for something. Numbers count from 1, from the first that comes after the
    /// fault was written down.
    pub(in super::super) fn operation() -> io::Result<()> {
        static SINCE: Mutex<(String, usize)> = Mutex::new((String::new(), 0));
        let mut since = SINCE.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, fault)) = read() else { return Ok(()) };
        let Some((number, how)) = fault.strip_prefix("at ").and_then(|fault| fault.split_once(' ')) else {
            return Ok(());
        };
        if since.0 != fault {
            *since = (fault.clone(), 0);
        }
        since.1 += 1;
        if number.parse() == Ok(since.1) {
            happen(file, how, &format!("at operation {number}"))
        } else {
            Ok(())
        }
    }

    fn read() -> Option<(&'static str, String)> {
        let file = file()?;
        Some((file, std::fs::read_to_string(file).ok()?))
    }

    fn happen(file: &str, how: &str, at: &str) -> io::Result<()> {
        let injected = Err(io::Error::other(format!("fault injected {at}")));
        match how.split_whitespace().next() {
            Some("refuse") => injected,
            Some("fail") => {
                std::fs::remove_file(file)?;
                injected
            }
            Some(signal @ ("kill" | "stop")) => {
                std::fs::remove_file(file)?;
                let signal = if signal == "kill" { Signal::SIGKILL } else { Signal::SIGSTOP };
                let _ = kill(Pid::this(), signal);
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

    pub(in super::super) fn operation() -> io::Result<()> {
        Ok(())
    }
}

pub(super) use armed::{operation, point, possible};
