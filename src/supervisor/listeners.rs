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
    /// Removed with it, and before the listener is closed: until then the kernel gives its inode to no other file.
    _file: Option<SocketFile>,
    listener: Listener,
    /// As a client would write it, with the port the kernel chose where the configuration says 0.
    address: String,
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::wire::ByteOrder;

    /// A folder that goes with its owner.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("tine-listeners-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("socket")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn wanted(address: config::Address) -> config::Listener {
        config::Listener {
            address,
            backlog: 16,
            prefix: ByteOrder::Little,
            mode: None,
            owner: None,
            allow_uids: None,
        }
    }

    fn bind(path: &Path) -> Result<Listeners, String> {
        Listeners::bind(&[wanted(config::Address::Unix(path.into()))])
    }

    #[test]
    fn a_stale_socket_file_is_replaced() {
        let folder = Folder::new();
        drop(UnixListener::bind(folder.socket()).unwrap());
        let listeners = bind(&folder.socket()).unwrap();
        assert!(UnixStream::connect(folder.socket()).is_ok());
        assert_eq!(
            listeners.addresses().collect::<Vec<_>>(),
            [format!("unix:{}", folder.socket().display())]
        );
    }

    #[test]
    fn a_socket_that_somebody_serves_is_left_alone() {
        let folder = Folder::new();
        let _live = UnixListener::bind(folder.socket()).unwrap();
        let error = bind(&folder.socket()).unwrap_err();
        assert!(error.contains("is in use by another program"), "{error}");
        assert!(UnixStream::connect(folder.socket()).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = Folder::new();
        fs::write(folder.socket(), "data").unwrap();
        let error = bind(&folder.socket()).unwrap_err();
        assert!(error.contains("expected a socket or nothing there, found another file"), "{error}");
        assert_eq!(fs::read_to_string(folder.socket()).unwrap(), "data");
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = Folder::new();
        let elsewhere = folder.0.join("elsewhere");
        drop(UnixListener::bind(&elsewhere).unwrap());
        std::os::unix::fs::symlink(&elsewhere, folder.socket()).unwrap();
        assert!(bind(&folder.socket()).is_err());
        assert!(elsewhere.exists());
    }

    #[test]
    fn the_socket_file_goes_with_its_listener() {
        let folder = Folder::new();
        drop(bind(&folder.socket()).unwrap());
        assert!(!folder.socket().exists());
    }

    #[test]
    fn a_file_that_took_the_place_of_ours_is_not_removed() {
        let folder = Folder::new();
        let listeners = bind(&folder.socket()).unwrap();
        fs::remove_file(folder.socket()).unwrap();
        let _theirs = UnixListener::bind(folder.socket()).unwrap();
        drop(listeners);
        assert!(UnixStream::connect(folder.socket()).is_ok());
    }

    #[test]
    fn what_was_bound_is_released_when_a_later_address_fails() {
        let folder = Folder::new();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let wanted = [wanted(config::Address::Unix(folder.socket())), wanted(config::Address::Tcp(address))];
        let error = Listeners::bind(&wanted).unwrap_err();
        assert!(error.starts_with(&format!("{address} is in use, by another program")), "{error}");
        assert!(!folder.socket().exists());
    }

    #[test]
    fn duplicates_are_the_listeners_in_their_order() {
        let folder = Folder::new();
        let anywhere = config::Address::Tcp("127.0.0.1:0".parse().unwrap());
        let wanted = [wanted(config::Address::Unix(folder.socket())), wanted(anywhere)];
        let listeners = Listeners::bind(&wanted).unwrap();
        let mut duplicates = listeners.duplicates().unwrap().into_iter().map(Listener::inherited);
        assert!(matches!(duplicates.next(), Some(Ok(Listener::Unix(_)))));
        let tcp = duplicates.next().unwrap().unwrap();
        let address = tcp.local_tcp_address().unwrap().to_string();
        assert_eq!(listeners.addresses().last(), Some(&*address));
        assert!(!address.ends_with(":0"), "{address}");
    }
}
