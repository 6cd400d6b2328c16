//! A generation: what its processes are started from, and what its workers are to be.

use std::rc::Rc;
use std::time::Instant;

use serde_json::Value;

use super::methods::Methods;
use crate::config::{Config, Source};
use crate::supervisor::listeners::bound::Listeners;
use crate::supervisor::policy::restart;
use crate::supervisor::policy::state::{GenerationId, Settings};
use crate::sys::exec::Program;

/// What a generation's processes are started from.
#[derive(Debug)]
pub(in crate::supervisor) struct Origin {
    pub(in crate::supervisor) number: GenerationId,
    /// Held open: a template that dies is started again from the same file, whatever the path leads to by then.
    pub(in crate::supervisor) program: Program,
    pub(in crate::supervisor) source: Source,
}

/// What a generation's workers are to be.
#[derive(Debug)]
pub(in crate::supervisor) struct GenerationSettings {
    pub(in crate::supervisor) config: Config,
    /// The same as its template told it, with all that a newer program than this one may have put there. Null until then.
    pub(in crate::supervisor) told: Value,
    pub(in crate::supervisor) methods: Rc<Methods>,
    /// None once accepting has ended.
    pub(in crate::supervisor) listeners: Option<Listeners>,
}

/// The generation that is to follow.
#[derive(Debug)]
pub(in crate::supervisor) struct NextGeneration {
    pub(in crate::supervisor) origin: Origin,
    /// Known when its template is ready.
    pub(in crate::supervisor) settings: Option<GenerationSettings>,
    /// The version of the exec hand-off that its program understands.
    pub(in crate::supervisor) handoff: u32,
    pub(in crate::supervisor) begun: Instant,
}

impl GenerationSettings {
    /// The table that a method has in the configuration, with all keys that its template knows.
    pub(in crate::supervisor) fn table_of(&self, method: &str) -> Option<&Value> {
        self.told.get("methods")?.get(method)
    }
}

impl NextGeneration {
    /// What it is to listen on, once that is known.
    pub(in crate::supervisor) fn listeners_mut(&mut self) -> Option<&mut Listeners> {
        self.settings.as_mut()?.listeners.as_mut()
    }
}

/// The settings of the state policy.
pub(in crate::supervisor) fn state_settings(config: &Config) -> Settings {
    Settings {
        processes: config.processes,
        restart: restart::RestartLimits {
            max_restarts: config.restart.max_restarts,
            window: config.restart.window,
            backoff: config.restart.backoff,
            backoff_max: config.restart.backoff_max,
        },
        boot: config.timeouts.boot,
        drain: config.timeouts.drain,
        pre_stop: config.timeouts.pre_stop,
    }
}
