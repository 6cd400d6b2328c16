//! What `ps` shows as the command line of a process.
//!
//! The kernel remembers where the arguments of a process lie, for `/proc/PID/cmdline` alone. It is told of another place here. To
//! overwrite the arguments where they are, as others do, leaves as much room as the operator happened to type, and a program that reads
//! its arguments later finds something else there.

use std::fs;
use std::io;
use std::ptr;

use nix::errno::Errno;
use nix::libc;

/// The longest title, in bytes.
const LONGEST: usize = 200;

/// `struct prctl_mm_map` of `linux/prctl.h`: all of it has to be told at once.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: *const u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Has `ps` show this title for this process, which has one thread. It stays until the process ends or executes another program.
///
/// # Errors
///
/// The kernel is built without `CONFIG_CHECKPOINT_RESTORE`, or there is no `/proc`. Nothing has changed then.
pub(crate) fn set(title: &str) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let mut text = shown(title).into_bytes();
    text.push(0);
    // The kernel reads there for as long as the process lives.
    let text: &'static [u8] = text.leak();
    let start = text.as_ptr().addr() as u64;
    let Some(mut map) = map_of(&stat) else { return Err(io::ErrorKind::InvalidData.into()) };
    (map.arg_start, map.arg_end) = (start, start + text.len() as u64);
    // SAFETY: an increment of 0 moves nothing and returns the end as it is.
    map.brk = unsafe { libc::sbrk(0) }.addr() as u64;
    let size = size_of::<MemoryMap>();
    // SAFETY: `map` is a whole `prctl_mm_map`, which the kernel only reads. Nothing of it takes effect on memory but `brk`, which is as
    // `sbrk` has just told it: this process has one thread, which has allocated nothing since. No other file is named (`exe_fd`),
    // and no auxiliary vector.
    let done = unsafe { libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, &raw const map, size, 0) };
    Errno::result(done)?;
    Ok(())
}

/// What is put there of a title: a line of text, of bounded length.
fn shown(title: &str) -> String {
    let plain: String = title.chars().map(|shown| if shown.is_control() { '?' } else { shown }).collect();
    let end = (0..=LONGEST.min(plain.len())).rev().find(|end| plain.is_char_boundary(*end));
    plain.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

/// What a `/proc/PID/stat` line says of the memory; None where it doesn't.
fn map_of(stat: &str) -> Option<MemoryMap> {
    // The name, in parentheses, may hold anything. Behind it is the third field.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    Some(MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk: 0,
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: ptr::null(),
        auxv_size: 0,
        exe_fd: u32::MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_found_behind_a_name_that_looks_like_fields() {
        let fields: Vec<String> = (4..=52).map(|number| format!("{number}")).collect();
        let map = map_of(&format!("41 (a) S 1 (b) S {}", fields.join(" "))).unwrap();
        assert_eq!((map.start_code, map.start_stack, map.start_brk), (26, 28, 47));
        assert_eq!((map.arg_start, map.env_end, map.exe_fd), (48, 51, u32::MAX));
        assert!(map_of("41 (cut short) S 1 2 3").is_none());
        assert!(map_of("").is_none());
    }

    #[test]
    fn a_title_is_a_line_of_bounded_length() {
        assert_eq!(shown("tine: worker 3 gen 2 (orders)"), "tine: worker 3 gen 2 (orders)");
        assert_eq!(shown("a\nb\0c"), "a?b?c");
        assert_eq!(shown(&"ä".repeat(200)).len(), LONGEST);
        assert_eq!(shown(&format!("x{}", "ä".repeat(200))).len(), LONGEST - 1);
    }
}
