//! Workers: having one forked, and reading what it says.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::unistd::Pid;

use crate::arena::{self, ArenaReader, Room};
use crate::channel::{Channel, FromWorker, Received, ToTemplate};
use crate::config::span;
use crate::log::{self, Counted, More};
use crate::supervisor::children::blame::in_force;
use crate::supervisor::children::records::WorkerRecord;
use crate::supervisor::children::records::session_of;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::shares::{Credit, Share};
use crate::supervisor::policy::state::{Event, GenerationId, WorkerEvent, WorkerId};
use crate::supervisor::tokens::{MOST_MESSAGES, template_token, watch, worker_token};

/// What a worker says of itself. User code in it can write to its channel, as often as it likes.
static WORDS: Counted = Counted::new("what workers say of themselves", 20);
static NOT_UNDERSTOOD: Counted = Counted::new("a message of a worker is not understood", 1);

impl Supervisor {
    pub(in crate::supervisor) fn request_fork(
        &mut self,
        generation: GenerationId,
        worker: WorkerId,
        slot: usize,
        doors_shut: bool,
    ) {
        if let Err(error) = self.try_request_fork(generation, worker, slot, doors_shut) {
            self.fork_was_refused(worker, &error);
            self.forget_unborn(worker, WorkerEvent::ForkRefused);
        }
    }

    /// It is tried again and again; what refuses it may last.
    pub(in crate::supervisor) fn fork_was_refused(
        &mut self,
        worker: WorkerId,
        reason: &dyn std::fmt::Display,
    ) {
        if self.forks.refused() {
            tracing::warn!(worker, %reason, "a worker can't be forked; tried again until it can (said once)");
        } else {
            tracing::debug!(worker, %reason, "a worker can't be forked");
        }
    }

    fn try_request_fork(
        &mut self,
        generation: GenerationId,
        id: WorkerId,
        slot: usize,
        doors_shut: bool,
    ) -> io::Result<()> {
        let settings = self.settings(generation);
        let Some((settings, listeners)) =
            settings.and_then(|settings| Some((settings, settings.listeners.as_ref()?)))
        else {
            return Err(io::Error::other("its generation is gone"));
        };
        let (methods, stuck) = (Rc::clone(&settings.methods), settings.config.timeouts.stuck);
        let share = Share::at_birth();
        let may_keep = Some(self.first_credit(share));
        let (channel, far_end) = Channel::pair()?;
        let room = Room { methods: methods.names.len(), ..crate::worker::room(&settings.config) };
        let memory = arena::create(&room)?;
        let arena = ArenaReader::open(&memory).map_err(io::Error::other)?;
        let kept_memory = memory.try_clone()?;
        let mut descriptors: Vec<OwnedFd> = vec![far_end, memory, self.bell.as_fd().try_clone_to_owned()?];
        let (listeners, sockets) = (listeners.duplicates()?, listeners.sockets());
        let per_address = settings.config.limits.per_address;
        let (region, addresses) = self.region_for(id, per_address)?.unzip();
        descriptors.extend(addresses.into_iter().chain(listeners));
        let Some(template) = self.templates.get_mut(&generation) else {
            return Err(io::Error::other("there is no template"));
        };
        self.epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, worker_token(id)))?;
        let quarantine = in_force(&self.quarantine);
        let worker = WorkerRecord {
            generation,
            slot,
            methods,
            pid: None,
            channel,
            channel_open: true,
            arena,
            started: Instant::now(),
            stuck,
            share,
            credit: Credit::new(may_keep),
            without_place: 0,
            end_expected: false,
            is_deaf: false,
            has_ended: false,
            boot_failure: None,
            is_ready: false,
            born_refusing: quarantine.iter().map(|shut| shut.method.clone()).collect(),
            listeners: sockets,
            session: None,
        };
        self.workers.insert(id, worker);
        self.handover.escrow.begin(id, kept_memory);
        let fork = ToTemplate::Fork { worker: id, slot, may_keep, doors_shut, quarantine, region };
        template.channel.send(&fork, descriptors)?;
        watch(&self.epoll, &template.channel, template_token(generation));
        Ok(())
    }

    pub(in crate::supervisor) fn forget_unborn(&mut self, id: WorkerId, event: WorkerEvent) {
        self.abandon(id);
        self.happened(Event::Worker(id, event));
    }

    pub(in crate::supervisor) fn abandon(&mut self, id: WorkerId) {
        self.handover.escrow.ended(id, String::new());
        let Some(mut worker) = self.workers.remove(id) else {
            return;
        };
        // What it was to hold and was granted is anybody's.
        self.handover.shares_changed();
        if worker.channel_open {
            let _ = self.epoll.delete(&worker.channel);
        }
        // Born a moment ago, after all.
        worker.kill();
    }

    pub(in crate::supervisor) fn worker_channel(&mut self, id: WorkerId, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT)
            && let Some(worker) = self.workers.get_mut(id)
        {
            let _ = worker.channel.flush();
            watch(&self.epoll, &worker.channel, worker_token(id));
        }
        self.read_worker(id);
    }

    pub(in crate::supervisor) fn read_worker(&mut self, id: WorkerId) {
        for _ in 0..MOST_MESSAGES {
            let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.channel_open) else {
                break;
            };
            match worker.channel.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    let _ = self.epoll.delete(&worker.channel);
                    worker.channel_open = false;
                    match worker.pid {
                        None => self.vanished(id),
                        Some(pid) => self.end_deaf(id, pid),
                    }
                }
                Ok(Received::Message(message, descriptors)) => self.worker_says(id, message, descriptors),
                Err(error) => {
                    if let Some(More { count, .. }) = NOT_UNDERSTOOD.admit(None) {
                        tracing::warn!(
                            slot = worker.slot, %error, more = count,
                            "a message of a worker is not understood"
                        );
                    }
                    if error.raw_os_error().is_some() {
                        break;
                    }
                }
            }
        }
    }

    /// It will never say its pid.
    fn vanished(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(id).filter(|worker| !worker.end_expected) {
            let template = self.templates.get(&worker.generation);
            if template.is_some_and(|template| !template.end_expected) {
                tracing::warn!(slot = worker.slot, "a worker ended before its first word");
            }
        }
        self.forget_unborn(id, WorkerEvent::Vanished);
    }

    fn is_ready(&mut self, id: WorkerId, descriptors: Vec<OwnedFd>) {
        // Anything that a handler runs may say so again.
        if self.workers.get(id).is_some_and(|worker| worker.is_ready) {
            return;
        }
        if let Some(epoll) = descriptors.into_iter().next() {
            self.handover.escrow.hold_epoll(id, epoll);
        }
        self.balance_soon();
        self.handover.shares_changed();
        self.catch_up(id);
        self.listens_on_what_there_is(id);
        // It accepts from then on, and others no more than their parts: whoever reads that it is ready finds it so.
        self.share_out();
        if let Some(worker) = self.workers.get(id) {
            let (slot, generation, pid) = (worker.slot, worker.generation, worker.pid.map_or(0, Pid::as_raw));
            let after = span::show_measured(worker.started.elapsed());
            tracing::info!(slot, pid, generation, after, "worker ready");
        }
    }

    fn worker_says(&mut self, id: WorkerId, message: FromWorker, descriptors: Vec<OwnedFd>) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        let (slot, generation) = (worker.slot, worker.generation);
        // Before anything is made of what else it says.
        worker.without_place = message.without_place().unwrap_or(worker.without_place);
        let event = match message {
            FromWorker::Born { pid, .. } => {
                // Only the first word counts, which is ours: later ones may come from anything that a handler runs,
                // and a pid is what gets killed.
                if worker.pid.is_some() || pid <= 1 {
                    return;
                }
                worker.pid = Some(Pid::from_raw(pid));
                worker.session = session_of(Pid::from_raw(pid));
                worker.end_expected = false;
                if let Some(refused) = self.forks.granted() {
                    tracing::info!(refused, "workers can be forked again");
                }
                WorkerEvent::Born
            }
            FromWorker::Ready => {
                self.is_ready(id, descriptors);
                WorkerEvent::Ready
            }
            FromWorker::BootFailed { reason } => {
                let reason = log::cut(&reason);
                if let Some(More { count, .. }) = WORDS.admit(None) {
                    tracing::error!(slot, generation, more = count, "a worker can't start: {reason}");
                }
                worker.boot_failure = Some(reason.into_owned());
                return;
            }
            FromWorker::Leaving => {
                if let Some(More { count, .. }) = WORDS.admit(None) {
                    tracing::info!(
                        slot,
                        generation,
                        more = count,
                        "a worker was signalled to end; it is replaced, then it leaves"
                    );
                }
                WorkerEvent::Leaving
            }
            FromWorker::HereIAm => {
                let stuck = worker.stuck;
                self.signs.heard(id, stuck, Instant::now());
                return;
            }
            FromWorker::Wedged { method } => {
                let (pid, stuck) = (worker.pid.map_or(0, Pid::as_raw), worker.stuck);
                if let Some(More { count, .. }) = WORDS.admit(None) {
                    let method = log::cut(&method);
                    let method = &*method;
                    tracing::error!(
                        slot,
                        pid,
                        generation,
                        method,
                        more = count,
                        "a worker is wedged and is replaced: a call is still in its handler timeouts.stuck \
                         ({}) after its deadline",
                        span::show(stuck)
                    );
                }
                WorkerEvent::Wedged
            }
            FromWorker::Retiring { why } => {
                if let Some(More { count, .. }) = WORDS.admit(None) {
                    let why = log::cut(&why);
                    tracing::info!(slot, generation, more = count, "a worker is to be recycled: {why}");
                }
                WorkerEvent::Retiring
            }
            FromWorker::OnlyStuckThreadsLeft => {
                if let Some(More { count, .. }) = WORDS.admit(None) {
                    tracing::info!(
                        slot,
                        generation,
                        more = count,
                        "nothing is left in a worker but threads that don't come back"
                    );
                }
                WorkerEvent::OnlyStuckThreadsLeft
            }
            FromWorker::Keep { connections, .. } => return self.keep(id, connections, descriptors),
            FromWorker::Closed { connections, .. } => return self.closed(id, &connections),
            FromWorker::Offered { connections, .. } => return self.offered(id, connections),
            FromWorker::Adopted { from, results, .. } => return self.adopted(id, from, results),
            FromWorker::HoldsFewer => return self.holds_fewer(id),
            FromWorker::Crowded { waiting } => {
                return self.handover.balance.is_crowded(id, waiting, Instant::now());
            }
            FromWorker::TrialWanted { method } => return self.trial_wanted(id, &method),
            FromWorker::TrialEnded { method, ok } => return self.trial_ended(id, &method, ok),
        };
        self.happened(Event::Worker(id, event));
    }
}
