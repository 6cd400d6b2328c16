//! The file of a Unix socket that listens: the inode that was bound, whatever its path leads to later.
//!
//! Others may write to the folder, and put a link or another file in the socket's place at any time. So owner and mode are
//! set through a descriptor of the inode, and the file is removed through a descriptor of its folder.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, unlinkat};

/// The socket file of a listener of ours. It is removed when this is dropped, unless another file has taken its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    folder: OwnedFd,
    /// Held for as long as this lives, so the kernel gives its number to no other file.
    inode: File,
}

/// The folder that a socket is to be bound in.
pub(super) fn folder_of(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut options = File::options();
    options.read(true).custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits());
    Ok(options.open(folder.unwrap_or(Path::new(".")))?.into())
}

impl SocketFile {
    /// The file that this process has bound at `path` a moment ago, in that folder.
    ///
    /// # Errors
    ///
    /// What is there now is something else.
    pub(super) fn just_bound(path: &Path, folder: OwnedFd) -> io::Result<Self> {
        let inode = open_inode(&folder, path)?;
        let found = inode.metadata()?;
        // A second name would be that of a file which was there before, and which somebody has linked to our place.
        let is_ours =
            found.file_type().is_socket() && found.uid() == geteuid().as_raw() && found.nlink() == 1;
        if !is_ours {
            return Err(io::Error::other("the file there was replaced while it was bound"));
        }
        Ok(Self { path: path.to_owned(), folder, inode })
    }

    /// One that what ran in this process before has bound, if its path leads to it still.
    pub(crate) fn inherited(path: PathBuf, expected: (u64, u64)) -> Option<Self> {
        let folder = folder_of(&path).ok()?;
        let inode = open_inode(&folder, &path).ok()?;
        let found = inode.metadata().ok()?;
        ((found.dev(), found.ino()) == expected).then_some(Self { path, folder, inode })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode.
    pub(crate) fn number(&self) -> io::Result<(u64, u64)> {
        let found = self.inode.metadata()?;
        Ok((found.dev(), found.ino()))
    }

    /// Whether the path leads to it still, so that clients can connect.
    pub(crate) fn is_there(&self) -> bool {
        let found = std::fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        found.is_ok_and(|found| self.number().is_ok_and(|ours| ours == found))
    }

    /// Gives the inode its owner and mode, wherever it is by now.
    pub(crate) fn set_owner_and_mode(
        &self,
        owner: Option<(Option<u32>, Option<u32>)>,
        mode: Option<u32>,
    ) -> io::Result<()> {
        if let Some((user, group)) = owner {
            let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
            fchownat(&self.inode, "", user, group, AtFlags::AT_EMPTY_PATH)?;
        }
        if let Some(mode) = mode {
            // What the kernel shows there is the open inode itself, and no path that could lead elsewhere.
            let inode = format!("/proc/self/fd/{}", self.inode.as_raw_fd());
            std::fs::set_permissions(inode, Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

impl AsFd for SocketFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inode.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(name) = self.path.file_name() else { return };
        let found = fstatat(&self.folder, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let is_ours = |found: FileStat| self.number().is_ok_and(|ours| ours == (found.st_dev, found.st_ino));
        if found.is_ok_and(is_ours) {
            // The folder may be read-only by now: a stale file is replaced at the next start.
            let _ = unlinkat(&self.folder, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn open_inode(folder: &OwnedFd, path: &Path) -> io::Result<File> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(folder, name, flags, Mode::empty())?.into())
}
