//! When nothing is under way, and that a policy which goes on from there is the one that was left.

use super::super::generation::SlotPhase;
use super::super::{Action, Event, OperatorRequest, Settings, SupervisorState, Timer, WorkerEvent};
use super::{CALLED, Harness, UNCALLED, failed, fork, leave, settings};

use WorkerEvent::{Born, Leaving, Retiring, Wedged};

/// Slot 1 waits until its time has come; the numbers up to 9 are given.
fn wait(policy: &mut Harness) {
    policy.worker(1, CALLED);
    policy.state.next_worker = 9;
    let SlotPhase::Requested(next) = policy.phases()[1] else { panic!("{:?}", policy.phases()) };
    policy.worker(next, Born);
    policy.worker(next, UNCALLED);
}

type SnapshotRow = (&'static str, fn(&mut Harness), bool);

#[test]
fn it_is_calm_when_nobody_comes_or_leaves() {
    let rows: [SnapshotRow; 12] = [
        ("all serve", |_| {}, true),
        ("one is requested", |policy| drop(policy.worker(1, CALLED)), false),
        (
            "one boots",
            |policy| {
                policy.worker(1, CALLED);
                policy.worker(2, Born);
            },
            false,
        ),
        ("one waits for its time", wait, true),
        ("one is signalled", |policy| drop(policy.worker(1, Leaving)), false),
        ("one is wedged", |policy| drop(policy.worker(1, Wedged)), false),
        ("one retires", |policy| drop(policy.worker(1, Retiring)), false),
        ("one leaves", |policy| drop(policy.asked(OperatorRequest::OneFewer)), false),
        ("a reload", |policy| drop(policy.asked(OperatorRequest::Reload)), false),
        (
            "a failed reload whose template has not ended",
            |policy| {
                policy.asked(OperatorRequest::Reload);
                policy.on(failed(2));
            },
            false,
        ),
        ("no template", |policy| drop(policy.template_ended(1)), false),
        ("a stop", |policy| drop(policy.asked(OperatorRequest::Stop)), false),
    ];
    for (name, way, quiescent) in rows {
        let mut policy = Harness::serving(2);
        way(&mut policy);
        assert_eq!(policy.state.quiescent().is_some(), quiescent, "{name}");
    }
}

#[test]
fn a_brain_that_goes_on_fills_what_waited_and_does_what_the_other_would_have_done() {
    let mut before = Harness::serving(3);
    wait(&mut before);
    let quiescent = before.state.quiescent().expect("quiescent");
    let text = serde_json::to_string(&quiescent).expect("JSON");
    let quiescent = serde_json::from_str(&text).expect("the same");
    let slower = Settings { pre_stop: std::time::Duration::ZERO, ..settings(7) };
    let (state, actions) = SupervisorState::go_on(quiescent, slower);
    let mut policy = Harness { state, now: before.now, armed: std::collections::BTreeSet::new() };
    assert_eq!(policy.follow(actions), fork(9, 1));
    assert_eq!(
        policy.phases(),
        [SlotPhase::Ready(0), SlotPhase::Requested(9), SlotPhase::Ready(2)],
        "not seven"
    );
    assert!(!policy.armed.contains(&Timer::NeverReady), "it has served");
    assert_eq!(policy.worker(2, UNCALLED), fork(10, 2), "how long it was ready is not known");
    policy.boots(10);
    policy.boots(9);
    assert_eq!(policy.asked(OperatorRequest::OneFewer), leave(10));
    assert_eq!(policy.asked(OperatorRequest::Reload)[0], Action::StartTemplate { generation: 2 });
    assert_eq!(policy.on(Event::Due(Timer::TemplateRetry)), [], "its template lives");
}
