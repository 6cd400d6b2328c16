//! The C library's allocator: what becomes of large buffers when they are freed.

/// Buffers of this size and more are given back to the system as soon as they are freed.
#[cfg(target_env = "gnu")]
const GIVEN_BACK: i32 = 256 * 1024;

/// Has large buffers given back to the system when they are freed.
///
/// By itself glibc does so at first, but raises its threshold (up to 32 MiB) with the first large buffer it frees,
/// and then keeps what a burst of large messages needed for as long as the process lives (mallopt(3),
/// `M_MMAP_THRESHOLD`). Other C libraries have no such threshold, so nothing is done there.
pub(crate) fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and touches nothing but the allocator's own settings, under its lock.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, GIVEN_BACK);
    }
}

/// Gives back what is free between what is in use: after a flood of small things glibc keeps all of their memory.
///
/// It takes the allocator's locks meanwhile, so it is for moments when little happens.
pub(crate) fn give_back_the_rest() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and changes nothing that a program can see, under the allocator's locks.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
