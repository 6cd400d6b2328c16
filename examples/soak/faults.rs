//! One fault after the other, drawn at random, injected from outside as an operator or the machine would.

use std::fmt;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tine::BoxError;

use crate::support::load::Load;
use crate::support::load::content::Work;
use crate::support::load::group::{Group, Life, Reading, Sending};
use crate::support::load::speech::Speech;
use crate::support::proc;
use crate::support::service::Service;

/// A kind of fault and how often it comes, against the others.
const KINDS: [(Kind, u32); 8] = [
    (Kind::Kill, 6),
    (Kind::Term, 2),
    (Kind::Stop, 1),
    (Kind::Reload, 2),
    (Kind::More, 1),
    (Kind::Fewer, 1),
    (Kind::Flood, 1),
    (Kind::Peace, 2),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kill,
    Term,
    Stop,
    Reload,
    More,
    Fewer,
    Flood,
    Peace,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Term => "term",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::More => "more",
            Self::Fewer => "fewer",
            Self::Flood => "flood",
            Self::Peace => "peace",
        }
    }
}

pub struct Faults<'a> {
    service: &'a Service,
    random: StdRng,
    usual: usize,
    extra: usize,
    counts: [u64; KINDS.len()],
    kinds: Vec<(usize, u32)>,
    flood: Option<Load>,
}

impl<'a> Faults<'a> {
    pub fn new(service: &'a Service, random: StdRng, usual: usize, without: &[String]) -> Self {
        let is_wanted = |kind: Kind| !without.iter().any(|name| name == kind.name());
        let kinds = KINDS.iter().enumerate().filter(|(_, (kind, _))| is_wanted(*kind));
        let kinds = kinds.map(|(index, (_, weight))| (index, *weight)).collect();
        Self { service, random, usual, extra: 0, counts: [0; KINDS.len()], kinds, flood: None }
    }

    /// Injects one, and lets some time pass.
    pub fn next(&mut self) -> Result<(), BoxError> {
        let drawn = self.kinds.choose_weighted(&mut self.random, |(_, weight)| *weight);
        let (index, _) = *drawn.map_err(|_| "expected a fault that is not left out")?;
        self.counts[index] += 1;
        let mut pause = self.random.random_range(20..400);
        match KINDS[index].0 {
            Kind::Kill => self.signal_one(Signal::SIGKILL),
            Kind::Term => self.signal_one(Signal::SIGTERM),
            Kind::Stop => self.signal_one(Signal::SIGSTOP),
            Kind::Reload => self.service.signal(Signal::SIGHUP),
            Kind::More if self.extra < 2 => {
                self.extra += 1;
                self.service.signal(Signal::SIGTTIN);
            }
            Kind::Fewer if self.extra > 0 => {
                self.extra -= 1;
                self.service.signal(Signal::SIGTTOU);
            }
            // The one before is over with this.
            Kind::Flood => self.flood = Some(Load::start(self.service.address(), &NUISANCES)?),
            Kind::More | Kind::Fewer => {}
            Kind::Peace => pause += 1_000,
        }
        std::thread::sleep(Duration::from_millis(pause));
        Ok(())
    }

    fn signal_one(&mut self, signal: Signal) {
        if let Some(pid) = self.service.workers().choose(&mut self.random) {
            proc::signal(*pid, signal);
        }
    }

    /// No more of them, and as many workers as in the beginning.
    pub fn end(&mut self) {
        self.flood = None;
        // A reload goes back to the configured number by itself, so what was asked for is no measure.
        for _ in 0..10 {
            std::thread::sleep(Duration::from_secs(3));
            match self.service.workers().len() {
                count if count > self.usual => self.service.signal(Signal::SIGTTOU),
                count if count < self.usual => self.service.signal(Signal::SIGTTIN),
                _ => break,
            }
        }
    }
}

impl fmt::Display for Faults<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, _)) in KINDS.iter().enumerate() {
            let between = if index == 0 { "" } else { ", " };
            write!(out, "{between}{} {}", self.counts[index], kind.name())?;
        }
        Ok(())
    }
}

const NUISANCES: [Group; 4] = [
    Group::new("a byte at a time", 100)
        .in_any_framing()
        .sending(Sending::Paced { bytes: 1, every: Duration::from_millis(100) })
        .life(Life::Nuisance),
    Group::new("never reads", 50)
        .in_any_framing()
        .work(Work::Blob { bytes: 100_000 })
        .pipelined(4)
        .reading(Reading::Never)
        .life(Life::Nuisance),
    Group::new("comes and goes", 20)
        .in_any_framing()
        .pace(Duration::from_millis(10))
        .life(Life::Visit { calls: 1 }),
    Group::new("much, slowly", 10)
        .speaking(Speech::SINGLE)
        .work(Work::Echo { bytes: 1_000_000 })
        .sending(Sending::Paced { bytes: 64 << 10, every: Duration::from_millis(100) })
        .life(Life::Nuisance),
];
