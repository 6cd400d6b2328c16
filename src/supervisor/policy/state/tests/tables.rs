//! One row for each thing that can happen to a slot, to a worker that leaves or to the template, in each of its phases.

use super::super::generation::SlotPhase;
use super::super::generation::TemplatePhase;
use super::super::known::DepartureStage;
use super::super::{Action, Event, Timer, WorkerEvent};
use super::{
    BACKOFF, BOOT, CALLED, Harness, UNCALLED, all, ended, failed, fork, kill_template, of, refused, settings,
};

const EMPTY: SlotPhase = SlotPhase::Empty;
const BACKING_OFF: SlotPhase = SlotPhase::BackingOff;
const REQUESTED: SlotPhase = SlotPhase::Requested(0);
const BOOTING: SlotPhase = SlotPhase::Booting(0);
const READY: SlotPhase = SlotPhase::Ready(0);
const TOO_SLOW: SlotPhase = SlotPhase::TooSlow(0);
/// Its next process is requested.
const REPLACED: SlotPhase = SlotPhase::Requested(1);

#[test]
fn a_slot_before_its_process_is_born() {
    use WorkerEvent::{Born, ForkRefused, Leaving, OnlyStuckThreadsLeft, Ready, Retiring, Vanished, Wedged};
    slot(
        "an empty slot is filled when the template is ready",
        EMPTY,
        vec![Event::TemplateReady { generation: 1, settings: settings(1) }],
        REQUESTED,
        vec![disarm(Timer::TemplateBoot(1)), fork(0, 0).to_vec()],
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
        vec![of(Ready), of(Leaving), of(Wedged), of(Retiring), of(OnlyStuckThreadsLeft)],
        REQUESTED,
        vec![],
    );
    slot(
        "a template that does not fork is killed",
        REQUESTED,
        vec![Event::Due(Timer::Boot(0))],
        BACKING_OFF,
        vec![vec![kill_template(1), Action::Abandon(0)], retry()],
    );
}

#[test]
fn a_slot_whose_process_boots_or_serves() {
    use WorkerEvent::{Born, ForkRefused, Leaving, OnlyStuckThreadsLeft, Ready, Retiring, Vanished, Wedged};
    slot(
        "an end before ready is a boot failure",
        BOOTING,
        vec![of(CALLED), of(UNCALLED)],
        BACKING_OFF,
        vec![disarm(Timer::Boot(0)), retry()],
    );
    slot(
        "a worker gets ready",
        BOOTING,
        vec![of(Ready)],
        READY,
        vec![disarm(Timer::Boot(0)), disarm(Timer::NeverReady)],
    );
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
        vec![
            of(Born),
            of(Leaving),
            of(Wedged),
            of(Retiring),
            of(OnlyStuckThreadsLeft),
            of(ForkRefused),
            of(Vanished),
        ],
        BOOTING,
        vec![],
    );
    slot(
        "a worker that was ready is replaced at once",
        READY,
        vec![of(CALLED), of(UNCALLED)],
        REPLACED,
        vec![replace()],
    );
    slot(
        "a worker that is to be replaced goes on until another is ready",
        READY,
        vec![of(Leaving), of(Wedged), of(Retiring)],
        REPLACED,
        vec![replace()],
    );
    slot(
        "a ready worker stays",
        READY,
        vec![
            of(Born),
            of(Ready),
            of(ForkRefused),
            of(Vanished),
            of(OnlyStuckThreadsLeft),
            Event::Due(Timer::Boot(0)),
            Event::Due(Timer::Depart(0)),
        ],
        READY,
        vec![],
    );
}

#[test]
fn a_slot_whose_process_was_too_slow() {
    let words: Vec<Event> = all().into_iter().filter(|event| !is_end(event)).collect();
    slot("a last word does not raise the killed", TOO_SLOW, words, TOO_SLOW, vec![]);
    slot(
        "killed for its boot counts as a boot failure",
        TOO_SLOW,
        vec![of(CALLED), of(UNCALLED)],
        BACKING_OFF,
        vec![retry()],
    );
}

#[test]
fn a_worker_that_leaves_in_every_stage() {
    use WorkerEvent::{Born, ForkRefused, OnlyStuckThreadsLeft, Vanished};
    for stage in
        [DepartureStage::Unborn, DepartureStage::Leaving, DepartureStage::Draining, DepartureStage::Killed]
    {
        let mut events = all();
        events.extend([Event::Due(Timer::Depart(0)), Event::Due(Timer::Boot(0))]);
        for event in events {
            let killed = match stage {
                DepartureStage::Unborn => event == of(Born),
                DepartureStage::Leaving => {
                    event == of(OnlyStuckThreadsLeft) || event == Event::Due(Timer::Depart(0))
                }
                DepartureStage::Draining | DepartureStage::Killed => false,
            };
            let never_was =
                stage == DepartureStage::Unborn && (event == of(ForkRefused) || event == of(Vanished));
            let gone = is_end(&event) || never_was;
            let mut policy = Harness::departing_at(stage);
            let before = policy.phases();
            let actions = policy.on(event.clone());
            let kills = actions.contains(&Action::Kill(0));
            assert_eq!(kills, killed, "{stage:?}: {event:?}: {actions:?}");
            let then = if killed { DepartureStage::Killed } else { stage };
            let expected = if gone { vec![] } else { vec![(0, then)] };
            assert_eq!(policy.departing(), expected, "{stage:?}: {event:?}");
            assert_eq!(policy.phases(), before, "others are not concerned");
            let awaited = policy.armed.contains(&Timer::Depart(0));
            assert_eq!(awaited, stage == DepartureStage::Leaving && !gone && !killed, "{stage:?}: {event:?}");
        }
    }
}

fn is_end(event: &Event) -> bool {
    matches!(event, Event::Worker(_, WorkerEvent::Ended { .. }))
}

/// What happens to a slot in `phase` when any of `events` comes: the phase after it, and what is done.
fn slot(name: &str, phase: SlotPhase, events: Vec<Event>, then: SlotPhase, actions: Vec<Vec<Action>>) {
    for event in events {
        let mut policy = Harness::in_phase(phase);
        assert_eq!(policy.on(event.clone()), actions.concat(), "{name}: {event:?}");
        assert_eq!(policy.phases(), [then], "{name}: {event:?}");
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

const STARTING: TemplatePhase = TemplatePhase::Starting;
const UNPROVEN: TemplatePhase = TemplatePhase::Ready { proven: false };
const PROVEN: TemplatePhase = TemplatePhase::Ready { proven: true };
const KILLED_UNPROVEN: TemplatePhase = TemplatePhase::Killed { proven: false };
const KILLED_PROVEN: TemplatePhase = TemplatePhase::Killed { proven: true };
const WAITING: TemplatePhase = TemplatePhase::Waiting;

#[test]
fn the_template_in_every_phase() {
    use Event::Due;
    let unboot = || Action::Disarm(Timer::TemplateBoot(1));
    let retry = || Action::Arm(Timer::TemplateRetry, BACKOFF);
    let start = || vec![Action::StartTemplate { generation: 1 }, Action::Arm(Timer::TemplateBoot(1), BOOT)];
    let kill = || kill_template(1);
    let boot = || Due(Timer::TemplateBoot(1));
    let again = || Due(Timer::TemplateRetry);
    let ready = || Event::TemplateReady { generation: 1, settings: settings(0) };
    template("a template gets ready", STARTING, vec![ready()], UNPROVEN, vec![unboot()]);
    template(
        "a template that fails is ended",
        STARTING,
        vec![failed(1)],
        KILLED_UNPROVEN,
        vec![unboot(), kill()],
    );
    template("one that is too slow is ended", STARTING, vec![boot()], KILLED_UNPROVEN, vec![kill()]);
    template(
        "one that dies is started again after a wait",
        STARTING,
        vec![ended(1)],
        WAITING,
        vec![unboot(), retry()],
    );
    template("one that is refused too", STARTING, vec![refused(1)], WAITING, vec![unboot(), retry()]);
    template("its retry is not due while it starts", STARTING, vec![again()], STARTING, vec![]);
    template(
        "ready and dead at once is a failure to start",
        UNPROVEN,
        vec![ended(1)],
        WAITING,
        vec![retry()],
    );
    template("one that has forked is replaced at once", PROVEN, vec![ended(1)], STARTING, start());
    template("a ready one may still fail", UNPROVEN, vec![failed(1)], KILLED_UNPROVEN, vec![kill()]);
    template(
        "a ready one is not started again",
        PROVEN,
        vec![ready(), refused(1), boot(), again()],
        PROVEN,
        vec![],
    );
    template("a killed one is replaced when it has ended", KILLED_PROVEN, vec![ended(1)], STARTING, start());
    template("killed before it forked", KILLED_UNPROVEN, vec![ended(1)], WAITING, vec![retry()]);
    template(
        "killed before it was known to be refused",
        KILLED_UNPROVEN,
        vec![refused(1)],
        WAITING,
        vec![retry()],
    );
    template(
        "a last word does not raise the killed",
        KILLED_PROVEN,
        vec![ready(), failed(1), boot(), again()],
        KILLED_PROVEN,
        vec![],
    );
    template("a waiting one is started when its time has come", WAITING, vec![again()], STARTING, start());
    template(
        "where there is none, nothing is heard of it",
        WAITING,
        vec![ready(), failed(1), ended(1), refused(1), boot()],
        WAITING,
        vec![],
    );
}

/// What happens to a template in phase `before`, in a service that has started once and has no slot to fill.
fn template(
    name: &str,
    before: TemplatePhase,
    events: Vec<Event>,
    then: TemplatePhase,
    actions: Vec<Action>,
) {
    for event in events {
        let mut policy = Harness::new(settings(0));
        policy.state.first_start = false;
        policy.state.serving.template = before;
        assert_eq!(policy.on(event.clone()), actions, "{name}: {event:?}");
        assert_eq!(policy.state.serving.template, then, "{name}: {event:?}");
    }
}
