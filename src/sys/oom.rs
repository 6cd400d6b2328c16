//! Whom the kernel kills when memory runs out.

use std::fs;
use std::io;

const ADJUSTMENT: &str = "/proc/self/oom_score_adj";

/// Thousandths of the memory there is, which count as if this process used them beside its own.
const BEFORE_OTHERS: i16 = 100;

const MOST: i16 = 1_000;

/// Whoever has this is never killed for memory: somebody has decided that.
const NEVER: i16 = -1_000;

/// Has the kernel choose this process before those of its family that have not said so, unless they use far more.
///
/// # Errors
///
/// The kernel's file can't be read or written.
pub(crate) fn be_chosen_before_others() -> io::Result<()> {
    let now = fs::read_to_string(ADJUSTMENT)?;
    let now: i16 = now.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    fs::write(ADJUSTMENT, adjusted(now).to_string())
}

fn adjusted(now: i16) -> i16 {
    if now == NEVER { now } else { now.saturating_add(BEFORE_OTHERS).min(MOST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_more_than_it_was_within_what_the_kernel_takes() {
        for (now, then) in [(0, 100), (-999, -899), (950, 1_000), (1_000, 1_000), (-1_000, -1_000)] {
            assert_eq!(adjusted(now), then, "{now}");
        }
    }
}
