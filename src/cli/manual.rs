//! Completions and man pages, from the same arguments that the command line is read with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;

use super::CliError;
use super::arguments::Arguments;

/// What a shell sources to complete commands and options.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "guestnet", &mut script);
    script
}

/// A page for the program and for each of its commands, in a folder.
pub(super) fn pages(folder: &Path) -> Result<(), CliError> {
    fs::create_dir_all(folder).map_err(failed(folder))?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(failed(folder))
}

fn failed(folder: &Path) -> impl FnOnce(io::Error) -> CliError {
    let folder: PathBuf = folder.to_owned();
    move |source| CliError::Io { what: format!("writing man pages to {}", folder.display()), source }
}
