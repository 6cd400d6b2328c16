//! What the state policy hears, and what it asks for: events, timers, actions and settings.

use std::time::Duration;

use crate::supervisor::policy::restart::RestartLimits;

/// The number of a worker process.
pub(crate) type WorkerId = u32;
/// The number of a generation. One whose reload failed is not used again.
pub(crate) type GenerationId = u32;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Preload is done, the generation's listeners are bound; these are its settings.
    TemplateReady {
        generation: GenerationId,
        settings: Settings,
    },
    /// The template says why it can't serve, or what it needs can't be had; it will end.
    TemplateFailed {
        generation: GenerationId,
        why: String,
    },
    TemplateEnded {
        generation: GenerationId,
        cause: String,
    },
    /// The template that was to be started can't be.
    TemplateRefused {
        generation: GenerationId,
        why: String,
    },
    /// Something about one worker process.
    Worker(WorkerId, WorkerEvent),
    Due(Timer),
    Asked(OperatorRequest),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerEvent {
    ForkRefused,
    Born,
    Ready,
    /// It was signalled to end, and goes on until it is told to leave.
    Leaving,
    /// A thread is stuck in a call that nobody waits for any more.
    Wedged,
    /// It has grown or served as much as it may, and goes on until it is told to leave.
    Retiring,
    /// It has let everything go; only calls that are stuck still run.
    OnlyStuckThreadsLeft,
    /// Nobody holds the other end of its channel and it has no known pid: it was never forked, or died unborn.
    Vanished,
    /// It was reaped. `called`: a call had begun in it.
    Ended {
        called: bool,
        cause: String,
    },
}

/// What an operator can ask for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorRequest {
    /// Drain, then exit 0.
    Stop,
    /// Drain; asked for again, end at once.
    StopOrEnd,
    End,
    OneMore,
    OneFewer,
    Reload,
}

/// A moment that the state policy waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A generation's template takes too long to be ready.
    TemplateBoot(GenerationId),
    /// The serving generation's template is to be started again.
    TemplateRetry,
    /// A worker takes too long to be ready.
    Boot(WorkerId),
    /// A slot is to be filled again.
    Refill(usize),
    /// The service was started, or a reload was asked for, long ago, and no worker was ever ready.
    NeverReady,
    /// The workers of the next generation have lived long enough.
    Probation,
    /// A worker that was told to leave takes too long.
    Depart(WorkerId),
    /// The time between the request to stop and the end of accepting.
    PreStop,
    /// The whole service takes too long to drain.
    DrainAll,
}

/// Something the loop must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a template of the serving generation from what it was started from before; of a later one from what the
    /// program's path and the configuration's path lead to now.
    StartTemplate {
        generation: GenerationId,
    },
    KillTemplate {
        generation: GenerationId,
    },
    Fork {
        generation: GenerationId,
        worker: WorkerId,
        slot: usize,
        /// It accepts nothing before it is told to open.
        doors_shut: bool,
    },
    /// Tell a worker that was forked with its doors shut to open them.
    Open(WorkerId),
    /// Tell a worker to say that it is not ready, and go on: the service is to stop soon.
    MarkNotReady(WorkerId),
    /// Tell a worker to end while the service goes on: it lets its connections go to others.
    Leave(WorkerId),
    /// Tell a worker to end because the service does: it answers what has begun and closes.
    Drain(WorkerId),
    Kill(WorkerId),
    /// Forget a worker that was never born: its closed channel ends it, should it still come to be.
    Abandon(WorkerId),
    /// From now on this generation serves: its config, its listeners, its methods.
    Switch {
        generation: GenerationId,
    },
    /// The generation that was to follow will not; the one that serves is as it was.
    ReloadFailed {
        generation: GenerationId,
        why: String,
    },
    CloseListeners,
    /// Close the connections that wait to be accepted: nobody will for a while.
    TurnAway,
    Arm(Timer, Duration),
    /// The timer may not be armed.
    Disarm(Timer),
    Tell(String),
    Warn(String),
    Complain(String),
    /// Complain of this when everything is gone: why the service has given up is the last that it says.
    LastWord(String),
    /// Everything is gone; end with this exit code.
    Finish {
        code: i32,
    },
}

/// The settings the state policy works with. Each generation has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) processes: usize,
    pub(crate) restart: RestartLimits,
    pub(crate) boot: Duration,
    pub(crate) drain: Duration,
    pub(crate) pre_stop: Duration,
}
