//! The sockets that the service listens on. They are bound at the start, for a reload, and where one was lost. Their files are removed at
//! the end.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::config;
use crate::sys::exec::LeftOpen;
use crate::sys::socket::{self, Listener};
use crate::sys::socket_file::SocketFile;

/// Connections that are turned away in one go at each address: the loop has other things to do.
const MOST_TURNED_AWAY: usize = 1024;

/// All listeners of one configuration, in its order.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// What each was to be, and is. A socket that the next configuration keeps belongs to both, and to every worker that has
    /// it.
    bound: Vec<(config::Listener, Rc<Bound>)>,
}

/// A socket that listens. Nobody can connect any more when this is dropped, whoever else has the socket: a process that a
/// handler has forked would hold the address, and clients would wait there for ever. All of them are ours; a socket that was
/// handed in from outside would have to stay as it is.
#[derive(Debug)]
pub(in crate::supervisor) struct Bound {
    /// None once it is removed.
    file: RefCell<Option<SocketFile>>,
    listener: Listener,
    /// As a client would write it, with the port the kernel chose where the configuration says 0.
    address: String,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.listener.shut_down();
    }
}

/// How a socket that listened was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::supervisor) enum Loss {
    ShutDown,
    FileGone,
}

impl fmt::Display for Loss {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::ShutDown => "a listener was shut down, as by a handler that takes it for its own",
            Self::FileGone => "a listener's socket file was removed or replaced",
        })
    }
}

/// Why a service can't listen somewhere: a sentence that names the address and says what is in the way.
#[derive(Debug)]
pub(crate) struct CanNotListen {
    pub(crate) why: String,
    /// Somebody else listens there, who may be about to end.
    pub(crate) is_in_use: bool,
}

impl From<CanNotListen> for String {
    fn from(error: CanNotListen) -> Self {
        error.why
    }
}

impl Bound {
    pub(in crate::supervisor) fn address(&self) -> &str {
        &self.address
    }

    /// How clients can't reach it any more, if so.
    pub(in crate::supervisor) fn loss(&self) -> Option<Loss> {
        if self.listener.is_shut_down() {
            return Some(Loss::ShutDown);
        }
        let file = self.file.borrow();
        file.as_ref().filter(|file| !file.is_there()).map(|_| Loss::FileGone)
    }

    pub(in crate::supervisor) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Another socket at the same address, on the port that this one had.
    pub(in crate::supervisor) fn bind_anew(
        &self,
        wanted: &config::Listener,
    ) -> Result<Rc<Self>, CanNotListen> {
        let same: Option<SocketAddr> = self.address.parse().ok();
        let address = same.map_or_else(|| wanted.address.clone(), config::Address::Tcp);
        bind_one(&config::Listener { address, ..wanted.clone() }).map(Rc::new)
    }

    /// Runs `watch` with the descriptor of its file, if it has one.
    pub(in crate::supervisor) fn with_file(&self, watch: impl FnOnce(BorrowedFd<'_>)) {
        if let Some(file) = self.file.borrow().as_ref() {
            watch(file.as_fd());
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Listeners {
    /// Binds every listener of the configuration.
    ///
    /// # Errors
    ///
    /// What was bound already is released.
    pub(crate) fn bind(wanted: &[config::Listener]) -> Result<Self, CanNotListen> {
        Self { bound: Vec::new() }.followed_by(wanted)
    }

    /// Those of the next configuration: an address that is configured as before keeps its socket, with whoever waits
    /// there, unless that was lost; the others are bound. Nothing changes for these here.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    pub(crate) fn followed_by(&self, wanted: &[config::Listener]) -> Result<Self, CanNotListen> {
        let mut kept: Vec<_> = self.bound.iter().collect();
        let mut follow = |wanted: &config::Listener| {
            let before = kept.iter().position(|(configured, _)| configured.address == wanted.address);
            let bound = match before.map(|place| kept.remove(place)) {
                Some((_, bound)) if bound.loss().is_some() => bound.bind_anew(wanted)?,
                Some((_, bound)) => Rc::clone(bound),
                None => Rc::new(bind_one(wanted)?),
            };
            Ok((wanted.clone(), bound))
        };
        let bound = wanted.iter().map(&mut follow).collect::<Result<_, CanNotListen>>()?;
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
            let file = bound.file.borrow();
            if let Some(file) = file.as_ref()
                && (was.mode, was.owner) != (wanted.mode, wanted.owner)
                && let Err(error) = file.set_owner_and_mode(wanted.owner, wanted.mode)
            {
                tracing::warn!(address = bound.address, %error, "the socket's owner and mode can't be changed");
            }
        }
    }

    /// Removes the files of those that `next` does not go on with. Their sockets go with the last worker that may still accept
    /// from them.
    pub(crate) fn retire(&self, next: Option<&Self>) {
        for (_, bound) in &self.bound {
            if next.is_none_or(|next| !next.has(bound)) {
                bound.file.borrow_mut().take();
            }
        }
    }

    /// Whether this socket is among them.
    pub(in crate::supervisor) fn has(&self, bound: &Rc<Bound>) -> bool {
        self.bound.iter().any(|(_, other)| Rc::ptr_eq(bound, other))
    }

    /// Each with what it is to be.
    pub(in crate::supervisor) fn iter(&self) -> impl Iterator<Item = (&config::Listener, &Rc<Bound>)> {
        self.bound.iter().map(|(wanted, bound)| (wanted, bound))
    }

    /// The sockets, for a worker that has them.
    pub(in crate::supervisor) fn sockets(&self) -> Vec<Rc<Bound>> {
        self.bound.iter().map(|(_, bound)| Rc::clone(bound)).collect()
    }

    /// Puts another socket in the place of one that was lost.
    pub(in crate::supervisor) fn replace(&mut self, lost: &Rc<Bound>, by: &Rc<Bound>) {
        for (_, bound) in self.bound.iter_mut().filter(|(_, bound)| Rc::ptr_eq(bound, lost)) {
            *bound = Rc::clone(by);
        }
    }

    /// The addresses that clients can use.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        self.bound.iter().map(|(_, bound)| bound.address.as_str())
    }

    /// Accepts who waits and closes the connections.
    pub(crate) fn turn_away(&self) {
        for (_, bound) in &self.bound {
            // Whatever refuses the next one does so again in a second.
            let _ = (0..MOST_TURNED_AWAY).try_for_each(|_| bound.listener.accept().map(drop));
        }
    }

    /// Duplicates to hand to a worker.
    pub(crate) fn duplicates(&self) -> io::Result<Vec<OwnedFd>> {
        self.bound.iter().map(|(_, bound)| bound.duplicate()).collect()
    }
}

/// A listener as it is left to the program that takes this one's place.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedListener {
    configured: config::Listener,
    address: String,
    /// No `SocketFile`: that would remove the file when this is dropped.
    file: Option<(PathBuf, (u64, u64))>,
    descriptor: RawFd,
}

impl Listeners {
    pub(in crate::supervisor) fn leave(&self) -> Vec<SavedListener> {
        let leave = |(configured, bound): &(config::Listener, Rc<Bound>)| SavedListener {
            configured: configured.clone(),
            address: bound.address.clone(),
            file: bound
                .file
                .borrow()
                .as_ref()
                .and_then(|file| Some((file.path().into(), file.number().ok()?))),
            descriptor: bound.listener.as_fd().as_raw_fd(),
        };
        self.bound.iter().map(leave).collect()
    }

    pub(in crate::supervisor) fn inherit(
        left: Vec<SavedListener>,
        descriptors: &mut LeftOpen,
    ) -> io::Result<Self> {
        let inherit = |left: SavedListener| {
            let listener = Listener::inherited(descriptors.take(left.descriptor)?)?;
            let file = left.file.and_then(|(path, number)| SocketFile::inherited(path, number));
            let bound = Bound { file: RefCell::new(file), listener, address: left.address };
            Ok((left.configured, Rc::new(bound)))
        };
        Ok(Self { bound: left.into_iter().map(inherit).collect::<io::Result<_>>()? })
    }

    pub(in crate::supervisor) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.bound.iter().map(|(_, bound)| bound.listener.as_fd())
    }
}

fn bind_one(wanted: &config::Listener) -> Result<Bound, CanNotListen> {
    let explain = |error: &io::Error| {
        let why = match error.kind() {
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
        CanNotListen { why, is_in_use: error.kind() == io::ErrorKind::AddrInUse }
    };
    match &wanted.address {
        config::Address::Tcp(address) => {
            let listener = Listener::bind_tcp(*address, wanted.backlog).map_err(|error| explain(&error))?;
            let address = listener.local_tcp_address().unwrap_or(*address).to_string();
            Ok(Bound { listener, address, file: RefCell::new(None) })
        }
        config::Address::Unix(path) => {
            remove_stale(path)?;
            let (listener, file) = Listener::bind_unix(path, wanted.backlog, wanted.owner, wanted.mode)
                .map_err(|error| explain(&error))?;
            Ok(Bound { listener, address: wanted.address.to_string(), file: RefCell::new(Some(file)) })
        }
    }
}

/// Removes a socket file that nobody listens on any more; leaves everything else as it is.
fn remove_stale(path: &Path) -> Result<(), CanNotListen> {
    let refused = |why: String| Err(CanNotListen { why, is_in_use: false });
    let Ok(found) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !found.file_type().is_socket() {
        return refused(format!(
            "unix:{}: expected a socket or nothing there, found another file",
            path.display()
        ));
    }
    match socket::is_listened_to(path) {
        Ok(true) => {
            let why =
                format!("unix:{} is in use by another program; stop it, or listen elsewhere", path.display());
            Err(CanNotListen { why, is_in_use: true })
        }
        Ok(false) => fs::remove_file(path).or_else(|error| {
            refused(format!("unix:{}: the stale socket can't be removed ({error})", path.display()))
        }),
        Err(error) => refused(format!(
            "unix:{}: can't tell whether the socket there is in use ({error})",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests;
