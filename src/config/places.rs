//! What the file system has where socket files are to be: whether `serve` could bind there. For `check`, which binds nothing.
//!
//! A socket that somebody listens to is no mistake here: `check` is run beside a service.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::address::Address;
use super::error::Problems;
use super::raw::{self, Section};
use super::values::text;
use super::{ConfigError, Overrides, Source};

/// Finds the socket files that could not be made. Apart from [`check`](super::check), since another user may ask than the one
/// who is to bind.
pub(crate) fn check_places(source: &Source, overrides: &Overrides) -> Result<(), ConfigError> {
    let mut problems = Problems::default();
    if overrides.listen.is_empty() {
        if let Some(document) = raw::parse(&source.text, &mut problems) {
            let mut root = Section::root(&document, &mut problems);
            root.each("listen", "a list of addresses", text("an address", can_be_bound));
            root.each_table("listener", |mut section| {
                section.optional("address", text("an address", can_be_bound));
            });
        }
    } else {
        for typed in &overrides.listen {
            if let Err(why) = can_be_bound(typed) {
                problems.wrong_flag("--listen", why);
            }
        }
    }
    problems.into_result(source, ())
}

fn can_be_bound(address: &str) -> Result<(), String> {
    match address.parse() {
        Ok(Address::Unix(path)) => has_room(&path),
        // What is no address has been told by `check`.
        Ok(Address::Tcp(_)) | Err(_) => Ok(()),
    }
}

fn has_room(path: &Path) -> Result<(), String> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shown = directory.display();
    match fs::metadata(directory) {
        Ok(found) if !found.is_dir() => {
            return Err(format!("expected a directory for the socket, found another file at {shown}"));
        }
        Ok(_) => {}
        Err(error) => {
            return Err(format!(
                "expected a directory for the socket, found none at {shown} ({error}); make it first"
            ));
        }
    }
    if access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        return Err(format!("expected a directory where this user may make a socket, found {shown}"));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(format!("expected a socket or nothing there, found another file at {}", path.display()))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}
