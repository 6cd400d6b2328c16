//! Holds who adopts connections to its contract: whatever a dead worker's arena says is bounded, or refused.
//!
//! Fuzz targets come here through `internals`, and the corpus in `cargo test`; so a breach is an error and no panic.

use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use parking_lot::Mutex;

use super::kept::{KeptArena, Moved};
use super::record::{CORE_WORDS, Core, Flags, Key};
use super::{ArenaError, ArenaWriter, Room, create};
use crate::sys::blocks::{Block, HEAD, Pool};
use crate::sys::memory::WORD;
use crate::sys::sync::Ordering;

const KEY: Key = Key { index: 2, generation: 9 };

/// Blocks whose heads and bytes the input fills, a part each.
const BLOCKS: usize = 3;

/// What the first byte of a number must be for the number to be a place in a block, or next to one: few others would be.
const IS_PLACE: u64 = 0xB0;

/// Fills a connection's record and the blocks behind it with these bytes, and reads it as an adopter would. 1 where the connection
/// could be gone on with.
///
/// # Errors
///
/// What was read is more than the arena holds, or is different when it is read again.
pub(crate) fn hold(bytes: &[u8]) -> Result<usize, String> {
    static SCENE: LazyLock<Mutex<Result<Scene, String>>> =
        LazyLock::new(|| Mutex::new(Scene::new().map_err(|error| error.to_string())));
    SCENE.lock().as_ref().map_err(String::clone)?.hold(bytes)
}

/// A worker's arena. It is mapped for the life of the process, as in a worker, so there is one for all inputs.
struct Scene {
    writer: ArenaWriter,
    pool: &'static Pool,
    memory: OwnedFd,
}

impl Scene {
    fn new() -> Result<Self, ArenaError> {
        let fd = create(&Room { rows: 1, methods: 1, connections: 4, buffers: 1 << 20 })?;
        let memory = fd.try_clone()?;
        let mut writer = ArenaWriter::open(fd)?;
        let pool = writer.blocks()?;
        Ok(Self { writer, pool, memory })
    }

    fn hold(&self, bytes: &[u8]) -> Result<usize, String> {
        let (words, rest) = numbers(bytes);
        let mut blocks: Vec<Block> = Vec::new();
        let part = rest.len() / BLOCKS + 1;
        for part in rest.chunks(part) {
            let mut block = self.pool.take(part.len()).ok_or("expected room for a block")?;
            block.fill(0);
            block.iter_mut().zip(part).for_each(|(byte, from)| *byte = *from);
            blocks.push(block);
        }
        let place = |word: u64| place(word, &blocks);
        for (block, part) in blocks.iter().zip(rest.chunks(part)) {
            // The head of a call lies before its message, and is as hostile.
            let (head, _) = numbers(part);
            block
                .words()
                .iter()
                .zip(head)
                .for_each(|(word, value)| word.store(place(value), Ordering::Relaxed));
        }
        let mut word = words.iter().map(|word| place(*word));
        let core = Core::from_words(std::array::from_fn::<_, CORE_WORDS, _>(|_| word.next().unwrap_or(0)));
        let counted = Moved::Counted { taken: word.next().unwrap_or(0), sent: word.next().unwrap_or(0) };
        self.writer.records().open(KEY, &core).ok_or("expected room for a record")?;
        let arena = KeptArena::open(&self.memory).map_err(|error| error.to_string())?;
        let mut held = 0;
        for moved in [counted, Moved::Recorded] {
            let kept = arena.kept(KEY, moved);
            if arena.kept(KEY, moved) != kept {
                return Err(format!("read again it is no longer {kept:?}"));
            }
            let Ok(kept) = kept else { continue };
            if moved == Moved::Recorded && core.flags.contains(Flags::IN_IO) {
                return Err(
                    "gone on with, though its worker died in the middle of a receive or send".to_owned()
                );
            }
            let waited = kept.waited.iter().map(|call| call.message.len());
            let ran = kept.ran.iter().map(|ran| ran.message.len());
            let gathered = kept.ran.iter().flat_map(|ran| &ran.gathered).map(|(_, answer)| answer.len());
            for (what, bytes) in [
                ("input", kept.input.len()),
                ("output", kept.output.len()),
                // The message of a call that the poller ran is counted apart.
                ("messages", waited.chain(ran).sum::<usize>() / 2),
                ("answers", gathered.sum()),
            ] {
                if bytes > arena.held() {
                    return Err(format!("{bytes} bytes of {what} from an arena of {}", arena.held()));
                }
            }
            held = 1;
        }
        Ok(held)
    }
}

/// The numbers at the start, as many as a record and the kernel's counts have, and what is behind them.
fn numbers(bytes: &[u8]) -> (Vec<u64>, &[u8]) {
    let (words, rest) = bytes.split_at(bytes.len().min((CORE_WORDS + 2) * WORD));
    let word = |word: &[u8]| word.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    (words.chunks(WORD).map(word).collect(), rest)
}

/// A number as it is, or where it is marked so, a place in a block.
fn place(word: u64, blocks: &[Block]) -> u64 {
    let block = usize::try_from(word >> 48 & 0xff).ok().and_then(|index| blocks.get(index % BLOCKS));
    match block {
        Some(block) if word >> 56 == IS_PLACE => {
            (block.place() + (word & 0xffff)).saturating_sub(HEAD as u64)
        }
        _ => word,
    }
}
