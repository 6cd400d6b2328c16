//! One row for each thing that can happen to a slot or to the template, in each of its phases.

use super::super::slots::Phase;
use super::super::template::Template;
use super::super::{Action, Event, Timer, WorkerEvent};
use super::{ANSWERED, BACKOFF, BOOT, Brain, DRAIN, UNANSWERED, fork, of, settings};

const EMPTY: Phase = Phase::Empty;
const BACKING_OFF: Phase = Phase::BackingOff;
const REQUESTED: Phase = Phase::Requested(0);
const BOOTING: Phase = Phase::Booting(0);
const READY: Phase = Phase::Ready(0);
const DRAINING: Phase = Phase::Draining(0);
const TOO_SLOW: Phase = Phase::Killed { worker: 0, boot: true };
const KILLED: Phase = Phase::Killed { worker: 0, boot: false };
/// Its next process is requested.
const REPLACED: Phase = Phase::Requested(1);

#[test]
fn a_slot_before_its_process_is_born() {
    use WorkerEvent::{Born, ForkRefused, Leaving, Ready, Vanished};
    slot(
        "an empty slot is filled when the template is ready",
        EMPTY,
        vec![Event::TemplateReady],
        REQUESTED,
        vec![disarm(Timer::TemplateBoot), fork(0, 0).to_vec()],
    );
    slot("an empty slot has nobody to hear of", EMPTY, all(), EMPTY, vec![]);
    slot("a waiting slot has nobody to hear of", BACKING_OFF, all(), BACKING_OFF, vec![]);
    slot(
        "a waiting slot is filled when its time has come",
        BACKING_OFF,
        vec![Event::Due(Timer::Refill(0))],
        REPLACED,
        vec![replace()],
    );
    slot(
        "a refused or lost fork is tried again after a wait",
        REQUESTED,
        vec![of(ForkRefused), of(Vanished)],
        BACKING_OFF,
        vec![disarm(Timer::Boot(0)), retry()],
    );
    slot("a newborn boots, and its time goes on", REQUESTED, vec![of(Born)], BOOTING, vec![]);
    slot(
        "a requested process can't be ready or leave",
        REQUESTED,
        vec![of(Ready), of(Leaving)],
        REQUESTED,
        vec![],
    );
    slot(
        "a template that does not fork is killed",
        REQUESTED,
        vec![Event::Due(Timer::Boot(0))],
        BACKING_OFF,
        vec![vec![Action::KillTemplate, Action::Abandon(0)], retry()],
    );
}

#[test]
fn a_slot_whose_process_boots_or_serves() {
    use WorkerEvent::{Born, ForkRefused, Leaving, Ready, Vanished};
    slot(
        "an end before ready is a boot failure",
        BOOTING,
        vec![of(ANSWERED), of(UNANSWERED)],
        BACKING_OFF,
        vec![disarm(Timer::Boot(0)), retry()],
    );
    slot("a worker gets ready", BOOTING, vec![of(Ready)], READY, vec![disarm(Timer::Boot(0))]);
    slot(
        "a worker that is too slow to boot is killed",
        BOOTING,
        vec![Event::Due(Timer::Boot(0))],
        TOO_SLOW,
        vec![vec![Action::Kill(0)]],
    );
    slot(
        "a booting worker has a pid and will be reaped",
        BOOTING,
        vec![of(Born), of(Leaving), of(ForkRefused), of(Vanished)],
        BOOTING,
        vec![],
    );
    slot(
        "a worker that has served is replaced at once",
        READY,
        vec![of(ANSWERED)],
        REPLACED,
        vec![replace()],
    );
    slot(
        "an end before the first answer is a boot failure",
        READY,
        vec![of(UNANSWERED)],
        BACKING_OFF,
        vec![retry()],
    );
    slot(
        "a worker that leaves has its time to drain",
        READY,
        vec![of(Leaving)],
        DRAINING,
        vec![vec![Action::Arm(Timer::Drain(0), DRAIN)]],
    );
    slot(
        "a ready worker stays",
        READY,
        vec![
            of(Born),
            of(Ready),
            of(ForkRefused),
            of(Vanished),
            Event::Due(Timer::Boot(0)),
            Event::Due(Timer::Drain(0)),
        ],
        READY,
        vec![],
    );
}

#[test]
fn a_slot_whose_process_is_to_end() {
    use WorkerEvent::{Born, ForkRefused, Leaving, Ready, Vanished};
    slot(
        "a drained worker is replaced",
        DRAINING,
        vec![of(ANSWERED), of(UNANSWERED)],
        REPLACED,
        vec![disarm(Timer::Drain(0)), replace()],
    );
    slot(
        "a worker that is too slow to drain is killed",
        DRAINING,
        vec![Event::Due(Timer::Drain(0))],
        KILLED,
        vec![vec![Action::Kill(0)]],
    );
    slot(
        "a draining worker drains",
        DRAINING,
        vec![of(Born), of(Ready), of(Leaving), of(ForkRefused), of(Vanished)],
        DRAINING,
        vec![],
    );
    slot(
        "killed for its boot counts as a boot failure",
        TOO_SLOW,
        vec![of(ANSWERED), of(UNANSWERED)],
        BACKING_OFF,
        vec![retry()],
    );
    slot(
        "killed for its drain counts for nothing",
        KILLED,
        vec![of(ANSWERED), of(UNANSWERED)],
        REPLACED,
        vec![replace()],
    );
    slot(
        "a last word does not raise the killed",
        KILLED,
        vec![of(Born), of(Ready), of(Leaving), of(ForkRefused), of(Vanished)],
        KILLED,
        vec![],
    );
    slot(
        "a last word does not raise the killed at boot",
        TOO_SLOW,
        vec![of(Born), of(Ready), of(Leaving), Event::Due(Timer::Boot(0))],
        TOO_SLOW,
        vec![],
    );
}

/// What happens to a slot in `phase` when any of `events` comes: the phase after it, and what is done.
fn slot(name: &str, phase: Phase, events: Vec<Event>, then: Phase, actions: Vec<Vec<Action>>) {
    for event in events {
        let mut brain = Brain::in_phase(phase);
        assert_eq!(brain.on(event.clone()), actions.concat(), "{name}: {event:?}");
        assert_eq!(brain.phases(), [then], "{name}: {event:?}");
    }
}

fn retry() -> Vec<Action> {
    vec![Action::Arm(Timer::Refill(0), BACKOFF)]
}

fn replace() -> Vec<Action> {
    fork(1, 0).to_vec()
}

fn disarm(timer: Timer) -> Vec<Action> {
    vec![Action::Disarm(timer)]
}

/// Everything that can be said of worker 0.
fn all() -> Vec<Event> {
    use WorkerEvent::{Born, ForkRefused, Leaving, Ready, Vanished};
    [ForkRefused, Born, Ready, Leaving, Vanished, ANSWERED, UNANSWERED].map(of).to_vec()
}

const STARTING: Template = Template::Starting;
const UNPROVEN: Template = Template::Ready { proven: false };
const PROVEN: Template = Template::Ready { proven: true };
const KILLED_UNPROVEN: Template = Template::Killed { proven: false };
const KILLED_PROVEN: Template = Template::Killed { proven: true };
const WAITING: Template = Template::Waiting;

#[test]
fn the_template_in_every_phase() {
    use Event::{Due, TemplateEnded, TemplateFailed, TemplateReady, TemplateRefused};
    let unboot = || Action::Disarm(Timer::TemplateBoot);
    let retry = || Action::Arm(Timer::TemplateRetry, BACKOFF);
    let start = || vec![Action::StartTemplate, Action::Arm(Timer::TemplateBoot, BOOT)];
    let kill = || Action::KillTemplate;
    let boot = || Due(Timer::TemplateBoot);
    let again = || Due(Timer::TemplateRetry);
    template("a template gets ready", STARTING, vec![TemplateReady], UNPROVEN, vec![unboot()]);
    template(
        "a template that fails is ended",
        STARTING,
        vec![TemplateFailed],
        KILLED_UNPROVEN,
        vec![unboot(), kill()],
    );
    template("one that is too slow is ended", STARTING, vec![boot()], KILLED_UNPROVEN, vec![kill()]);
    template(
        "one that dies is started again after a wait",
        STARTING,
        vec![TemplateEnded],
        WAITING,
        vec![unboot(), retry()],
    );
    template("one that is refused too", STARTING, vec![TemplateRefused], WAITING, vec![unboot(), retry()]);
    template("its retry is not due while it starts", STARTING, vec![again()], STARTING, vec![]);
    template(
        "ready and dead at once is a failure to start",
        UNPROVEN,
        vec![TemplateEnded],
        WAITING,
        vec![retry()],
    );
    template("one that has forked is replaced at once", PROVEN, vec![TemplateEnded], STARTING, start());
    template("a ready one may still fail", UNPROVEN, vec![TemplateFailed], KILLED_UNPROVEN, vec![kill()]);
    template(
        "a ready one is not started again",
        PROVEN,
        vec![TemplateReady, TemplateRefused, boot(), again()],
        PROVEN,
        vec![],
    );
    template(
        "a killed one is replaced when it has ended",
        KILLED_PROVEN,
        vec![TemplateEnded],
        STARTING,
        start(),
    );
    template("killed before it forked", KILLED_UNPROVEN, vec![TemplateEnded], WAITING, vec![retry()]);
    template(
        "killed before it was known to be refused",
        KILLED_UNPROVEN,
        vec![TemplateRefused],
        WAITING,
        vec![retry()],
    );
    template(
        "a last word does not raise the killed",
        KILLED_PROVEN,
        vec![TemplateReady, TemplateFailed, boot(), again()],
        KILLED_PROVEN,
        vec![],
    );
    template("a waiting one is started when its time has come", WAITING, vec![again()], STARTING, start());
    template(
        "where there is none, nothing is heard of it",
        WAITING,
        vec![TemplateReady, TemplateFailed, TemplateEnded, TemplateRefused, boot()],
        WAITING,
        vec![],
    );
}

/// What happens to a template in phase `before`, in a service that has started once and has no slot to fill.
fn template(name: &str, before: Template, events: Vec<Event>, then: Template, actions: Vec<Action>) {
    for event in events {
        let mut brain = Brain::new(settings(0));
        brain.state.first_start = false;
        brain.state.template = before;
        assert_eq!(brain.on(event.clone()), actions, "{name}: {event:?}");
        assert_eq!(brain.state.template, then, "{name}: {event:?}");
    }
}
