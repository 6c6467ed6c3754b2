//! `guestnet gen dhcp`: the files of guest/, put into an image's root or into an archive. In: which root, which clients. Out:
//! the paths that were written, or a tar stream. Settings of the image's own are not overwritten unasked.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::CliError;
use super::gen_arguments::Dhcp;
use super::generate::write_file;
use super::output::{self, Format};
use crate::guestcfg::{DhcpClient, GuestFile, dhcp};

pub(super) fn run(format: Format, asked: &Dhcp) -> Result<Vec<u8>, CliError> {
    let Dhcp { root, clients, replace } = asked;
    let files = match (root, clients.is_empty()) {
        (Some(root), true) => dhcp(&found(root)?),
        (None, true) => dhcp(&DhcpClient::ALL),
        (_, false) => dhcp(clients),
    };
    if let Some(root) = root {
        install(root, &files, *replace)?;
    }
    match (format, root) {
        (Format::Json, _) => Ok(output::generated(&files, &[]).into_bytes()),
        (Format::Table, Some(_)) => {
            Ok(files.iter().flat_map(|f| [f.path.as_bytes(), b"\n"].concat()).collect())
        }
        (Format::Table, None) if io::stdout().is_terminal() => Err(CliError::Archive),
        (Format::Table, None) => {
            archive(&files).map_err(|source| CliError::Io { what: "making the archive".into(), source })
        }
    }
}

/// The clients whose programs the image has.
fn found(root: &Path) -> Result<Vec<DhcpClient>, CliError> {
    let look = |source| CliError::Io { what: format!("looking into {}", root.display()), source };
    if !root.is_dir() {
        return Err(look(io::Error::new(io::ErrorKind::NotFound, "there is no such folder")));
    }
    let image = File::open(root).map_err(look)?;
    // A link in an image may be absolute: on the way to a program it is followed as the image would, and one in the program's
    // own place (to busybox, to alternatives) is the program.
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    let how = how.resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let has = |program: &&str| openat2(&image, *program, how).is_ok();
    let found: Vec<DhcpClient> =
        DhcpClient::ALL.into_iter().filter(|client| client.programs().iter().any(has)).collect();
    if found.is_empty() { Err(CliError::NoDhcpClient(root.to_owned())) } else { Ok(found) }
}

/// All of the files or, where one may not be written, none.
fn install(root: &Path, files: &[GuestFile], replace: bool) -> Result<(), CliError> {
    let io_error = |what: &str, path: &Path| {
        let what = format!("{what} {}", path.display());
        move |source| CliError::Io { what, source }
    };
    let root = root.canonicalize().map_err(io_error("looking into", root))?;
    let mut wanted = Vec::new();
    for file in files {
        let path = root.join(&file.path);
        inside(&root, &path)?;
        match std::fs::read(&path) {
            Ok(standing) if standing == file.bytes && has_mode(&path, file.mode) => continue,
            Ok(standing) if standing != file.bytes && !replace => return Err(CliError::Stands(path)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("reading", &path)(error));
            }
            _ => wanted.push((path, file)),
        }
    }
    for (path, file) in wanted {
        // Under another name first: an image never has half a file.
        let mut draft = path.clone().into_os_string();
        draft.push(".guestnet-new");
        let draft = PathBuf::from(draft);
        let written = write_file(&draft, file).and_then(|()| std::fs::rename(&draft, &path));
        if written.is_err() {
            // The first error is the one that helps.
            let _ = std::fs::remove_file(&draft);
        }
        written.map_err(io_error("writing", &path))?;
    }
    Ok(())
}

fn has_mode(path: &Path, mode: u32) -> bool {
    path.metadata().is_ok_and(|found| found.permissions().mode() & 0o7777 == mode)
}

/// An image may have links to anywhere: none of them leads out of it.
fn inside(root: &Path, path: &Path) -> Result<(), CliError> {
    let existing = path.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok());
    let resolved = existing.unwrap_or(root).canonicalize();
    if resolved.is_ok_and(|resolved| resolved.starts_with(root)) {
        Ok(())
    } else {
        Err(CliError::LeadsOut { path: path.to_owned(), root: root.to_owned() })
    }
}

/// The same bytes on every machine and day.
fn archive(files: &[GuestFile]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(file.mode);
        header.set_size(file.bytes.len() as u64);
        archive.append_data(&mut header, &file.path, file.bytes.as_slice())?;
    }
    archive.into_inner()
}
