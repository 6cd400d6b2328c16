//! What the threads of a worker share without a lock, or with one and a wake-up beside it.

use libtest_mimic::Trial;

#[path = "../../../src/worker/guard/buffers.rs"]
#[allow(dead_code, reason = "a model uses a part of it")]
mod buffers;
#[path = "../../../src/worker/threads/deadlines.rs"]
#[allow(dead_code, reason = "a model uses a part of it")]
mod deadlines;
mod feeding;
mod relief;
#[path = "../../../src/worker/threads/role.rs"]
#[allow(dead_code, reason = "a model uses a part of it")]
mod role;
mod sleeping;

pub(crate) fn trials() -> Vec<Trial> {
    [relief::trials(), sleeping::trials(), feeding::trials()].into_iter().flatten().collect()
}
