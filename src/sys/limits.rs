//! Limits that the kernel sets a process.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the number of descriptors this process and its future children may have open to the most it may set
/// itself; the result is how many those are.
///
/// # Errors
///
/// When the kernel refuses; everything is then as it was.
pub(crate) fn raise_descriptors() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
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
