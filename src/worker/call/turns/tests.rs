//! Scenes of callers that want to be served: who comes next, who is held back, who gives way.

use super::*;

const ONE: AddressKey = AddressKey::V4([10, 0, 0, 1]);
const TWO: AddressKey = AddressKey::V4([10, 0, 0, 2]);
const THREE: AddressKey = AddressKey::Unix(0);

/// As many threads as nobody here ever uses: all that wait go, one after the other.
const PLENTY: Option<usize> = Some(1_000_000);

fn push(turns: &mut Turns<&'static str>, lane: Lane, calls: &[&'static str]) {
    for call in calls {
        turns.push(lane, call).unwrap();
    }
}

fn pop_all<T>(turns: &mut Turns<T>) -> Vec<T> {
    std::iter::from_fn(|| turns.pop().map(|(_, call)| call)).collect()
}

#[test]
fn addresses_take_turns_then_connections_then_calls_in_their_order() {
    let mut turns = Turns::new(PLENTY);
    let [a, b, c] = [ONE, ONE, TWO].map(|address| turns.open(address));
    push(&mut turns, a, &["a1", "a2", "a3"]);
    push(&mut turns, b, &["b1", "b2"]);
    push(&mut turns, c, &["c1", "c2", "c3", "c4"]);
    let order = ["a1", "c1", "b1", "c2", "a2", "c3", "b2", "c4", "a3"];
    assert_eq!(pop_all(&mut turns), order);
    assert_eq!((turns.len(), turns.may_pop()), (0, false));
}

#[test]
fn opening_many_connections_gains_nothing() {
    let mut turns = Turns::new(PLENTY);
    for _ in 0..100 {
        let greedy = turns.open(ONE);
        push(&mut turns, greedy, &["greedy"; 10]);
    }
    let polite = turns.open(TWO);
    push(&mut turns, polite, &["polite"; 3]);
    let order = pop_all(&mut turns);
    let at: Vec<usize> = (0..order.len()).filter(|at| order[*at] == "polite").collect();
    assert_eq!(at, [1, 3, 5]);
}

#[test]
fn one_connection_leaves_a_thread_to_others_while_there_are_any() {
    let cases = [
        // threads, connections of its address, of another, how many of its calls run at once
        (8, 1, 0, 8),
        (8, 2, 0, 7),
        (8, 1, 1, 7),
        (2, 2, 0, 1),
        (1, 2, 0, 1),
        (1, 1, 1, 1),
    ];
    for (threads, at_home, elsewhere, run) in cases {
        let mut turns = Turns::new(Some(threads));
        let greedy = turns.open(ONE);
        let mut others: Vec<Lane> = (1..at_home).map(|_| turns.open(ONE)).collect();
        others.extend((0..elsewhere).map(|_| turns.open(TWO)));
        push(&mut turns, greedy, &["greedy"; 20]);
        let mut running = 0;
        while running < threads && turns.pop().is_some() {
            running += 1;
        }
        assert_eq!(running, run, "{threads} threads, {at_home} and {elsewhere} connections");
        if let Some(other) = others.first().filter(|_| threads > 1) {
            assert_eq!(turns.held_back(), 20 - run, "{threads} threads");
            assert_eq!(turns.turn(*other).before, 0, "a thread is free for it");
            push(&mut turns, *other, &["other"]);
            assert_eq!(turns.pop(), Some((*other, "other")));
        }
        turns.ended(greedy);
        assert_eq!(turns.pop(), Some((greedy, "greedy")), "one more has room");
    }
}

#[test]
fn many_connections_of_one_address_leave_a_thread_to_other_addresses() {
    let mut turns = Turns::new(Some(4));
    let greedy = [(); 3].map(|()| turns.open(ONE));
    let polite = turns.open(TWO);
    for lane in greedy {
        push(&mut turns, lane, &["greedy"; 5]);
    }
    assert_eq!(pop_all(&mut turns).len(), 3);
    assert_eq!(turns.held_back(), 12);
    push(&mut turns, polite, &["polite"]);
    assert_eq!(turns.pop(), Some((polite, "polite")));
    // Nobody else is left: all threads are for it.
    turns.ended(polite);
    turns.close(polite);
    assert_eq!(turns.held_back(), 0);
    assert_eq!(turns.pop().map(|(_, call)| call), Some("greedy"));
}

#[test]
fn a_caller_waits_for_its_turn_and_not_for_all_that_wait() {
    let mut turns = Turns::new(Some(2));
    let [greedy, polite, other] = [ONE, TWO, THREE].map(|address| turns.open(address));
    push(&mut turns, greedy, &["greedy"; 50]);
    push(&mut turns, other, &["other"; 50]);
    assert_eq!((turns.pop().is_some(), turns.pop().is_some()), (true, true));
    let before = |turns: &Turns<_>, lane| turns.turn(lane).before;
    assert_eq!(turns.turn(polite).waiting, 98);
    assert_eq!(before(&turns, polite), 0, "both of the others have the thread that they may have");
    assert_eq!(turns.turn(greedy), Turn { before: 49, width: 1, waiting: 98 });
    push(&mut turns, polite, &["polite"; 2]);
    assert_eq!(before(&turns, polite), 2);

    // With threads enough that nobody is held back: two others go before each of its calls.
    let mut turns = Turns::new(Some(100));
    let lanes = [ONE, TWO, THREE].map(|address| turns.open(address));
    for lane in lanes {
        push(&mut turns, lane, &["runs"; 40]);
    }
    (0..100).for_each(|_| assert!(turns.pop().is_some()));
    for lane in &lanes[..2] {
        push(&mut turns, *lane, &["waits"; 40]);
    }
    let late = turns.open(AddressKey::Unix(7));
    assert_eq!(before(&turns, late), 3);
    push(&mut turns, late, &["one"]);
    assert_eq!(before(&turns, late), 7, "its own, and two of each other address");
}

#[test]
fn a_call_for_which_a_thread_is_free_has_nothing_before_it() {
    let mut turns = Turns::new(Some(4));
    let lane = turns.open(ONE);
    for free in [3, 2, 1] {
        assert_eq!(turns.turn(lane), Turn { before: 0, width: 4, waiting: 0 }, "{free} more are free");
        push(&mut turns, lane, &["on its way to a thread"]);
    }
}

#[test]
fn the_newest_of_whoever_has_most_waiting_gives_way() {
    let mut turns = Turns::new(PLENTY);
    let [a, b, c] = [ONE, ONE, TWO].map(|address| turns.open(address));
    push(&mut turns, a, &["a1", "a2", "a3", "a4"]);
    push(&mut turns, b, &["b1"]);
    // An address with more than the caller's own: the connection with most there.
    assert_eq!(turns.displace(c), Some("a4"));
    push(&mut turns, c, &["c1", "c2"]);
    assert_eq!(turns.displace(c), Some("a3"));
    push(&mut turns, c, &["c3"]);
    // Its own call would be the newest of an address with most.
    assert_eq!(turns.displace(c), None);
    // At its own address it is the connection with most that gives way, and never oneself.
    push(&mut turns, a, &["a3", "a4"]);
    assert_eq!(turns.displace(a), None);
    assert_eq!(turns.displace(b), Some("a4"));
    assert_eq!(turns.len(), 7);
}

#[test]
fn a_call_that_is_taken_out_leaves_the_others_in_their_order() {
    let mut turns = Turns::new(PLENTY);
    let [a, b] = [ONE, TWO].map(|address| turns.open(address));
    push(&mut turns, a, &["a1", "a2", "a3"]);
    push(&mut turns, b, &["b1"]);
    assert_eq!(turns.remove(a, |call| *call == "a2"), Some("a2"));
    assert_eq!(turns.remove(a, |call| *call == "a2"), None);
    assert_eq!(turns.remove(b, |_| true), Some("b1"));
    assert_eq!(turns.len(), 2);
    assert_eq!(pop_all(&mut turns), ["a1", "a3"]);
}

#[test]
fn a_connection_that_is_gone_finds_nothing_and_its_place_is_used_again() {
    let mut turns = Turns::new(PLENTY);
    let gone = turns.open(ONE);
    push(&mut turns, gone, &["runs", "waits"]);
    assert_eq!(turns.pop(), Some((gone, "runs")));
    turns.close(gone);
    turns.close(gone);
    assert!(!turns.is_empty(gone), "what waits still has its turn");
    assert_eq!(turns.pop(), Some((gone, "waits")));
    turns.ended(gone);
    turns.ended(gone);
    assert_eq!(turns.push(gone, "nobody's"), Err("nobody's"));
    let next = turns.open(TWO);
    assert_eq!((next.index, turns.lanes.len(), turns.addresses.len()), (gone.index, 1, 1));
    push(&mut turns, next, &["new"]);
    assert_eq!(turns.remove(next, |_| true), Some("new"));
    // It stands in its ring still when it goes.
    turns.close(next);
    assert!(!turns.may_pop() && turns.by_key.is_empty());
}

#[test]
fn a_call_may_end_before_it_was_counted() {
    let mut turns: Turns<()> = Turns::new(Some(2));
    let lane = turns.open(ONE);
    turns.ended(lane);
    turns.close(lane);
    turns.began(lane);
    assert_eq!((turns.running, turns.by_key.len()), (0, 0));
}

/// Whatever happens, all that is put in comes out, everybody's calls in their order, and no bound is passed.
#[test]
fn nothing_is_lost_and_no_bound_is_passed_whatever_happens() {
    let mut seed = 1_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let mut turns: Turns<(Lane, u32)> = Turns::new(Some(3));
    let (mut lanes, mut running, mut waits): (Vec<Lane>, Vec<Lane>, HashMap<Lane, VecDeque<u32>>) =
        (Vec::new(), Vec::new(), HashMap::new());
    for step in 0..20_000_u32 {
        match random(10) {
            0 if lanes.len() < 12 => lanes.push(turns.open([ONE, TWO, THREE][random(3)])),
            1 if !lanes.is_empty() => turns.close(lanes.swap_remove(random(lanes.len()))),
            2..=4 if !lanes.is_empty() => {
                let lane = lanes[random(lanes.len())];
                turns.push(lane, (lane, step)).unwrap();
                waits.entry(lane).or_default().push_back(step);
            }
            5 if !lanes.is_empty() => {
                let lane = lanes[random(lanes.len())];
                if let Some((victim, call)) = turns.displace(lane) {
                    assert_eq!(waits.get_mut(&victim).and_then(VecDeque::pop_back), Some(call));
                }
            }
            6..=7 if running.len() < 3 => {
                if let Some((lane, (owner, call))) = turns.pop() {
                    assert_eq!(lane, owner);
                    assert_eq!(waits.get_mut(&lane).and_then(VecDeque::pop_front), Some(call));
                    running.push(lane);
                } else {
                    assert_eq!(turns.held_back(), turns.len(), "who is not held back has its turn");
                }
            }
            _ if !running.is_empty() => turns.ended(running.swap_remove(random(running.len()))),
            _ => {}
        }
        waits.retain(|_, waits| !waits.is_empty());
        let all: usize = waits.values().map(VecDeque::len).sum();
        assert_eq!(turns.len(), all, "step {step}");
        assert_eq!(turns.running, running.len().cast_signed());
        assert!(turns.held_back() <= all);
        for lane in &lanes {
            assert!(turns.turn(*lane).before <= all);
        }
    }
}
