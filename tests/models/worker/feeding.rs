//! Connections that wait for room in the buffers.

use std::sync::Arc;

use libtest_mimic::Trial;
use loom::thread;

use super::buffers::{Buffers, LITTLE, Ration};
use crate::arena::Key;
use crate::{holds, holds_by_order};

const FIRST: Key = Key { index: 1, generation: 0 };
const SECOND: Key = Key { index: 2, generation: 0 };
const MUCH: usize = 2 * LITTLE;
const LIMIT: usize = 4 * MUCH;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        holds("feeding_one_that_grows_starves_nobody", 4, one_that_grows_starves_nobody),
        holds(
            "feeding_when_the_favoured_one_is_done_another_is",
            4,
            when_the_favoured_one_is_done_another_is,
        ),
    ];
    trials.extend(holds_by_order("feeding_room_is_told_to_who_waits", 4, room_is_told_to_who_waits));
    trials.extend(holds_by_order(
        "feeding_a_message_that_is_let_go_is_told",
        4,
        a_message_that_is_let_go_is_told,
    ));
    trials
}

fn full_to(held: usize) -> Arc<Buffers> {
    let buffers = Arc::new(Buffers::new(LIMIT));
    buffers.hold_on(held);
    buffers
}

/// The second asks for its ration while `other` happens in another thread, which feeds whom it is told to. True when the
/// second waits.
fn second_waits(buffers: &Arc<Buffers>, unsent: usize, other: fn(&Buffers) -> bool) -> bool {
    let thread = thread::spawn({
        let buffers = Arc::clone(buffers);
        move || if other(&buffers) { buffers.feed() } else { Vec::new() }
    });
    let ration = buffers.ration(SECOND, MUCH, unsent);
    let fed = thread.join().unwrap();
    ration == Ration::Nothing && !fed.contains(&SECOND)
}

fn room_is_told_to_who_waits() {
    let buffers = full_to(LIMIT);
    assert!(!second_waits(&buffers, MUCH, |buffers| buffers.account(FIRST, MUCH, 0)), "with room for it");
}

fn a_message_that_is_let_go_is_told() {
    let buffers = full_to(LIMIT);
    assert!(!second_waits(&buffers, MUCH, |buffers| buffers.let_go(MUCH)), "with room for it");
}

fn when_the_favoured_one_is_done_another_is() {
    let buffers = full_to(2 * LIMIT);
    assert_eq!(buffers.ration(FIRST, MUCH, 0), Ration::All);
    assert!(!second_waits(&buffers, 0, |buffers| buffers.account(FIRST, MUCH, 0)), "with nobody favoured");
}

/// There is room before and after, so there is at any time.
fn one_that_grows_starves_nobody() {
    let buffers = full_to(LIMIT - MUCH);
    assert!(
        !second_waits(&buffers, MUCH, |buffers| buffers.account(FIRST, MUCH, MUCH + 1)),
        "with room for it"
    );
}
