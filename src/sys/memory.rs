//! Memory that two processes share: a sealed memfd, and its mappings as atomic 64-bit words.
//!
//! The arena is built on this. The process that owns the content maps it as [`WritableMemory`], everybody else
//! as [`ReadableMemory`]. What the words mean is not known here.
//!
//! `blocks` cuts another part of the same memfd into pieces, through a mapping of its own: no two mappings that can be
//! written overlap.
//!
//! A mapping of a file that can still shrink kills its reader with SIGBUS, so a descriptor is mapped only when
//! the kernel says that it is sealed against that. Only a memfd can carry the seal, which makes the check
//! also the check that it is one.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::uio::pread;

/// Bytes of one word.
pub(crate) const WORD: usize = size_of::<AtomicU64>();

/// What mappings are made of. Where the kernel's pages are larger, mappings that begin at a multiple of this are refused.
pub(crate) const PAGE: usize = 4096;

/// Makes a memfd of `bytes` zero bytes that closes on exec and can change its size no more.
///
/// Pages cost memory only once they are touched. `name` shows in `/proc/PID/maps` and has no other meaning.
pub(crate) fn create_sealed(name: &CStr, bytes: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    // Asked first, as the kernel would not only refuse but also send SIGXFSZ.
    let (most, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    if most != RLIM_INFINITY && bytes as u64 > most {
        let text = format!(
            "shared memory of {bytes} bytes (most of which is never touched) is larger than the file size limit \
             (RLIMIT_FSIZE, `ulimit -f`) of {most} bytes; raise that limit, or lower limits.buffers"
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    file.set_len(bytes as u64)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// A shared mapping that may be read and written.
#[derive(Debug)]
pub(crate) struct WritableMemory {
    mapping: Mapping,
}

impl WritableMemory {
    /// Maps the first `bytes` of `fd`, a memfd sealed against shrinking that has as many or more.
    pub(crate) fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Mapping::writable(fd, 0..bytes).map(|mapping| Self { mapping })
    }

    /// Maps a part, which begins where a page does, of such a memfd.
    pub(crate) fn map_part(fd: BorrowedFd<'_>, part: Range<usize>) -> io::Result<Self> {
        Mapping::writable(fd, part).map(|mapping| Self { mapping })
    }

    /// Size in bytes.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.mapping.bytes.get()
    }

    /// The word at a byte offset; none if it isn't aligned to 8 or not wholly inside.
    pub(crate) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        self.words(offset, 1)?.first()
    }

    /// `count` words from a byte offset on, checked once; none as for [`word`](Self::word).
    pub(crate) fn words(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        let first = self.mapping.words(offset, count)?;
        // SAFETY: `Mapping::words` checked that `count` aligned words from `first` on lie inside a mapping that is
        // readable, writable and lives as long as `self`. Any bits are a valid `AtomicU64`, whose interior may
        // change under a shared reference, also by another process.
        Some(unsafe { std::slice::from_raw_parts(first.as_ptr(), count) })
    }
}

/// A shared mapping that can only be read.
///
/// It never gives out an `&AtomicU64`: safe code could store through that and die of SIGSEGV.
#[derive(Debug)]
pub(crate) struct ReadableMemory {
    mapping: Mapping,
}

impl ReadableMemory {
    /// Maps the first `bytes` of `fd`, a memfd sealed against shrinking that has as many or more.
    pub(crate) fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Mapping::new(fd, 0..bytes, ProtFlags::PROT_READ).map(|mapping| Self { mapping })
    }

    /// Loads the word at a byte offset; none if it isn't aligned to 8 or not wholly inside.
    ///
    /// It acquires: what the writer stored before a `Release` store that is seen here is seen by later loads.
    pub(crate) fn load(&self, offset: usize) -> Option<u64> {
        let word = self.mapping.words(offset, 1)?;
        // SAFETY: `Mapping::words` checked that the word is aligned and inside a mapping that is readable and lives
        // as long as `self`. Only relaxed loads are allowed on memory that can't be written (see "Atomic accesses
        // to read-only memory" in `std::sync::atomic`), and this is one.
        let value = unsafe { word.as_ref() }.load(Ordering::Relaxed);
        // Makes an acquire load of the relaxed one.
        fence(Ordering::Acquire);
        Some(value)
    }
}

/// One `mmap` of a part of a sealed memfd, undone on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping belongs to the process and not to a thread; munmap may be called from any.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference gives addresses out and reads or writes nothing itself. Words behind them are atomics; plain
// slices are made of blocks alone, whose pool gives each number to one owner.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of a part that no other mapping which is written to has.
    pub(super) fn writable(fd: BorrowedFd<'_>, part: Range<usize>) -> io::Result<Self> {
        Self::new(fd, part, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    fn new(fd: BorrowedFd<'_>, part: Range<usize>, protection: ProtFlags) -> io::Result<Self> {
        let size = sealed_size(fd)?;
        let refused = || {
            let text =
                format!("shared memory has {size} bytes, expected {} or more (and not none)", part.end);
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        let bytes = NonZeroUsize::new(part.len()).filter(|_| part.end <= size).ok_or_else(refused)?;
        let start = i64::try_from(part.start).map_err(|_| refused())?;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else lies. The file can't
        // shrink below `part.end` any more, so no access inside the mapping raises SIGBUS for a page past its end.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, fd, start) }
            .map_err(|errno| refused_addresses(errno, bytes))?;
        // A core dump would write all of it, and have the kernel find memory for pages that were never touched.
        // SAFETY: the advice is about exactly the mapping just made and changes nothing that a program can see.
        let _ = unsafe { madvise(base, bytes.get(), MmapAdvise::MADV_DONTDUMP) };
        Ok(Self { base, bytes })
    }

    /// Where `count` bytes start that lie at `offset`, if they are wholly inside.
    pub(super) fn bytes_at(&self, offset: usize, count: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(count)? > self.bytes.get() {
            return None;
        }
        // SAFETY: `offset` is at most `bytes`, checked above, so the sum stays inside the one mapping (or one past it).
        Some(unsafe { self.base.byte_add(offset) }.cast())
    }

    /// Gives the memory of whole pages back to the system; they read as zero from then on.
    pub(super) fn punch(&self, pages: Range<usize>) {
        if let Some(start) = self.bytes_at(pages.start, pages.len()) {
            // SAFETY: the range lies inside the mapping. Its content changes, as by any store of another thread to
            // shared memory; the caller says that it is nobody's. A refusal leaves everything as it was.
            let _ = unsafe { madvise(start.cast(), pages.len(), MmapAdvise::MADV_REMOVE) };
        }
    }

    /// Where `count` words start that lie at `offset`, if they are aligned and wholly inside.
    fn words(&self, offset: usize, count: usize) -> Option<NonNull<AtomicU64>> {
        let end = count.checked_mul(WORD)?.checked_add(offset)?;
        if !offset.is_multiple_of(WORD) || end > self.bytes.get() {
            return None;
        }
        // SAFETY: `offset` is at most `bytes`, checked above, so the sum stays inside the one mapping (or one past it).
        Some(unsafe { self.base.byte_add(offset) }.cast())
    }
}

/// Names the limit where it is one that the kernel has refused a mapping for.
fn refused_addresses(errno: Errno, bytes: NonZeroUsize) -> io::Error {
    let error = io::Error::from(errno);
    match getrlimit(Resource::RLIMIT_AS) {
        Ok((most, _)) if errno == Errno::ENOMEM && most != RLIM_INFINITY => {
            let text = format!(
                "{bytes} bytes of addresses were refused ({error}); RLIMIT_AS (`ulimit -v`) allows {most} in all"
            );
            io::Error::new(error.kind(), text)
        }
        _ => error,
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what mmap returned and was given; every reference into the mapping borrows
        // its owner, so none is left. It can fail only for arguments that aren't a mapping's.
        let _ = unsafe { munmap(self.base, self.bytes.get()) };
    }
}

/// The size of a memfd that can't shrink; an error that says so for any other descriptor.
pub(crate) fn sealed_size(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let unsealed = |found: &str| {
        let text = format!("expected a memfd sealed against shrinking, found {found}: it is not safe to map");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let seals =
        fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).map_err(|_| unsealed("another kind of descriptor"))?;
    if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return Err(unsealed("no such seal"));
    }
    usize::try_from(fstat(fd)?.st_size).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// Gives the memory of whole pages of a memfd back to the system; they read as zero from then on, in every mapping.
pub(crate) fn give_back(fd: BorrowedFd<'_>, pages: Range<usize>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let at = |offset: usize| i64::try_from(offset).map_err(io::Error::other);
    Ok(fallocate(fd, flags, at(pages.start)?, at(pages.len())?)?)
}

/// A copy of these bytes of a memfd, which others may change meanwhile; none if they aren't wholly inside.
///
/// Through a mapping the kernel would find memory for each page that was never written, only for it to be read.
pub(crate) fn copy(fd: BorrowedFd<'_>, bytes: Range<usize>) -> Option<Vec<u8>> {
    let mut copy = vec![0; bytes.len()];
    let mut filled = 0;
    while let Some(rest) = copy.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match pread(fd, rest, i64::try_from(bytes.start + filled).ok()?) {
            Ok(0) => return None,
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
    Some(copy)
}

/// Bytes of memory that a memfd has: those pages of it that were ever written and not given back.
pub(crate) fn held(fd: BorrowedFd<'_>) -> io::Result<usize> {
    /// What `st_blocks` counts in, whatever the file system's own blocks are: inode(7).
    const UNIT: usize = 512;
    let blocks = usize::try_from(fstat(fd)?.st_blocks).unwrap_or(usize::MAX);
    Ok(blocks.saturating_mul(UNIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: usize) -> OwnedFd {
        create_sealed(c"test", bytes).unwrap()
    }

    #[test]
    fn a_store_through_the_writable_mapping_is_seen_through_the_readable_one() {
        let fd = sealed(4096);
        let ours = WritableMemory::map(fd.as_fd(), 4096).unwrap();
        let theirs = ReadableMemory::map(fd.as_fd(), 4096).unwrap();
        drop(fd);
        assert_eq!(theirs.load(4088), Some(0));
        ours.word(4088).unwrap().store(7, Ordering::Release);
        assert_eq!(theirs.load(4088), Some(7));
        assert_eq!((ours.size(), theirs.load(4096)), (4096, None));
    }

    #[test]
    fn a_copy_begins_and_ends_anywhere_and_finds_no_memory_for_what_was_never_written() {
        let fd = sealed(1 << 20);
        let ours = WritableMemory::map(fd.as_fd(), 4096).unwrap();
        ours.word(0).unwrap().store(u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]), Ordering::Release);
        let before = held(fd.as_fd()).unwrap();
        for start in 0..8_u8 {
            for end in start..8 {
                let expected: Vec<u8> = (start..end).collect();
                let found = copy(fd.as_fd(), start.into()..end.into());
                assert_eq!(found, Some(expected), "{start}..{end}");
            }
        }
        assert_eq!(
            copy(fd.as_fd(), 6..(1 << 20)).map(|bytes| (bytes.len(), bytes[1])),
            Some(((1 << 20) - 6, 7))
        );
        assert_eq!(copy(fd.as_fd(), 4090..(1 << 20) + 1), None);
        assert_eq!(held(fd.as_fd()).unwrap(), before);
    }

    #[test]
    fn what_is_not_aligned_or_not_wholly_inside_is_refused() {
        let fd = sealed(100);
        let ours = WritableMemory::map(fd.as_fd(), 100).unwrap();
        let theirs = ReadableMemory::map(fd.as_fd(), 100).unwrap();
        let offsets = [
            (0, true),
            (88, true),
            (1, false),
            (4, false),
            (96, false),
            (104, false),
            (usize::MAX - 7, false),
        ];
        for (offset, inside) in offsets {
            assert_eq!(ours.word(offset).is_some(), inside, "offset {offset}");
            assert_eq!(theirs.load(offset).is_some(), inside, "offset {offset}");
        }
        let runs = [
            (0, 12, true),
            (0, 13, false),
            (88, 1, true),
            (88, 2, false),
            (8, usize::MAX, false),
            (8, usize::MAX / 8, false),
        ];
        for (offset, count, inside) in runs {
            assert_eq!(ours.words(offset, count).is_some(), inside, "{count} words at {offset}");
        }
    }

    #[test]
    fn a_memfd_without_the_seal_is_refused() {
        let fd = memfd_create(c"test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        let file = File::from(fd);
        file.set_len(4096).unwrap();
        let error = ReadableMemory::map(file.as_fd(), 8).unwrap_err();
        assert!(error.to_string().contains("no such seal"), "{error}");
        assert!(WritableMemory::map(file.as_fd(), 8).is_err());
    }

    #[test]
    fn a_descriptor_that_is_no_memfd_is_refused() {
        let (pipe, _other_end) = nix::unistd::pipe().unwrap();
        let error = ReadableMemory::map(pipe.as_fd(), 8).unwrap_err();
        assert!(error.to_string().contains("another kind of descriptor"), "{error}");
        let null = File::open("/dev/null").unwrap();
        assert!(ReadableMemory::map(null.as_fd(), 0).is_err());
    }

    #[test]
    fn a_short_or_empty_memfd_is_refused() {
        let error = ReadableMemory::map(sealed(64).as_fd(), 65).unwrap_err();
        assert!(error.to_string().contains("64 bytes, expected 65"), "{error}");
        assert!(WritableMemory::map(sealed(64).as_fd(), 65).is_err());
        assert!(ReadableMemory::map(sealed(0).as_fd(), 0).is_err());
    }

    #[test]
    fn no_more_is_mapped_than_was_asked_for() {
        let fd = sealed(1 << 30);
        let memory = ReadableMemory::map(fd.as_fd(), 4096).unwrap();
        assert!(memory.load(4088).is_some() && memory.load(4096).is_none());
        assert_eq!((memory.load(4088), memory.load(4096)), (Some(0), None));
    }

    #[test]
    fn a_sealed_memfd_keeps_its_size_and_its_seals() {
        let file = File::from(sealed(4096));
        assert!(file.set_len(0).is_err(), "shrunk");
        assert!(file.set_len(8192).is_err(), "grown");
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).is_err(), "sealed again");
        let flags = fcntl(&file, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & 1, 1, "closes on exec");
    }
}
