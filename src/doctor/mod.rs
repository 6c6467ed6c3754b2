//! `guestnet doctor`: what is wrong with this host or with one guest's way, in words, with the command that mends it or what to do instead. In: what
//! the service says, /proc, /sys, the firewall, answers to a question or a ping. Out: findings; it changes nothing.

mod firewall;
mod host;
mod look;
mod network;
mod probe;
mod start;
mod vm;

use std::fmt;

use serde::Serialize;

pub use host::{Configuration, Facts, Service, check as check_host};
pub use look::{Seen, look, networks_of, vm_namespaces};
pub use network::NetworkFacts;
pub use start::{Started, started};
pub use vm::{Drops, VmFacts, check as check_vm, conclusion, look as look_at_vm};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, and may not for long, or not for all.
    Warning,
    /// Guests suffer.
    Problem,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    /// What was looked at, and what was there.
    pub seen: String,
    /// What that means for guests.
    pub meaning: String,
    /// The command that mends it, or that shows more: it can be run as it stands.
    pub mend: Option<String>,
    /// What to do where no command does, in words.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, seen: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            seen: seen.into(),
            meaning: String::new(),
            mend: None,
            advice: None,
        }
    }

    fn warning(check: &'static str, seen: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, meaning: meaning.into(), ..Self::ok(check, seen) }
    }

    fn problem(check: &'static str, seen: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { verdict: Verdict::Problem, meaning: meaning.into(), ..Self::ok(check, seen) }
    }

    fn mended_by(self, command: impl Into<String>) -> Self {
        Self { mend: Some(command.into()), ..self }
    }

    fn advised(self, words: impl Into<String>) -> Self {
        Self { advice: Some(words.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Finding, Verdict};

    const PROGRAMS: [&str; 16] = [
        "bridge",
        "chmod",
        "firewall-cmd",
        "guestnet",
        "ip",
        "iptables",
        "journalctl",
        "ls",
        "modprobe",
        "nft",
        "rm",
        "ss",
        "sudo",
        "sysctl",
        "systemctl",
        "timedatectl",
    ];

    /// That whoever has them knows what to do, and that a program may run what is called a command.
    pub(super) fn assert_mendable(found: &[Finding]) {
        for finding in found.iter().filter(|finding| finding.verdict != Verdict::Ok) {
            assert!(finding.mend.is_some() || finding.advice.is_some(), "{finding:?}");
            let Some(command) = &finding.mend else { continue };
            let shell = Command::new("sh").args(["-n", "-c", command]).output().unwrap();
            assert!(shell.status.success(), "{finding:?}: {shell:?}");
            let program = command.split(' ').next().unwrap();
            assert!(PROGRAMS.contains(&program), "{program} is no program that is known here: {finding:?}");
            let holds = ["GATEWAY", "USER", "VM_ID"].iter().find(|hole| command.contains(*hole));
            assert_eq!(holds, None, "it cannot be run as it stands: {finding:?}");
        }
    }
}
