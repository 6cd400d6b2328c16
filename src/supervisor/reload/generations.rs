//! Carries out a reload: begins the next generation, and puts it in the place of the one that serves.
//!
//! The state policy decides when. Nothing of the serving generation is touched before the switch. See docs/design/reload.md.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

use super::generation::{GenerationSettings, NextGeneration, Origin, state_settings};
use crate::channel;
use crate::config::{self, Config, span};
use crate::supervisor::listeners::bound::Listeners;
use crate::supervisor::needs::raise_descriptor_limit;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::state::{Event, GenerationId, Settings};

impl Supervisor {
    /// A number that is not known yet begins the next generation, from what the paths of program and configuration lead
    /// to now.
    pub(in crate::supervisor) fn look_for_the_next(&mut self, generation: GenerationId) -> io::Result<()> {
        if generation == self.origin.number {
            return Ok(());
        }
        let begun = Instant::now();
        let program = self.origin.program.found_now()?;
        let source = config::read_source_again(self.config_path.as_deref()).map_err(io::Error::other)?;
        let origin = Origin { number: generation, program, source };
        tracing::info!(
            generation,
            config = origin.source.name,
            program = %origin.program.path().display(),
            "reloading"
        );
        self.next = Some(NextGeneration { origin, settings: None, handoff: 0, begun });
        Ok(())
    }

    /// A template has done its preload: what the state policy is to hear of it.
    pub(in crate::supervisor) fn template_is_ready(
        &mut self,
        generation: GenerationId,
        methods: Vec<String>,
        checked: Value,
    ) -> Event {
        if generation == self.origin.number {
            self.settings.methods = Rc::new(self.all_methods.number(methods));
            self.settings.told = checked;
            return Event::TemplateReady { generation, settings: state_settings(&self.settings.config) };
        }
        match self.take_settings(generation, methods, checked) {
            Ok(settings) => Event::TemplateReady { generation, settings },
            Err(why) => Event::TemplateFailed { generation, why },
        }
    }

    fn take_settings(
        &mut self,
        generation: GenerationId,
        methods: Vec<String>,
        checked: Value,
    ) -> Result<Settings, String> {
        let Some(next) = self.next.as_mut().filter(|next| next.origin.number == generation) else {
            return Err("it was given up".into());
        };
        let config = Config::deserialize(&checked).map_err(|error| {
            format!("what the template says of its configuration is not understood: {error}")
        })?;
        let listeners = match &self.settings.listeners {
            Some(before) => before.followed_by(&config.listeners)?,
            None => return Err("the service is to end".into()),
        };
        let settings = state_settings(&config);
        let methods = Rc::new(self.all_methods.number(methods));
        next.settings =
            Some(GenerationSettings { config, told: checked, methods, listeners: Some(listeners) });
        Ok(settings)
    }

    pub(in crate::supervisor) fn switch(&mut self, generation: GenerationId) {
        let Some(NextGeneration { origin, settings: Some(settings), handoff, begun }) = self.next.take()
        else {
            return;
        };
        let addresses: Vec<&str> = settings.listeners.iter().flat_map(Listeners::addresses).collect();
        let took = span::show_measured(begun.elapsed());
        tracing::info!(
            generation,
            took,
            config = origin.source.name,
            processes = settings.config.processes,
            threads = settings.config.threads,
            listen = addresses.join(", "),
            "reloaded"
        );
        raise_descriptor_limit(&settings.config);
        self.handover.resize(&settings.config);
        if let (Some(listeners), Some(before)) = (&settings.listeners, &self.settings.listeners) {
            listeners.settle(before);
            before.retire(Some(listeners));
        }
        let is_new_program = !origin.program.is(&self.origin.program);
        self.origin = origin;
        let before = std::mem::replace(&mut self.settings, settings);
        self.watch_listeners();
        self.look_at_listeners();
        self.change_quarantine(is_new_program, &before);
        self.successor_is_wanted = !self.origin.program.runs_here();
        if self.successor_is_wanted && handoff != channel::HANDOFF_VERSION {
            tracing::warn!(
                "the new program can't take the supervisor's own place; restart the service for that"
            );
            self.successor_is_wanted = false;
        }
    }

    pub(in crate::supervisor) fn successor_understands(&mut self, generation: GenerationId, handoff: u32) {
        if let Some(next) = self.next.as_mut().filter(|next| next.origin.number == generation) {
            next.handoff = handoff;
        }
    }

    pub(in crate::supervisor) fn reload_failed(&mut self, generation: GenerationId, why: &str) {
        let begun = self.next.take().map(|next| next.begun);
        let took = span::show_measured(begun.map(|begun| begun.elapsed()).unwrap_or_default());
        let serving = self.origin.number;
        // One line, also where the configuration has many mistakes.
        let why = why.trim_end().replace('\n', "; ");
        tracing::error!(generation, serving, took, "reload failed: {why}");
    }
}
