use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

type Kept = Escrow<u32, &'static str>;

fn key(index: u32) -> Key {
    Key { index, generation: 0 }
}

fn keys(indexes: impl IntoIterator<Item = u32>) -> Vec<Key> {
    indexes.into_iter().map(key).collect()
}

/// Workers 0, 1, 2, of which 0 serves connections 0..count, each held by a descriptor of the same number.
fn escrow(count: u32) -> Kept {
    let mut escrow = Kept::default();
    for worker in 0..3 {
        escrow.begin(worker, "arena");
    }
    assert_eq!(escrow.keep(0, keys(0..count), (0..count).collect()), []);
    escrow
}

fn send_all(escrow: &mut Kept, adopters: &[(WorkerId, usize)]) -> Vec<HandOff> {
    let plan = escrow.plan(adopters, Which::All);
    for hand_off in &plan {
        escrow.sent(*hand_off);
    }
    plan
}

#[test]
fn connections_of_a_worker_that_died_go_to_those_with_the_fewest() {
    let cases = [
        // waiting, what others have, what they get
        (4, (0, 0), (2, 2)),
        (4, (10, 0), (0, 4)),
        (4, (3, 1), (1, 3)),
        (1, (5, 5), (1, 0)),
        (0, (0, 0), (0, 0)),
        (600, (0, 0), (300, 300)),
    ];
    for (waiting, has, gets) in cases {
        let mut escrow = escrow(waiting);
        escrow.ended(0, "SIGSEGV".into());
        let plan = escrow.plan(&[(1, has.0), (2, has.1)], Which::All);
        let to = |worker| {
            let handings = plan.iter().filter(|hand_off| hand_off.to == worker);
            handings.map(|hand_off| hand_off.count).sum::<usize>()
        };
        assert_eq!((to(1), to(2)), gets, "{waiting} wait, others have {has:?}");
        assert!(plan.iter().all(|hand_off| hand_off.count <= MOST_AT_ONCE && hand_off.from == 0));
    }
}

#[test]
fn what_is_on_its_way_counts_as_the_adopters() {
    let mut escrow = escrow(2);
    escrow.ended(0, "SIGKILL".into());
    assert_eq!(send_all(&mut escrow, &[(1, 0)]), [HandOff { from: 0, to: 1, count: 2 }]);
    escrow.begin(3, "arena");
    escrow.keep(3, keys([7]), vec![7]);
    escrow.ended(3, "SIGKILL".into());
    assert_eq!(escrow.plan(&[(1, 0), (2, 1)], Which::All), [HandOff { from: 3, to: 2, count: 1 }]);
}

#[test]
fn a_parcel_says_what_its_worker_died_of_and_brings_its_arena() {
    let mut escrow = escrow(3);
    escrow.ended(0, "exit 3".into());
    let parcel = escrow.parcel(0, 2).unwrap();
    assert_eq!((*parcel.arena, parcel.cause.as_deref()), ("arena", Some("exit 3")));
    assert_eq!(parcel.connections.len(), 2);
    assert_eq!(parcel.connections.iter().map(|key| key.index).collect::<Vec<_>>(), {
        parcel.descriptors.iter().map(|number| **number).collect::<Vec<_>>()
    });
}

#[test]
fn a_connection_that_was_adopted_is_the_adopters_under_its_new_key() {
    let mut escrow = escrow(2);
    escrow.ended(0, "SIGKILL".into());
    send_all(&mut escrow, &[(1, 0)]);
    let moved = escrow.adopted(1, 0, vec![Taken::As(key(40)), Taken::Refused]);
    assert_eq!(
        moved,
        AdoptionOutcome { released: vec![], refused: 1, wait_again: 0 },
        "nobody is left to be told"
    );
    assert_eq!((escrow.served_by(1), escrow.waiting()), (1, 0));
    assert!(escrow.parcel(0, 1).is_none(), "the arena of the dead worker is gone");
    escrow.ended(1, "SIGKILL".into());
    assert_eq!(escrow.parcel(1, 9).unwrap().connections, [key(40)]);
}

#[test]
fn what_a_dead_workers_poller_waited_in_is_held_until_its_connections_are_others() {
    let mut escrow = escrow(2);
    escrow.hold_epoll(0, 90);
    escrow.hold_epoll(0, 91);
    assert_eq!((escrow.epoll_of(0), escrow.epoll_of(1)), (Some(&90), None), "what was said first");
    assert_eq!(escrow.descriptors(), 2);
    escrow.ended(0, "SIGKILL".into());
    send_all(&mut escrow, &[(1, 0)]);
    assert_eq!((escrow.epoll_of(0), escrow.descriptors()), (Some(&90), 4), "with the arena");
    escrow.adopted(1, 0, vec![Taken::As(key(40)), Taken::As(key(41))]);
    escrow.hold_epoll(0, 92);
    assert_eq!((escrow.epoll_of(0), escrow.descriptors()), (None, 2));
}

#[test]
fn what_did_not_arrive_waits_again() {
    let mut escrow = escrow(3);
    escrow.ended(0, "SIGKILL".into());
    send_all(&mut escrow, &[(1, 0)]);
    let moved = escrow.adopted(1, 0, vec![Taken::As(key(0))]);
    assert_eq!((moved.wait_again, escrow.waiting()), (2, 2));
}

#[test]
fn an_adopter_that_dies_before_it_said_so_leaves_all_to_the_next() {
    let mut escrow = escrow(3);
    escrow.ended(0, "SIGSEGV".into());
    send_all(&mut escrow, &[(1, 0)]);
    assert_eq!(escrow.waiting(), 0);
    escrow.ended(1, "SIGKILL".into());
    let parcel = escrow.parcel(0, 9).unwrap();
    assert_eq!((parcel.connections.len(), parcel.cause.as_deref()), (3, Some("SIGSEGV")));
    assert_eq!(escrow.plan(&[(2, 0)], Which::All), [HandOff { from: 0, to: 2, count: 3 }]);
}

#[test]
fn a_worker_that_lets_go_hears_when_another_has_what_it_offered() {
    let mut escrow = escrow(2);
    assert_eq!(escrow.offered(0, keys([0, 9])), [key(9)], "9 was not kept");
    assert_eq!(
        send_all(&mut escrow, &[(0, 1), (1, 50)]),
        [HandOff { from: 0, to: 1, count: 1 }],
        "not back to where it comes from"
    );
    assert_eq!(escrow.adopted(1, 0, vec![Taken::As(key(5))]).released, [key(0)]);
    assert_eq!((escrow.served_by(0), escrow.served_by(1)), (1, 1));
}

#[test]
fn a_worker_that_is_alone_gets_back_what_it_let_go() {
    let mut escrow = escrow(1);
    escrow.offered(0, keys([0]));
    assert_eq!(escrow.plan(&[(0, 0)], Which::All), [HandOff { from: 0, to: 0, count: 1 }]);
    assert_eq!(escrow.plan(&[], Which::All), [], "none is ready: it waits");
}

#[test]
fn what_is_closed_is_not_kept_and_what_nobody_will_take_is_given_up() {
    let mut escrow = escrow(4);
    escrow.closed(0, &keys([0, 77]));
    escrow.offered(0, keys([1]));
    escrow.closed(0, &keys([1]));
    assert_eq!((escrow.served_by(0), escrow.waiting()), (2, 1));
    assert_eq!(escrow.give_up_waiting(), [(0, keys([1]))]);
    escrow.ended(0, "SIGKILL".into());
    assert_eq!(escrow.give_up_waiting(), []);
    assert_eq!(escrow.waiting(), 0);
}

#[test]
fn descriptors_that_did_not_arrive_are_not_kept() {
    let mut escrow = escrow(0);
    assert_eq!(escrow.keep(0, keys([0, 1, 2]), vec![0]), keys([1, 2]));
    assert_eq!(escrow.keep(99, keys([0]), vec![8]), keys([0]), "of a worker that nobody knows");
}

#[test]
fn what_an_adopter_has_no_room_for_goes_to_another_and_is_given_up_at_last() {
    let mut escrow = escrow(1);
    escrow.ended(0, "SIGKILL".into());
    let waits = AdoptionOutcome { wait_again: 1, ..AdoptionOutcome::default() };
    for _ in 0..MOST_PUT_OFF / 2 {
        for (adopter, other) in [(1, 2), (2, 1)] {
            escrow.sent(HandOff { from: 0, to: adopter, count: 1 });
            assert_eq!(escrow.adopted(adopter, 0, vec![Taken::NotNow]), waits);
            assert_eq!(
                escrow.plan(&[(adopter, 0), (other, 50)], Which::All),
                [HandOff { from: 0, to: other, count: 1 }]
            );
            assert_eq!(
                escrow.plan(&[(adopter, 0)], Which::All),
                [HandOff { from: 0, to: adopter, count: 1 }]
            );
        }
    }
    escrow.sent(HandOff { from: 0, to: 1, count: 1 });
    assert_eq!(escrow.adopted(1, 0, vec![Taken::NotNow]).refused, 1);
    assert_eq!(escrow.len(), 0);
}

#[test]
fn words_that_fit_nothing_change_nothing() {
    let mut escrow = escrow(1);
    assert_eq!(escrow.adopted(1, 0, vec![Taken::As(key(0))]), AdoptionOutcome::default());
    assert_eq!(escrow.adopted(1, 55, vec![Taken::Refused]), AdoptionOutcome::default());
    escrow.ended(55, "SIGKILL".into());
    escrow.sent(HandOff { from: 55, to: 1, count: 4 });
    assert_eq!((escrow.served_by(0), escrow.served_by(1)), (1, 0));
}

#[derive(Debug, Clone)]
enum EscrowStep {
    Keep(u32, u32, usize),
    Close(u32, u32),
    Offer(u32, u32),
    HandOver(Vec<u32>),
    Answer { adopter: u32, from: u32, results: Vec<bool> },
    Die(u32),
}

fn step() -> impl Strategy<Value = EscrowStep> {
    let (worker, index) = (0_u32..4, 0_u32..12);
    prop_oneof![
        (worker.clone(), 1_u32..4, 0_usize..5).prop_map(|(w, n, d)| EscrowStep::Keep(w, n, d)),
        (worker.clone(), index.clone()).prop_map(|(w, i)| EscrowStep::Close(w, i)),
        (worker.clone(), index).prop_map(|(w, i)| EscrowStep::Offer(w, i)),
        prop::collection::vec(worker.clone(), 0..3).prop_map(EscrowStep::HandOver),
        (worker.clone(), worker.clone(), prop::collection::vec(any::<bool>(), 0..6))
            .prop_map(|(adopter, from, results)| EscrowStep::Answer { adopter, from, results }),
        worker.prop_map(EscrowStep::Die),
    ]
}

impl Kept {
    /// Every descriptor with where it is.
    fn places(&self) -> Vec<u32> {
        let mut places = Vec::new();
        for escrow in self.workers.values() {
            places.extend(escrow.served.values());
            places.extend(escrow.waiting.iter().map(|(_, descriptor)| descriptor));
            let on_the_way = escrow.on_the_way.iter().flat_map(|sent| &sent.connections);
            places.extend(on_the_way.map(|(_, descriptor)| descriptor));
        }
        places
    }

    fn is_sound(&self, living: &BTreeSet<u32>) -> bool {
        self.workers.iter().all(|(worker, escrow)| {
            let lives = living.contains(worker);
            let adopters_live = escrow.on_the_way.iter().all(|sent| living.contains(&sent.to));
            lives == escrow.cause.is_none()
                && (lives || escrow.served.is_empty())
                && (lives || !escrow.waiting.is_empty() || !escrow.on_the_way.is_empty())
                && adopters_live
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn every_kept_connection_is_in_one_place_whatever_happens(steps in prop::collection::vec(step(), 0..120)) {
        let mut escrow = Kept::default();
        // Worker names are never used twice: a slot's number is the place in this list.
        let mut slots = [0, 1, 2, 3];
        let (mut next_worker, mut next_key, mut next_descriptor) = (4, 0, 0);
        let mut last_keys: [Vec<Key>; 4] = Default::default();
        for worker in slots {
            escrow.begin(worker, "arena");
        }
        for step in steps {
            let before: BTreeSet<u32> = escrow.places().into_iter().collect();
            let mut may_vanish = false;
            match step {
                EscrowStep::Keep(slot, count, arrived) => {
                    let new = keys(next_key..next_key + count);
                    next_key += count;
                    last_keys[slot as usize].extend(&new);
                    let arrived = arrived.min(count as usize);
                    let descriptors = (0..).map(|n| next_descriptor + n).take(arrived).collect();
                    next_descriptor += 10;
                    let not_kept = escrow.keep(slots[slot as usize], new, descriptors);
                    prop_assert_eq!(not_kept.len(), count as usize - arrived);
                }
                EscrowStep::Close(slot, index) => {
                    may_vanish = true;
                    let key = last_keys[slot as usize].get(index as usize).copied().unwrap_or(key(999));
                    escrow.closed(slots[slot as usize], &[key]);
                }
                EscrowStep::Offer(slot, index) => {
                    let key = last_keys[slot as usize].get(index as usize).copied().unwrap_or(key(999));
                    escrow.offered(slots[slot as usize], vec![key]);
                }
                EscrowStep::HandOver(to) => {
                    let to: BTreeSet<u32> = to.into_iter().map(|slot| slots[slot as usize]).collect();
                    let adopters: Vec<_> = to.iter().map(|worker| (*worker, escrow.served_by(*worker))).collect();
                    send_all(&mut escrow, &adopters);
                    prop_assert!(adopters.len() < 2 || escrow.waiting() == 0);
                }
                EscrowStep::Answer { adopter, from, results } => {
                    may_vanish = results.contains(&false);
                    let mut made = Vec::new();
                    for taken in results {
                        let new = key(next_key);
                        next_key += 1;
                        made.push(if taken { Taken::As(new) } else { Taken::Refused });
                    }
                    let adopted = made.iter().filter_map(|made| match made {
                        Taken::As(new) => Some(*new),
                        Taken::Refused | Taken::NotNow => None,
                    });
                    last_keys[adopter as usize].extend(adopted);
                    escrow.adopted(slots[adopter as usize], slots[from as usize], made);
                }
                EscrowStep::Die(slot) => {
                    escrow.ended(slots[slot as usize], "SIGKILL".into());
                    slots[slot as usize] = next_worker;
                    last_keys[slot as usize].clear();
                    escrow.begin(next_worker, "arena");
                    next_worker += 1;
                }
            }
            let places = escrow.places();
            let now: BTreeSet<u32> = places.iter().copied().collect();
            prop_assert_eq!(places.len(), now.len(), "a connection is in two places");
            prop_assert!(may_vanish || before.is_subset(&now), "a connection was lost");
            prop_assert!(escrow.is_sound(&slots.into_iter().collect()));
        }
    }
}

#[test]
fn those_that_somebody_waits_for_go_first_and_by_turns() {
    let most = u32::try_from(MOST_AT_ONCE).unwrap();
    let (count, urgent) = (4 * most, most + 10);
    let mut escrow = escrow(count);
    escrow.ended(0, "SIGSEGV".into());
    // In whatever order they wait.
    let is_urgent = |key: Key| key.index < urgent;
    let are_more = escrow.look_at_some(usize::MAX, |arena, waiting| {
        assert_eq!((*arena, waiting.len()), ("arena", count as usize));
        waiting.iter().map(|(key, _)| is_urgent(*key)).collect()
    });
    assert!(!are_more);
    assert!(!escrow.look_at_some(1, |_, _| panic!("nothing has come that was not asked about")));
    let mut to = Vec::new();
    for hand_off in escrow.plan(&[(1, 0), (2, 0)], Which::All) {
        let parcel = escrow.parcel(0, hand_off.count).unwrap();
        let urgent = parcel.connections.iter().filter(|key| is_urgent(**key)).count();
        to.push((hand_off.to, hand_off.count, urgent));
        escrow.sent(hand_off);
    }
    let (all, some) = (MOST_AT_ONCE, MOST_AT_ONCE - 10);
    assert_eq!(to, [(1, all, all), (2, 10, 10), (1, all, 0), (2, all, 0), (2, some, 0)]);
}

#[test]
fn those_that_somebody_waits_for_wait_for_no_look_at_others() {
    let mut escrow = escrow(10);
    escrow.ended(0, "SIGSEGV".into());
    let look = |escrow: &mut Kept| {
        escrow.look_at_some(4, |_, some| some.iter().map(|(key, _)| key.index.is_multiple_of(3)).collect())
    };
    let mut handed = Vec::new();
    loop {
        let are_more = look(&mut escrow);
        let which = if are_more { Which::Urgent } else { Which::All };
        for hand_off in escrow.plan(&[(1, 0)], which) {
            let parcel = escrow.parcel(0, hand_off.count).unwrap();
            handed.push(parcel.connections.iter().map(|key| key.index).collect::<Vec<_>>());
            escrow.sent(hand_off);
        }
        if !are_more {
            break;
        }
    }
    assert_eq!(handed, [vec![0, 3], vec![6], vec![9], vec![1, 2, 4, 5, 7, 8]]);
    assert_eq!((escrow.waiting(), escrow.on_the_way_to(1)), (0, 10));
}
