//! The pre-fork primitive alone, with Tornado's contract: copy this process n times and keep the copies
//! running.
//!
//! For programs that want processes without a server. The server does not use it: its supervisor runs no user
//! code, and here the parent is the user's own program.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::RandomState;
use std::io::{self, Write as _};
use std::process;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::sys::cpus;
use crate::sys::process::{self as children, Ended, Forked, Pid, Reaped, Signal};

/// How many restarts, of all children together, [`ForkProcesses`] allows unless told otherwise.
pub const DEFAULT_MAX_RESTARTS: u32 = 100;

/// How long children get to end after TERM, unless [`ForkProcesses::grace`] says otherwise.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);

static TASK_ID: OnceLock<usize> = OnceLock::new();

/// Forks `n` children, returns in each of them with its task id, and keeps them running from the parent.
///
/// `n <= 0` means one for each CPU this process may use. The short form of [`ForkProcesses`], which says the
/// rest: what the parent does, what the children share, and how to reseed after the fork.
///
/// # Errors
///
/// Those of [`ForkProcesses::run`].
///
/// # Examples
///
/// ```standalone_crate
/// # fn main() -> Result<(), tine::ForkError> {
/// let task_id = tine::fork_processes(2, 100)?;
/// // From here on there are two processes; the parent stays in the call above.
/// println!("child {task_id} has pid {}", std::process::id());
/// # Ok(())
/// # }
/// ```
pub fn fork_processes(n: i32, max_restarts: u32) -> Result<usize, ForkError> {
    ForkProcesses::new(n).max_restarts(max_restarts).run()
}

/// The number, from 0 to n - 1, of this child of [`fork_processes`]; `None` in any other process.
///
/// A child that is restarted gets the number of the one it stands in for.
///
/// # Examples
///
/// ```
/// assert_eq!(tine::task_id(), None);
/// ```
pub fn task_id() -> Option<usize> {
    TASK_ID.get().copied()
}

/// [`fork_processes`] with everything that can be chosen.
///
/// # The parent
///
/// It stays in [`run`](Self::run). A child that exits with a status other than 0, or is ended by a signal, is
/// started again at once with its task id; one that exits 0 is not. When all have exited 0, the parent exits
/// 0 itself, by [`std::process::exit`]: it never returns into the caller's code. After more than
/// `max_restarts` restarts in all it gives up: it ends the children that are left and returns an error. None
/// is orphaned.
///
/// It waits for any child of the process: one that was started before by other means is reaped too, and its
/// end means nothing. Nothing else in the parent (a SIGCHLD handler) may wait for children. A SIGCHLD that is
/// ignored is set back to its default, because the kernel would otherwise throw the exit statuses away.
///
/// Signals to the parent are the program's own affair. One that ends the parent leaves the children running,
/// as in Tornado; a child that must not outlive it can ask the kernel for a signal then, with
/// `prctl(PR_SET_PDEATHSIG)` in [`after_fork`](Self::after_fork).
///
/// # The children
///
/// They are plain copies: open files, signal dispositions, the signal mask and all memory are the parent's.
/// Standard output is flushed before each fork, so that nothing is printed twice.
///
/// **Random numbers** are memory too: a generator that was seeded before the fork gives every child the same
/// values. Reseed it in [`after_fork`](Self::after_fork), as in the example below; `rand`'s thread generator
/// has not done so by itself since 0.9. [`std::hash::RandomState`] is taken care of, as far as that can be
/// done from outside std: the keys that children hash with differ from each other and from the parent's. If
/// the parent made a `RandomState` before the fork, though, they are all derived from the same secret, and a
/// child that makes thousands of maps on its first thread comes to keys that another child began with.
/// Threads started after the fork draw keys of their own.
///
/// # Examples
///
/// ```standalone_crate
/// # fn main() -> Result<(), tine::ForkError> {
/// let task_id = tine::ForkProcesses::new(2)
///     .max_restarts(10)
///     .after_fork(|_task_id| rand::rng().reseed().expect("the system has random bytes"))
///     .run()?;
/// println!("child {task_id} drew {}", rand::random::<u32>());
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is forked before `run`"]
pub struct ForkProcesses {
    n: i32,
    max_restarts: u32,
    grace: Duration,
    after_fork: Vec<Box<dyn FnOnce(usize)>>,
}

impl ForkProcesses {
    /// `n` children; `n <= 0` means one for each CPU this process may use (affinity and cgroup quota
    /// counted).
    pub fn new(n: i32) -> Self {
        let after_fork = Vec::new();
        Self { n, max_restarts: DEFAULT_MAX_RESTARTS, grace: DEFAULT_GRACE, after_fork }
    }

    /// How many restarts, of all children together, are allowed; one more and the parent gives up.
    pub fn max_restarts(mut self, max_restarts: u32) -> Self {
        self.max_restarts = max_restarts;
        self
    }

    /// How long the children left get to end after TERM when the parent gives up; then they are ended by
    /// KILL.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Runs `hook` in every child, started or restarted, before [`run`](Self::run) returns there; it gets the
    /// task id. More than one hook: in the order given. The parent runs none.
    pub fn after_fork(mut self, hook: impl FnOnce(usize) + 'static) -> Self {
        self.after_fork.push(Box::new(hook));
        self
    }

    /// Forks, and returns in each child with its task id; in the parent it returns only an error.
    ///
    /// # Errors
    ///
    /// Before anything is forked: [`ForkError::InChild`], [`ForkError::Threads`]. After all children have
    /// been ended and reaped: [`ForkError::TooManyRestarts`], [`ForkError::Fork`], [`ForkError::Wait`].
    pub fn run(self) -> Result<usize, ForkError> {
        if let Some(task_id) = task_id() {
            return Err(ForkError::InChild { task_id });
        }
        let threads = children::thread_count().map_err(ForkError::CountThreads)?;
        if threads > 1 {
            return Err(ForkError::Threads { threads });
        }
        let n = usize::try_from(self.n).ok().filter(|&n| n > 0).unwrap_or_else(cpus::available);

        let mut family = Family::default();
        match family.start_and_keep(n, self.max_restarts) {
            Ok(Role::Child { task_id }) => {
                part_random_states(family.forks);
                TASK_ID.get_or_init(|| task_id);
                self.after_fork.into_iter().for_each(|hook| hook(task_id));
                Ok(task_id)
            }
            Ok(Role::ParentOfNone) => process::exit(0),
            Err(error) => {
                family.end(self.grace);
                Err(error)
            }
        }
    }
}

impl fmt::Debug for ForkProcesses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ForkProcesses")
            .field("n", &self.n)
            .field("max_restarts", &self.max_restarts)
            .field("grace", &self.grace)
            .finish_non_exhaustive()
    }
}

/// Why [`fork_processes`] returned in the parent, or forked nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum ForkError {
    /// More children than allowed had to be restarted. The others have been ended.
    TooManyRestarts,
    /// The process has more than one thread. Nothing was forked.
    Threads {
        /// How many it has.
        threads: usize,
    },
    /// The process is itself a child of `fork_processes`. Nothing was forked.
    InChild {
        /// Which one.
        task_id: usize,
    },
    /// The threads of the process could not be counted. Nothing was forked.
    CountThreads(io::Error),
    /// The system refused to fork this child. The others have been ended.
    Fork {
        /// The child that is missing.
        task_id: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The ends of the children could not be waited for. Those still there have been ended.
    Wait(io::Error),
}

impl fmt::Display for ForkError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForkError::TooManyRestarts => out.write_str("too many child restarts, giving up"),
            ForkError::Threads { threads } => write!(
                out,
                "this process has {threads} threads and must have one to fork: a child would get only the thread \
                 that forks, and what the others had locked would stay locked in it for ever; fork first, then \
                 start threads"
            ),
            ForkError::InChild { task_id } => write!(
                out,
                "this process is already child {task_id} of fork_processes; only the parent may fork"
            ),
            ForkError::CountThreads(source) => write!(out, "{source}"),
            ForkError::Fork { task_id, source } => write!(
                out,
                "cannot fork child {task_id}: {source}; all children have been ended (fewer may fit into the \
                 limit on processes and into memory)"
            ),
            ForkError::Wait(source) => write!(out, "cannot wait for the children: {source}"),
        }
    }
}

impl std::error::Error for ForkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ForkError::Fork { source, .. } | ForkError::Wait(source) => Some(source),
            ForkError::CountThreads(source) => source.source(),
            ForkError::TooManyRestarts | ForkError::Threads { .. } | ForkError::InChild { .. } => None,
        }
    }
}

/// Who this process is once there is nothing more for the parent to do.
enum Role {
    Child { task_id: usize },
    ParentOfNone,
}

/// The parent's record of its children. A child has a copy and must not use it.
#[derive(Default)]
struct Family {
    /// Task ids of the children that live, or have ended and are not reaped yet.
    task_ids: BTreeMap<Pid, usize>,
    /// Counts every fork, restarts too; in a child it is that child's own number, from 1.
    forks: u32,
}

impl Family {
    fn start_and_keep(&mut self, n: usize, max_restarts: u32) -> Result<Role, ForkError> {
        children::keep_exit_statuses().map_err(ForkError::Wait)?;
        for task_id in 0..n {
            if self.start(task_id)? == Forked::Child {
                return Ok(Role::Child { task_id });
            }
        }
        let mut restarts_left = max_restarts;
        while !self.task_ids.is_empty() {
            let Some((pid, task_id, ended)) = self.next_end()? else { continue };
            if ended == Ended::Exited(0) {
                info!(task_id, %pid, "child ended: {ended}");
                continue;
            }
            warn!(task_id, %pid, restarts_left, "child ended abnormally: {ended}");
            restarts_left = restarts_left.checked_sub(1).ok_or(ForkError::TooManyRestarts)?;
            if self.start(task_id)? == Forked::Child {
                return Ok(Role::Child { task_id });
            }
        }
        Ok(Role::ParentOfNone)
    }

    fn start(&mut self, task_id: usize) -> Result<Forked, ForkError> {
        // What is buffered here would be printed by the child as well. A failure shows at the next print.
        let _ = io::stdout().flush();
        self.forks = self.forks.wrapping_add(1);
        let forked = children::fork().map_err(|source| ForkError::Fork { task_id, source })?;
        if let Forked::Parent { child } = forked {
            self.task_ids.insert(child, task_id);
        }
        Ok(forked)
    }

    /// Waits for the next end; `None` when it was the end of a child that is not one of these.
    fn next_end(&mut self) -> Result<Option<(Pid, usize, Ended)>, ForkError> {
        match children::reap_next().map_err(ForkError::Wait)? {
            Reaped::Child(pid, ended) => Ok(self.task_ids.remove(&pid).map(|task_id| (pid, task_id, ended))),
            Reaped::NoneYet => Ok(None),
            Reaped::NoChildren => {
                // Their pids may belong to others by now and must not be signalled.
                self.task_ids.clear();
                Err(ForkError::Wait(io::Error::other(
                    "something else in this process has taken their exit statuses (a SIGCHLD handler that waits?)",
                )))
            }
        }
    }

    /// Ends all children by TERM, those that are left after `grace` by KILL, and returns when all are reaped.
    fn end(&mut self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        // `None`, a grace without end, if the sum does not fit.
        self.reap_all(Instant::now().checked_add(grace));
        self.signal(Signal::SIGKILL);
        self.reap_all(None);
    }

    fn signal(&mut self, signal: Signal) {
        self.task_ids.retain(|&pid, task_id| match children::kill(pid, signal) {
            Ok(()) => true,
            Err(error) => {
                // It has taken another user's identity. Waiting for it could last for ever.
                warn!(task_id, %pid, "cannot end child, leaving it: {error}");
                false
            }
        });
    }

    fn reap_all(&mut self, deadline: Option<Instant>) {
        while !self.task_ids.is_empty() {
            let reaped = match deadline {
                Some(deadline) => children::reap_next_until(deadline),
                None => children::reap_next(),
            };
            match reaped {
                Ok(Reaped::Child(pid, ended)) => {
                    if let Some(task_id) = self.task_ids.remove(&pid) {
                        info!(task_id, %pid, "child ended: {ended}");
                    }
                }
                Ok(Reaped::NoneYet) => return,
                Ok(Reaped::NoChildren) => self.task_ids.clear(),
                Err(error) => {
                    warn!("cannot wait for children, leaving them: {error}");
                    return;
                }
            }
        }
    }
}

/// Moves the keys of this thread's `RandomState`s away from the parent's and the other children's.
///
/// std draws keys once for a thread and adds one for each `RandomState`; a fork copies where that has got to,
/// and nothing can make std draw again. So child number `fork_number` skips as many as its bit-reversed
/// number: all different for 65,535 forks in a row, far apart while they are few. Where the parent never made
/// one, each child draws keys of its own and the skipping is for nothing, which cannot be told from here.
fn part_random_states(fork_number: u32) {
    for _ in 0..steps_apart(fork_number) {
        let _ = RandomState::new();
    }
}

/// 16 bits: at most 2 ms in an unoptimised build, nothing in an optimised one (it becomes one addition).
fn steps_apart(fork_number: u32) -> u32 {
    fork_number.reverse_bits() >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn children_of_few_forks_are_thousands_of_random_states_apart_from_each_other_and_the_parent() {
        let mut places: Vec<u32> = (1..=8).map(steps_apart).chain([0]).collect();
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 4096), "{places:?}");
    }

    #[test]
    fn no_two_children_of_65535_forks_get_the_same_random_states() {
        let places: BTreeSet<u32> = (1..=u32::from(u16::MAX)).map(steps_apart).collect();
        assert_eq!(places.len(), usize::from(u16::MAX));
        assert!(!places.contains(&0), "one has the parent's");
    }

    #[test]
    fn giving_up_has_tornados_words() {
        assert_eq!(ForkError::TooManyRestarts.to_string(), "too many child restarts, giving up");
    }
}
