//! The supervisor's dealings with the template: starting it, listening to it, ending it.

use std::io;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::signal::Signal;

use super::children::{self, Template};
use super::state::{Event, WorkerEvent};
use super::{GENERATION, MOST_MESSAGES, Supervisor, TEMPLATE, watch};
use crate::line::{self, FromTemplate, Line, Received, ToTemplate};
use crate::sys::process;

impl Supervisor {
    pub(super) fn start_template(&mut self) {
        if let Err(error) = self.try_start_template() {
            tracing::warn!(%error, "a template can't be started");
            self.happened(Event::TemplateRefused);
        }
    }

    fn try_start_template(&mut self) -> io::Result<()> {
        let (mut line, far_end) = Line::pair()?;
        let config = children::text_in_memory(&self.source.text)?;
        let begin = ToTemplate::Begin {
            version: line::VERSION,
            generation: GENERATION,
            source: self.source.name.clone(),
        };
        line.send(&begin, vec![config])?;
        self.epoll.add(&line, EpollEvent::new(EpollFlags::EPOLLIN, TEMPLATE))?;
        let pid = self.program.start(line::TEMPLATE_VARIABLE, &far_end, |far_end, error| {
            let Ok(far_end) = far_end.try_clone() else { return };
            let reason = format!("the program can't be executed again: {error}");
            // The child that runs this ends right after: nothing is left to do if the line is broken too.
            let _ = Line::from(far_end).send(&FromTemplate::Failed { reason }, Vec::new());
        })?;
        tracing::debug!(%pid, generation = GENERATION, "template started");
        self.template =
            Some(Template { pid, line, line_open: true, end_expected: false, started: Instant::now() });
        Ok(())
    }

    pub(super) fn kill_template(&mut self) {
        if let Some(template) = &mut self.template {
            template.end_expected = true;
            if let Err(error) = process::kill(template.pid, Signal::SIGKILL) {
                tracing::warn!(pid = %template.pid, %error, "the template can't be killed");
            }
        }
    }

    pub(super) fn template_line(&mut self, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT)
            && let Some(template) = &mut self.template
        {
            let _ = template.line.flush();
            watch(&self.epoll, &template.line, TEMPLATE);
        }
        self.read_template();
    }

    pub(super) fn read_template(&mut self) {
        for _ in 0..MOST_MESSAGES {
            let Some(template) = self.template.as_mut().filter(|template| template.line_open) else {
                break;
            };
            match template.line.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    let _ = self.epoll.delete(&template.line);
                    template.line_open = false;
                }
                Ok(Received::Message(message, _)) => self.template_says(message),
                Err(error) => {
                    tracing::warn!(%error, "a message of the template is not understood");
                    if error.raw_os_error().is_some() {
                        break;
                    }
                }
            }
        }
    }

    fn template_says(&mut self, message: FromTemplate) {
        match message {
            FromTemplate::Ready { version, methods } if version == line::VERSION => {
                self.methods = methods;
                self.happened(Event::TemplateReady);
            }
            FromTemplate::Ready { version, .. } => {
                tracing::error!(
                    expected = line::VERSION,
                    found = version,
                    "the template is of another version of this program"
                );
                self.happened(Event::TemplateFailed);
            }
            FromTemplate::Failed { reason } => {
                tracing::error!("{reason}");
                if let Some(template) = &mut self.template {
                    template.end_expected = true;
                }
                self.happened(Event::TemplateFailed);
            }
            FromTemplate::ForkFailed { worker, reason } => {
                tracing::warn!(reason, "the kernel refused to fork a worker");
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
