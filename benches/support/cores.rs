//! Which core runs what. A figure of one core against another is only worth something when nothing moves between them.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tine::BoxError;

/// The calling thread, for `sched_setaffinity`.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// The cores that this process may use.
#[derive(Debug, Clone)]
pub struct Cores {
    all: CpuSet,
    allowed: Vec<usize>,
}

/// Where a process or load runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The first core.
    Server,
    /// The second core.
    Load,
    /// Wherever the kernel puts it.
    Anywhere,
}

impl Cores {
    /// To be asked for before anything is pinned.
    pub fn find() -> Result<Self, BoxError> {
        let all = sched_getaffinity(THIS_THREAD)?;
        let allowed: Vec<usize> = (0..CpuSet::count()).filter(|core| all.is_set(*core) == Ok(true)).collect();
        if allowed.len() < 2 {
            eprintln!(
                "expected two cores, one for the server and one for the load; found {}: both share it, so the figures \
                 mean little",
                allowed.len()
            );
        }
        Ok(Self { all, allowed })
    }

    /// Pins the calling thread, and what it starts from now on.
    pub fn pin(&self, place: Place) -> Result<(), BoxError> {
        let core = match place {
            Place::Server => self.allowed.first(),
            Place::Load => self.allowed.get(1).or(self.allowed.first()),
            Place::Anywhere => None,
        };
        let set = match core {
            Some(core) => {
                let mut one = CpuSet::new();
                one.set(*core)?;
                one
            }
            None => self.all,
        };
        Ok(sched_setaffinity(THIS_THREAD, &set)?)
    }

    /// Has `start` run at this place and comes back. A process that is started there was never anywhere else, and
    /// neither are the threads and children that it starts.
    pub fn at<T>(&self, place: Place, start: impl FnOnce() -> T) -> Result<T, BoxError> {
        let before = sched_getaffinity(THIS_THREAD)?;
        self.pin(place)?;
        let started = start();
        sched_setaffinity(THIS_THREAD, &before)?;
        Ok(started)
    }
}
