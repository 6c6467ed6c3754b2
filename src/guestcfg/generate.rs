//! One call for every target, so that the command line, the API and the tests need not know them.

use std::fmt;

use super::{Dialect, Form, Generated, NetworkConfigVersion, Options, Refusal, cloud_init, cmdline};
use crate::model::GuestNet;

/// What a guest's configuration is generated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Cmdline(Dialect),
    CloudInit(Form, NetworkConfigVersion),
}

impl Target {
    fn takes_merge(self) -> bool {
        matches!(self, Self::Cmdline(_) | Self::CloudInit(Form::BootArgs, _))
    }

    fn takes_user_data(self) -> bool {
        matches!(self, Self::CloudInit(Form::NocloudDir | Form::SeedImage, _))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cmdline(dialect) => write!(f, "cmdline --dialect {dialect}"),
            Self::CloudInit(form, _) => write!(f, "cloud-init --form {form}"),
        }
    }
}

/// The configuration of `guest` for `target`. An option that the target has no place for is refused.
pub fn generate(target: Target, guest: &GuestNet, options: &Options) -> Result<Generated, Refusal> {
    let no_place = |option| Err(Refusal::NoPlace { option, target: target.to_string() });
    if options.merge.is_some() && !target.takes_merge() {
        return no_place("a command line to merge with");
    }
    if options.user_data.is_some() && !target.takes_user_data() {
        return no_place("user-data");
    }
    match target {
        Target::Cmdline(dialect) => cmdline(guest, dialect, options),
        Target::CloudInit(form, version) => cloud_init(guest, form, version, options),
    }
}
