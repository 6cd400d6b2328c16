//! The sockets that the service listens on: binding them at the start, removing their files at the end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

use crate::config;
use crate::sys::socket::Listener;

/// All listeners of the service, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct Listeners {
    bound: Vec<Bound>,
}

#[derive(Debug)]
struct Bound {
    listener: Listener,
    /// As a client would write it, with the port the kernel chose where the configuration says 0.
    address: String,
    /// Removed with it.
    _file: Option<SocketFile>,
}

/// A socket file that is ours: its path and the inode we made, so that a file that took its place is left alone.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Listeners {
    /// Binds every listener of the configuration.
    ///
    /// # Errors
    ///
    /// A sentence that names the address and says what is in the way; what was bound already is released.
    pub(crate) fn bind(wanted: &[config::Listener]) -> Result<Self, String> {
        let bound = wanted.iter().map(bind_one).collect::<Result<_, _>>()?;
        Ok(Self { bound })
    }

    /// The addresses that clients can use.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.bound.iter().map(|bound| bound.address.as_str())
    }

    /// Duplicates to hand to a worker.
    pub(crate) fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        self.bound.iter().map(|bound| bound.listener.as_fd().try_clone_to_owned()).collect()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            // It may be gone already, or the directory may be read-only: a stale file is replaced at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_one(wanted: &config::Listener) -> Result<Bound, String> {
    let explain = |error: &io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "{} is in use, by another program or by another listener of this service; stop that, or listen elsewhere",
                wanted.address
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is not an address of this machine ({error})", wanted.address)
        }
        io::ErrorKind::PermissionDenied => {
            format!("{}: this user may not listen there ({error})", wanted.address)
        }
        _ => format!("{}: can't listen there ({error})", wanted.address),
    };
    match &wanted.address {
        config::Address::Tcp(address) => {
            let listener = Listener::bind_tcp(*address, wanted.backlog).map_err(|error| explain(&error))?;
            let address = listener.local_tcp_address().unwrap_or(*address).to_string();
            Ok(Bound { listener, address, _file: None })
        }
        config::Address::Unix(path) => {
            remove_stale(path)?;
            let listener = with_umask(wanted.mode, || Listener::bind_unix(path, wanted.backlog))
                .map_err(|error| explain(&error))?;
            let inode = inode(path).map_err(|error| explain(&error))?;
            let file = Some(SocketFile { path: path.clone(), inode });
            set_owner_and_mode(path, wanted).map_err(|error| explain(&error))?;
            Ok(Bound { listener, address: wanted.address.to_string(), _file: file })
        }
    }
}

/// Removes a socket file that nobody listens on any more; leaves everything else as it is.
fn remove_stale(path: &Path) -> Result<(), String> {
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return Err(format!(
            "unix:{}: expected a socket or nothing there, found another file",
            path.display()
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => {
            Err(format!("unix:{} is in use by another program; stop it, or listen elsewhere", path.display()))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| format!("unix:{}: the stale socket can't be removed ({error})", path.display())),
        Err(error) => {
            Err(format!("unix:{}: can't tell whether the socket there is in use ({error})", path.display()))
        }
    }
}

/// Runs `bind` such that the file it makes never has more permissions than `mode`: between making it and changing
/// them a stranger could connect. The mask is the whole process's, which has one thread.
fn with_umask<T>(mode: Option<u32>, bind: impl FnOnce() -> T) -> T {
    let Some(mode) = mode else {
        return bind();
    };
    let before = umask(Mode::from_bits_truncate(!mode & 0o777));
    let bound = bind();
    umask(before);
    bound
}

fn set_owner_and_mode(path: &Path, wanted: &config::Listener) -> io::Result<()> {
    if let Some((user, group)) = wanted.owner {
        std::os::unix::fs::chown(path, user, group)?;
    }
    if let Some(mode) = wanted.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}
