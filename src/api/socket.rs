//! The API's unix socket as a file: made for the owner and its group, never taken from a daemon that answers, removed when
//! its owner goes. In: the path. Out: a listening socket, or what stands in the way of one.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Why the API has no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("socket {path}: another guestnet answers there: stop it, or set another [api] socket")]
    InUse { path: PathBuf },
    #[error("socket {path}: there is something that is no socket: remove it, or set another [api] socket")]
    NotASocket { path: PathBuf },
    #[error("socket {path}: not a path for a unix socket: at most 107 bytes, none of them zero")]
    Path { path: PathBuf },
    #[error("socket {path}: there is no group {group}: make it (groupadd --system {group}) or name another")]
    Group { path: PathBuf, group: String },
    #[error("socket {path}: {doing}: {source}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

/// A listening socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

impl ApiSocket {
    /// Callers may connect from here on; they wait until the server is started.
    /// `group` may open it beside the owner.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, SocketError> {
        Self::bind_with(path, group, 0o660)
    }

    /// Whether nobody answers there, and its group is there; changes nothing.
    pub fn check(path: &Path, group: Option<&str>) -> Result<(), SocketError> {
        group.map(|name| group_id(path, name)).transpose()?;
        let address = SockAddr::unix(path).map_err(|_| SocketError::Path { path: path.to_owned() })?;
        is_stale(path, &address).map(drop)
    }

    /// For whoever may enter the directory.
    pub fn bind_for_all(path: &Path) -> Result<Self, SocketError> {
        Self::bind_with(path, None, 0o666)
    }

    pub(crate) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }

    fn bind_with(path: &Path, group: Option<&str>, mode: u32) -> Result<Self, SocketError> {
        let group = group.map(|name| group_id(path, name)).transpose()?;
        let address = SockAddr::unix(path).map_err(|_| SocketError::Path { path: path.to_owned() })?;
        let failed = |doing| move |source| SocketError::Io { path: path.to_owned(), doing, source };

        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(failed("making its directory"))?;
        }
        if is_stale(path, &address)? {
            fs::remove_file(path).map_err(failed("removing a stale one"))?;
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("making it"))?;
        socket.bind(&address).map_err(failed("binding it"))?;
        let file = SocketFile::of(path).map_err(failed("reading it back"))?;
        // Before listen(2), which lets callers in: nobody connects under the umask's rights.
        if let Some(group) = group {
            std::os::unix::fs::lchown(path, None, Some(group)).map_err(failed("giving it to its group"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("setting its rights"))?;
        socket.listen(1024).map_err(failed("listening on it"))?;
        socket.set_nonblocking(true).map_err(failed("listening on it"))?;
        Ok(Self { listener: socket.into(), file })
    }
}

/// A group that a socket is to be given to while it is in use: who is connected stays.
#[derive(Debug)]
pub(crate) struct SocketGroup {
    path: PathBuf,
    group: u32,
}

impl SocketGroup {
    /// The daemon's own where no group is named.
    pub(crate) fn find(path: &Path, group: Option<&str>) -> Result<Self, SocketError> {
        let group = match group {
            Some(name) => group_id(path, name)?,
            None => nix::unistd::getegid().as_raw(),
        };
        Ok(Self { path: path.to_owned(), group })
    }

    pub(crate) fn give(&self) {
        if let Err(error) = std::os::unix::fs::lchown(&self.path, None, Some(self.group)) {
            tracing::error!(socket = %self.path.display(), %error, "the socket could not be given to its group");
        }
    }
}

fn group_id(path: &Path, name: &str) -> Result<u32, SocketError> {
    let no_group = || SocketError::Group { path: path.to_owned(), group: name.to_owned() };
    let found = nix::unistd::Group::from_name(name).map_err(|errno| SocketError::Io {
        path: path.to_owned(),
        doing: "looking up its group",
        source: errno.into(),
    })?;
    Ok(found.ok_or_else(no_group)?.gid.as_raw())
}

/// Whether there is a socket file that nobody listens on. Who listens is asked by connecting, the only sure way.
fn is_stale(path: &Path, address: &SockAddr) -> Result<bool, SocketError> {
    let failed = |doing| move |source| SocketError::Io { path: path.to_owned(), doing, source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("looking at it")(error)),
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("making a probe"))?;
    probe.set_nonblocking(true).map_err(failed("making a probe"))?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // A full backlog (EAGAIN) is somebody's too.
        Ok(()) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::InUse { path: path.to_owned() })
        }
        Err(error) => Err(failed("asking whether somebody answers on it")(error)),
    }
}

/// The file a socket is bound to, known by inode: a successor's file at the same path is not ours to remove.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|now| now == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, "the API's socket file could not be removed");
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn callers_come_before_the_server_is_ready_and_only_owner_and_group() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/guestnet.sock");
        let socket = ApiSocket::bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_second_server_is_refused_and_the_first_keeps_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guestnet.sock");
        let _first = ApiSocket::bind(&path, None).unwrap();
        let error = ApiSocket::bind(&path, None).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("guestnet.sock"), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guestnet.sock");
        drop(UnixListener::bind(&path).unwrap());
        ApiSocket::check(&path, None).unwrap();
        assert!(path.exists(), "who only looks removes nothing");
        let _socket = ApiSocket::bind(&path, None).unwrap();
        UnixStream::connect(&path).unwrap();
        assert!(matches!(ApiSocket::check(&path, None).unwrap_err(), SocketError::InUse { .. }));
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guestnet.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::bind(&path, None).unwrap_err(), SocketError::NotASocket { .. }));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let dangling = folder.path().join("dangling.sock");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(ApiSocket::bind(&dangling, None).unwrap_err(), SocketError::NotASocket { .. }));

        let long = folder.path().join("x".repeat(120));
        let error = ApiSocket::bind(&long, None).unwrap_err().to_string();
        assert!(error.contains("107 bytes"), "{error}");
    }

    #[test]
    fn a_successors_socket_survives_its_predecessor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guestnet.sock");
        let predecessor = ApiSocket::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let successor = ApiSocket::bind(&path, None).unwrap();
        drop(predecessor);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
    }

    #[test]
    fn a_group_that_does_not_exist_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guestnet.sock");
        let error = ApiSocket::bind(&path, Some("no-such-group")).unwrap_err().to_string();
        assert!(error.contains("no-such-group") && error.contains("groupadd"), "{error}");
        assert!(matches!(
            ApiSocket::check(&path, Some("no-such-group")).unwrap_err(),
            SocketError::Group { .. }
        ));
        assert!(!path.exists());
    }
}
