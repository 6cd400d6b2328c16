//! Signals that arrive, and children that have ended: this file turns both into events.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::config::span;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::state::{Event, GenerationId, OperatorRequest, WorkerEvent, WorkerId};
use crate::sys::clock;
use crate::sys::process::{self, Ended, Reaped};

impl Supervisor {
    pub(in crate::supervisor) fn read_signals(&mut self) {
        let mut child_ended = false;
        loop {
            match self.signals.next() {
                Ok(None) => break,
                Ok(Some(Signal::SIGCHLD)) => child_ended = true,
                Ok(Some(signal)) => self.signalled(signal),
                Err(error) => {
                    tracing::error!(%error, "signals can't be read");
                    break;
                }
            }
        }
        // Signals of one kind merge, so one SIGCHLD may stand for many children.
        if child_ended {
            self.take_in_ends();
        }
    }

    fn signalled(&mut self, signal: Signal) {
        tracing::info!(%signal, "signal");
        match signal {
            Signal::SIGTERM => self.asked(OperatorRequest::Stop),
            Signal::SIGINT => {
                if self.state.is_ending() {
                    self.hurry_leftovers();
                }
                self.asked(OperatorRequest::StopOrEnd);
            }
            Signal::SIGQUIT => {
                self.hurry_leftovers();
                self.asked(OperatorRequest::End);
            }
            Signal::SIGTTIN => self.asked(OperatorRequest::OneMore),
            Signal::SIGTTOU => self.asked(OperatorRequest::OneFewer),
            Signal::SIGHUP | Signal::SIGUSR2 => self.asked(OperatorRequest::Reload),
            // There is no log file to open again.
            _ => {}
        }
    }

    fn asked(&mut self, request: OperatorRequest) {
        // A worker that has said it is ready may run calls: it must be drained and not killed as one that boots.
        for worker in self.workers.ids() {
            self.read_worker(worker);
        }
        self.happened(Event::Asked(request));
    }

    /// Takes in the ends of workers whose connections others are to have, before these are reaped: that takes the kernel 10 ms
    /// for one that had 10,000 descriptors, when somebody has listed them in `/proc`, as programs that watch others do.
    fn take_in_ends(&mut self) {
        let escrow = &self.handover.escrow;
        let mut workers = self.workers.ids();
        workers.retain(|id| escrow.served_by(*id) > 0);
        // In the order of their births.
        workers.sort_unstable();
        for id in workers {
            let pid = self.workers.get(id).and_then(|worker| worker.pid);
            if let Some((pid, ended)) = pid.and_then(|pid| Some((pid, process::how_ended(pid)?))) {
                self.worker_ended(id, ended);
                self.taken_in.insert(pid);
            }
        }
        if !self.taken_in.is_empty() {
            // Before they are replaced: whoever lives when an orphan is first seen may have started it.
            self.end_leftovers();
        }
        self.reaping.children_ended(Instant::now());
    }

    pub(in crate::supervisor) fn reap(&mut self) {
        self.reaping.done();
        loop {
            match process::reap_any() {
                Ok(Reaped::Child(pid, ended)) => {
                    if !self.taken_in.remove(&pid) {
                        self.child_ended(pid, ended);
                    }
                }
                Ok(Reaped::NoneYet | Reaped::NoChildren) => break,
                Err(error) => {
                    tracing::error!(%error, "children can't be reaped");
                    break;
                }
            }
        }
        self.end_leftovers();
    }

    fn child_ended(&mut self, pid: Pid, ended: Ended) {
        let mut templates = self.templates.iter();
        if let Some((generation, _)) = templates.find(|(_, template)| template.pid == pid) {
            let generation = *generation;
            self.template_ended(generation, ended);
            return;
        }
        if self.workers.with_pid(pid).is_none() {
            self.read_unborn();
        }
        match self.workers.with_pid(pid) {
            Some(worker) => self.worker_ended(worker, ended),
            // A grandchild that came to us as its subreaper, or a process that died unborn.
            None => tracing::debug!(%pid, cause = ended.to_string(), "reaped a child of nobody"),
        }
    }

    /// Those whose pid is not known: their first message may still wait to be read.
    fn read_unborn(&mut self) {
        for worker in self.workers.unborn() {
            self.read_worker(worker);
        }
    }

    fn worker_ended(&mut self, id: WorkerId, ended: Ended) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.has_ended = true;
        }
        // What it said last counts: its channel is read dry before anything is decided.
        self.read_worker(id);
        let Some(worker) = self.workers.remove(id) else {
            return;
        };
        if worker.channel_open {
            let _ = self.epoll.delete(&worker.channel);
        }
        if let Some(session) = worker.session {
            self.leftovers.worker_ended(session);
        }
        let last = worker.arena.snapshot(clock::monotonic_ns());
        worker.log_end(ended, &last);
        let called = last.totals.begun > 0;
        self.scoreboard.end(&id, Some(&last.clone().renumber(&worker.methods.numbers)));
        // Before its replacement is asked for, which has to know what is in quarantine.
        self.blame_for(id, &worker, ended, &last);
        self.bequeath(id, ended.to_string());
        let cause = worker.boot_failure.unwrap_or_else(|| ended.to_string());
        self.happened(Event::Worker(id, WorkerEvent::Ended { called, cause }));
    }

    fn template_ended(&mut self, generation: GenerationId, ended: Ended) {
        self.read_template(generation);
        // Who is born already is not given up with it.
        self.read_unborn();
        if let Some(template) = self.templates.remove(&generation) {
            self.leftovers.template_ended(template.pid.as_raw());
            if template.channel_open {
                let _ = self.epoll.delete(&template.channel);
            }
            let uptime = span::show_measured(template.started.elapsed());
            let (pid, cause) = (template.pid, ended.to_string());
            if template.end_expected {
                tracing::debug!(%pid, generation, uptime, cause, "template ended");
            } else {
                tracing::error!(%pid, generation, uptime, cause, "template died");
            }
        }
        self.happened(Event::TemplateEnded { generation, cause: ended.to_string() });
    }
}
