//! The sockets that the service listens on: binding them at the start and for a reload, removing their files at the end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};

use crate::config;
use crate::sys::exec::LeftOpen;
use crate::sys::socket::{self, Listener};

/// All listeners of one configuration, in its order.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// What each was to be, and is. A socket that the next configuration keeps belongs to both.
    bound: Vec<(config::Listener, Rc<Bound>)>,
}

#[derive(Debug)]
struct Bound {
    /// Removed with it, and before the listener is closed: until then the kernel gives its inode to no other file.
    file: Option<SocketFile>,
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
        Self { bound: Vec::new() }.followed_by(wanted)
    }

    /// Those of the next configuration: an address that is configured as before keeps its socket, with whoever waits
    /// there, the others are bound. Nothing changes for these here.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub(crate) fn followed_by(&self, wanted: &[config::Listener]) -> Result<Self, String> {
        let mut kept: Vec<_> = self.bound.iter().collect();
        let mut follow = |wanted: &config::Listener| {
            let before = kept.iter().position(|(configured, _)| configured.address == wanted.address);
            let bound = match before.map(|place| kept.remove(place)) {
                Some((_, bound)) => Rc::clone(bound),
                None => Rc::new(bind_one(wanted)?),
            };
            Ok((wanted.clone(), bound))
        };
        let bound = wanted.iter().map(&mut follow).collect::<Result<_, String>>()?;
        Ok(Self { bound })
    }

    /// Gives the sockets that were kept what this configuration says otherwise than the one `before`.
    pub(crate) fn settle(&self, before: &Self) {
        for (wanted, bound) in &self.bound {
            let was = before.bound.iter().find(|(_, other)| Rc::ptr_eq(bound, other));
            let Some((was, _)) = was.filter(|(was, _)| was != wanted) else { continue };
            if let Err(error) = bound.listener.set_backlog(wanted.backlog) {
                tracing::warn!(address = bound.address, %error, "the backlog can't be changed");
            }
            let owns_file = (was.mode, was.owner) != (wanted.mode, wanted.owner);
            if let config::Address::Unix(path) = &wanted.address
                && owns_file
                && let Err(error) = set_owner_and_mode(path, wanted)
            {
                tracing::warn!(address = bound.address, %error, "the socket's owner and mode can't be changed");
            }
        }
    }

    /// The addresses that clients can use.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.bound.iter().map(|(_, bound)| bound.address.as_str())
    }

    /// Duplicates to hand to a worker.
    pub(crate) fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        self.bound.iter().map(|(_, bound)| bound.listener.as_fd().try_clone_to_owned()).collect()
    }
}

/// A listener as it is left to the program that takes this one's place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Left {
    configured: config::Listener,
    address: String,
    /// No `SocketFile`: that would remove the file when this is dropped.
    file: Option<(PathBuf, (u64, u64))>,
    descriptor: RawFd,
}

impl Listeners {
    pub(super) fn leave(&self) -> Vec<Left> {
        let leave = |(configured, bound): &(config::Listener, Rc<Bound>)| Left {
            configured: configured.clone(),
            address: bound.address.clone(),
            file: bound.file.as_ref().map(|file| (file.path.clone(), file.inode)),
            descriptor: bound.listener.as_fd().as_raw_fd(),
        };
        self.bound.iter().map(leave).collect()
    }

    pub(super) fn inherit(left: Vec<Left>, descriptors: &mut LeftOpen) -> io::Result<Self> {
        let inherit = |left: Left| {
            let listener = Listener::inherited(descriptors.take(left.descriptor)?)?;
            let file = left.file.map(|(path, inode)| SocketFile { path, inode });
            let bound = Bound { file, listener, address: left.address };
            Ok((left.configured, Rc::new(bound)))
        };
        Ok(Self { bound: left.into_iter().map(inherit).collect::<io::Result<_>>()? })
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.bound.iter().map(|(_, bound)| bound.listener.as_fd())
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
            Ok(Bound { listener, address, file: None })
        }
        config::Address::Unix(path) => {
            remove_stale(path)?;
            let listener = with_umask(wanted.mode, || Listener::bind_unix(path, wanted.backlog))
                .map_err(|error| explain(&error))?;
            let inode = inode(path).map_err(|error| explain(&error))?;
            let file = Some(SocketFile { path: path.clone(), inode });
            set_owner_and_mode(path, wanted).map_err(|error| explain(&error))?;
            Ok(Bound { listener, address: wanted.address.to_string(), file })
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
    match socket::is_listened_to(path) {
        Ok(true) => {
            Err(format!("unix:{} is in use by another program; stop it, or listen elsewhere", path.display()))
        }
        Ok(false) => fs::remove_file(path)
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
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::wire::{ByteOrder, Kinds};

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
            framings: Kinds::default(),
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

    /// To wait there for its turn would hold the supervisor up for as long as nobody accepts.
    #[test]
    fn a_socket_whose_backlog_is_full_is_in_use() {
        let folder = Folder::new();
        let live = UnixListener::bind(folder.socket()).unwrap();
        nix::sys::socket::listen(&live, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waits = UnixStream::connect(folder.socket()).unwrap();
        let error = bind(&folder.socket()).unwrap_err();
        assert!(error.contains("is in use by another program"), "{error}");
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
    fn the_next_configuration_keeps_the_sockets_of_its_addresses_and_has_the_others_bound() {
        let folder = Folder::new();
        let here = folder.socket();
        let anywhere = || wanted(config::Address::Tcp("127.0.0.1:0".parse().unwrap()));
        let unix = || wanted(config::Address::Unix(here.clone()));
        let first = Listeners::bind(&[anywhere(), unix()]).unwrap();
        let second = first.followed_by(&[unix(), anywhere(), anywhere()]).unwrap();
        let (before, after): (Vec<_>, Vec<_>) = (first.addresses().collect(), second.addresses().collect());
        assert_eq!((after[0], after[1]), (before[1], before[0]));
        assert_ne!(after[2], before[0], "port 0 twice is two sockets");
        drop(first);
        assert!(UnixStream::connect(&here).is_ok(), "kept");
        let third = second.followed_by(&[anywhere()]).unwrap();
        drop(second);
        assert!(!here.exists(), "removed with the last configuration that had it");
        drop(third);
    }

    #[test]
    fn an_address_that_cannot_be_bound_leaves_the_listeners_before_as_they_are() {
        let folder = Folder::new();
        let first = bind(&folder.socket()).unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unix = wanted(config::Address::Unix(folder.socket()));
        let next = [unix, wanted(config::Address::Tcp(taken.local_addr().unwrap()))];
        assert!(first.followed_by(&next).is_err());
        assert!(UnixStream::connect(folder.socket()).is_ok());
    }

    #[test]
    fn a_kept_socket_gets_its_new_mode() {
        let folder = Folder::new();
        let first = bind(&folder.socket()).unwrap();
        let next = config::Listener { mode: Some(0o600), ..wanted(config::Address::Unix(folder.socket())) };
        let second = first.followed_by(&[next]).unwrap();
        second.settle(&first);
        let mode = fs::metadata(folder.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
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
