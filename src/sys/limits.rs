//! Limits that the kernel sets a process.
//!
//! The service raises its soft limit on descriptors for itself. What user code starts gets back the limit that the service was
//! started with: programs that wait with `select` can't use more than 1,024, and some close every number up to the
//! limit before they do anything.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::process;

/// The soft limit on descriptors that the service was started with; 0 where nobody has said. It is set before there are
/// threads, and children have their parent's.
static STARTED_WITH: AtomicU64 = AtomicU64::new(0);

/// Raises the number of descriptors this process and its future children may have open to the most it may set
/// itself; the result is how many those are. What it was is remembered as what the service was started with.
///
/// # Errors
///
/// When the kernel refuses; everything is then as it was.
pub(crate) fn raise_descriptors() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // At a reload it is the one that was raised before.
    let _ = STARTED_WITH.compare_exchange(0, soft, Ordering::SeqCst, Ordering::SeqCst);
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Descriptors this process may have open.
pub(crate) fn descriptors() -> u64 {
    // The call can't fail: the resource exists on every Linux.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft)
}

/// The soft limit on descriptors that the service was started with, if that is known.
pub(crate) fn started_with() -> Option<u64> {
    Some(STARTED_WITH.load(Ordering::SeqCst)).filter(|limit| *limit > 0)
}

/// Another process of the service, or what ran in this one before, says what that limit was.
pub(crate) fn was_started_with(descriptors: u64) {
    STARTED_WITH.store(descriptors, Ordering::SeqCst);
}

/// Gives children that user code forks from now on the limit that the service was started with, also those of this
/// process's own children. `posix_spawn` and `vfork` run no such hook.
///
/// # Errors
///
/// There is no memory for it.
pub(crate) fn restore_in_forks() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut registered = 0;
    // SAFETY: the hook is a function for good, and does only what a child of a process with threads may do.
    ONCE.call_once(|| registered = unsafe { libc::pthread_atfork(None, None, Some(restore)) });
    if registered == 0 { Ok(()) } else { Err(Errno::from_raw(registered).into()) }
}

/// In a child, before its `fork` returns.
extern "C" fn restore() {
    let soft = STARTED_WITH.load(Ordering::SeqCst);
    if soft == 0 || process::forks_for_itself() {
        return;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both are bare system calls on a live local.
    unsafe {
        // A soft limit that is not the hard one is user code's own.
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur == limit.rlim_max {
            limit.rlim_cur = soft.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_raised_the_limit_is_the_hard_one() {
        let raised = raise_descriptors().unwrap();
        assert_eq!(raised, descriptors());
        assert_eq!(raise_descriptors().unwrap(), raised);
    }
}
