//! Templates: starting one, reading its channel, ending it.

use std::io;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::signal::Signal;

use crate::channel::{self, Channel, FromTemplate, Received, ToTemplate};
use crate::supervisor::children::records::{self, TemplateRecord};
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::state::{Event, GenerationId, WorkerEvent};
use crate::supervisor::tokens::{MOST_MESSAGES, template_token, watch};
use crate::sys::{limits, process};

/// A template says no more of its configuration than a person reads.
const MOST_WARNINGS: usize = 20;

impl Supervisor {
    pub(in crate::supervisor) fn start_template(&mut self, generation: GenerationId) {
        if let Err(error) = self.try_start_template(generation) {
            self.happened(Event::TemplateRefused { generation, why: error.to_string() });
        }
    }

    fn try_start_template(&mut self, generation: GenerationId) -> io::Result<()> {
        self.look_for_the_next(generation)?;
        let origin = self.origin(generation).ok_or_else(|| io::Error::other("its generation is gone"))?;
        let (mut channel, far_end) = Channel::pair()?;
        let config = records::text_in_memory(&origin.source.text)?;
        let begin = ToTemplate::Begin {
            version: channel::VERSION,
            generation,
            source: origin.source.name.clone(),
            descriptors: limits::started_with(),
        };
        channel.send(&begin, vec![config])?;
        self.epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, template_token(generation)))?;
        let pid = origin.program.start(channel::TEMPLATE_VARIABLE, &far_end, |far_end, error| {
            let Ok(far_end) = far_end.try_clone() else { return };
            let reason = format!("the program can't be executed: {error}");
            // The child that runs this ends right after: nothing is left to do if the channel is broken too.
            let _ = Channel::from(far_end).send(&FromTemplate::Failed { reason }, Vec::new());
        })?;
        tracing::debug!(%pid, generation, "template started");
        let template =
            TemplateRecord { pid, channel, channel_open: true, end_expected: false, started: Instant::now() };
        self.templates.insert(generation, template);
        Ok(())
    }

    pub(in crate::supervisor) fn kill_template(&mut self, generation: GenerationId) {
        if let Some(template) = self.templates.get_mut(&generation) {
            template.end_expected = true;
            if let Err(error) = process::kill(template.pid, Signal::SIGKILL) {
                tracing::warn!(pid = %template.pid, %error, "the template can't be killed");
            }
        }
    }

    pub(in crate::supervisor) fn template_channel(&mut self, generation: GenerationId, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT)
            && let Some(template) = self.templates.get_mut(&generation)
        {
            let _ = template.channel.flush();
            watch(&self.epoll, &template.channel, template_token(generation));
        }
        self.read_template(generation);
    }

    pub(in crate::supervisor) fn read_template(&mut self, generation: GenerationId) {
        for _ in 0..MOST_MESSAGES {
            let template = self.templates.get_mut(&generation).filter(|template| template.channel_open);
            let Some(template) = template else { break };
            match template.channel.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    let _ = self.epoll.delete(&template.channel);
                    template.channel_open = false;
                }
                Ok(Received::Message(message, _)) => self.template_says(generation, message),
                Err(error) if error.raw_os_error().is_some() => {
                    tracing::warn!(%error, "a template's channel can't be read");
                    break;
                }
                // Of another version, or user code in it writes to descriptors at random.
                Err(error) => {
                    template.end_expected = true;
                    let why = format!("a message of the template is not understood: {error}");
                    self.happened(Event::TemplateFailed { generation, why });
                }
            }
        }
    }

    fn template_says(&mut self, generation: GenerationId, message: FromTemplate) {
        match message {
            FromTemplate::Ready { version, methods, config, handoff, warnings }
                if version == channel::VERSION =>
            {
                // Those of the generation that serves have been told.
                if generation != self.origin.number {
                    for warning in warnings.iter().take(MOST_WARNINGS) {
                        tracing::warn!(generation, "{warning}");
                    }
                }
                // Daemons that are new by now may be preload's.
                self.spare_orphans();
                let event = self.template_is_ready(generation, methods, config);
                self.successor_understands(generation, handoff);
                self.happened(event);
            }
            FromTemplate::Ready { version, .. } => {
                let why = format!(
                    "the template is of another version of this program: expected messages of version {}, found \
                     {version}; restart the service",
                    channel::VERSION
                );
                self.happened(Event::TemplateFailed { generation, why });
            }
            FromTemplate::Failed { reason } => {
                if let Some(template) = self.templates.get_mut(&generation) {
                    template.end_expected = true;
                }
                self.happened(Event::TemplateFailed { generation, why: reason });
            }
            FromTemplate::ForkFailed { worker, reason } => {
                self.fork_was_refused(worker, &reason);
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.end_expected = true;
                }
                // Or what forked it died right after: then it may live and have spoken.
                self.read_worker(worker);
                if self.workers.is_unborn(worker) {
                    self.forget_unborn(worker, WorkerEvent::ForkRefused);
                }
            }
        }
    }
}
