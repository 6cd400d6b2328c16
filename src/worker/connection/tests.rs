//! What follows from a connection's state: what may begin, what epoll is asked for, when time matters.

use std::io::Read;

use super::stream::LINGER;
use super::*;
use crate::config::Config;
use crate::rpc::{Hooks, MethodIndex, RegistryBuilder, Service};
use crate::worker::call::caller::{Asked, Known, Protocol, Whom};
use crate::worker::connection::chunk::Scratch;

const IDLE: Duration = Duration::from_secs(600);
const MESSAGE: Duration = Duration::from_secs(30);
const QUEUE_WAIT: Duration = Duration::from_secs(1);
const REQUEST: Duration = Duration::from_secs(10);

const BOUNDS: Bounds = Bounds {
    in_flight: 3,
    in_batch: 2,
    output: 100,
    message: MESSAGE,
    idle: IDLE,
    first_byte: IDLE,
    queue_wait: QUEUE_WAIT,
};

const NOTHING: Interest = Interest { input: false, output: false };
const INPUT: Interest = Interest { input: true, output: false };
const OUTPUT: Interest = Interest { input: false, output: true };

/// A fresh connection's state, and when it began.
fn fresh() -> (State, Instant) {
    let now = Instant::now();
    let (_, records, pool) = crate::arena::of_connections(1);
    let core = Core::default();
    let record = records.open(Key { index: 0, generation: 0 }, &core).unwrap();
    (State::new(pool, record, core, None, now), now)
}

fn chunk(bytes: &[u8], state: &State) -> Chunk {
    Chunk::copy_of(bytes, 0, state.pool).unwrap()
}

/// An answer waits to be sent.
fn put_out(state: &mut State, answer: &[u8]) {
    assert!(state.publish(answer, Answered::Message, &mut None));
}

/// What other processes make of it is nobody's concern here.
fn moment(instant: Instant) -> Moment {
    Moment { instant, ns: 1 }
}

/// Input waits.
fn put_in(state: &mut State, bytes: &[u8]) {
    let chunk = chunk(bytes, state);
    assert!(state.keep(chunk, 0, &Scratch::new(state.pool)));
}

fn accepts() -> Accepts {
    Accepts { kinds: Kinds::default(), order: ByteOrder::Little, max_message: 64 }
}

/// Whoever made a native call, with an id or without.
fn caller(has_id: bool) -> Known {
    let message: &[u8] = if has_id { br#"{"id":7,"in":"x"}"# } else { br#"{"in":"x"}"# };
    let Asked::Call { request, reply, text_at } = protocol().read(message) else { panic!("a call") };
    Known { reply, text_at, id: request.id }
}

fn protocol() -> Protocol {
    let service = Service::new(RegistryBuilder::default().build().unwrap(), Hooks::default());
    let framing = Framing::new(Kind::Length, accepts());
    Protocol::new(framing, WorkerContext::open(service, &Config::default()))
}

/// A call that has just been queued.
fn call(state: &mut State, now: Instant, ordered: bool) -> u64 {
    let number = state.next_call_number();
    let message = chunk(&[0; 10], state);
    state.enqueue(InFlight::queued(number, message, Whom::Known(caller(!ordered)), REQUEST, now), 0);
    number
}

#[test]
fn calls_begin_side_by_side_up_to_in_flight() {
    let (mut state, now) = fresh();
    for _ in 0..3 {
        assert!(state.may_begin(&BOUNDS));
        call(&mut state, now, false);
    }
    assert!(!state.may_begin(&BOUNDS));
    state.take_call(2).unwrap();
    assert!(state.may_begin(&BOUNDS));
}

#[test]
fn nothing_begins_beside_a_call_without_an_id() {
    let (mut state, now) = fresh();
    call(&mut state, now, false);
    let ordered = call(&mut state, now, true);
    assert!(!state.may_begin(&BOUNDS));
    state.take_call(ordered).unwrap();
    assert!(state.may_begin(&BOUNDS));
}

#[test]
fn nothing_begins_while_the_output_is_full() {
    let (mut state, _) = fresh();
    put_out(&mut state, &[0; 99]);
    assert!(state.may_begin(&BOUNDS));
    put_out(&mut state, &[0]);
    assert!(!state.may_begin(&BOUNDS));
    state.output.sent(1);
    assert!(state.may_begin(&BOUNDS));
}

#[test]
fn nothing_begins_once_it_is_to_end() {
    let (mut state, now) = fresh();
    for phase in [Phase::Finishing, Phase::Lingering { until: now }, Phase::Closed] {
        state.phase = phase;
        assert!(!state.may_begin(&BOUNDS), "{phase:?}");
    }
}

#[test]
fn a_call_is_taken_off_once_and_numbers_are_never_used_again() {
    let (mut state, now) = fresh();
    let first = call(&mut state, now, false);
    assert!(state.take_call(first).is_some());
    assert!(state.take_call(first).is_none());
    assert_ne!(call(&mut state, now, false), first);
    assert!(!state.is_quiet());
}

#[test]
fn epoll_is_asked_for_what_can_be_used() {
    /// Name, what is changed in a fresh state, what is asked for.
    type Case = (&'static str, fn(&mut State), Interest);
    let cases: [Case; 9] = [
        ("a fresh one listens", |_| {}, INPUT),
        ("a parked one does not", |state| state.paused = Some(Pause::Parked), NOTHING),
        ("nor a starved one", |state| state.paused = Some(Pause::Starved), NOTHING),
        ("nor one whose peer has said all", |state| state.input_ended = true, NOTHING),
        (
            "what waits is sent as soon as there is room, and input still comes",
            |state| put_out(state, b"answer"),
            Interest { input: true, output: true },
        ),
        (
            "what waits is sent to the half-closed",
            |state| {
                state.input_ended = true;
                put_out(state, b"answer");
            },
            OUTPUT,
        ),
        (
            "one that finishes only sends",
            |state| {
                state.phase = Phase::Finishing;
                put_out(state, b"answer");
            },
            OUTPUT,
        ),
        (
            "one that lingers only throws input away, whatever it was before",
            |state| {
                state.phase = Phase::Lingering { until: Instant::now() };
                state.input_ended = true;
                state.paused = Some(Pause::Parked);
                put_out(state, b"answer");
            },
            INPUT,
        ),
        ("a closed one is of no interest", |state| state.phase = Phase::Closed, NOTHING),
    ];
    for (name, change, interest) in cases {
        let (mut state, _) = fresh();
        change(&mut state);
        assert_eq!(state.interest(), interest, "{name}");
    }
}

#[test]
fn with_nothing_wanted_a_hang_up_is_reported_once() {
    assert_eq!(NOTHING.flags(), EpollFlags::EPOLLONESHOT);
    assert_eq!(INPUT.flags(), EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);
    assert_eq!(OUTPUT.flags(), EpollFlags::EPOLLOUT);
}

#[test]
fn a_connection_without_calls_is_idle_since_it_last_moved() {
    let (mut state, now) = fresh();
    assert_eq!(state.due(&BOUNDS), Some(now + IDLE));
    let later = now + Duration::from_secs(5);
    state.progressed(moment(later));
    assert_eq!(state.due(&BOUNDS), Some(later + IDLE));
    call(&mut state, now, false);
    assert_eq!(state.idle_due(&BOUNDS), None, "a call runs");
}

#[test]
fn a_queued_call_is_due_when_it_has_waited_and_a_running_one_at_its_deadline() {
    let (mut state, now) = fresh();
    call(&mut state, now, false);
    assert_eq!(state.due(&BOUNDS), Some(now + QUEUE_WAIT));
    state.calls[0].queued_since = None;
    assert_eq!(state.due(&BOUNDS), Some(now + REQUEST));
    let soon = now + Duration::from_millis(1);
    state.calls[0].queued_since = Some(now);
    state.calls[0].deadline = soon;
    assert_eq!(state.due(&BOUNDS), Some(soon), "the deadline comes before the end of its wait");
}

#[test]
fn the_earliest_moment_counts() {
    let (mut state, now) = fresh();
    call(&mut state, now + Duration::from_secs(3), false);
    call(&mut state, now, false);
    assert_eq!(state.due(&BOUNDS), Some(now + QUEUE_WAIT));
    state.message_since = Some(now);
    let bounds = Bounds { message: Duration::from_millis(1), ..BOUNDS };
    assert_eq!(state.due(&bounds), Some(now + bounds.message));
}

#[test]
fn a_message_is_slow_only_while_it_is_read() {
    let (mut state, now) = fresh();
    state.message_since = Some(now);
    assert_eq!(state.message_due(&BOUNDS), Some(now + MESSAGE));
    let ordered = call(&mut state, now, true);
    assert_eq!(state.message_due(&BOUNDS), None, "it has to wait for the call before it");
    state.take_call(ordered);
    state.input_ended = true;
    assert_eq!(state.message_due(&BOUNDS), None, "the rest will never come");
}

#[test]
fn a_timer_that_is_early_enough_is_seen_without_working_it_out() {
    let (mut state, now) = fresh();
    assert!(!state.timer_holds(&BOUNDS), "there is none");
    state.timer = state.due(&BOUNDS);
    assert!(state.timer_holds(&BOUNDS));
    state.progressed(moment(now + REQUEST));
    assert!(state.timer_holds(&BOUNDS), "it is looked at again when it is due, and not later than needed");
    state.timer = Some(now + REQUEST + IDLE + MESSAGE);
    assert!(!state.timer_holds(&BOUNDS), "after a call that might have taken longer than one may be idle");
    state.timer = Some(now);
    state.message_since = Some(now);
    assert!(!state.timer_holds(&BOUNDS), "a message arrives");
    state.message_since = None;
    let number = call(&mut state, now, false);
    assert!(!state.timer_holds(&BOUNDS), "a call runs");
    state.take_call(number);
    assert!(state.timer_holds(&BOUNDS));
}

#[test]
fn lingering_ends_at_its_time_and_a_closed_connection_has_none() {
    let (mut state, now) = fresh();
    call(&mut state, now, false);
    state.phase = Phase::Lingering { until: now + LINGER };
    assert_eq!(state.due(&BOUNDS), Some(now + LINGER));
    state.phase = Phase::Closed;
    assert_eq!(state.due(&BOUNDS), None);
}

#[test]
fn what_it_holds_is_buffers_and_queued_messages() {
    let (mut state, now) = fresh();
    assert_eq!(state.held(), 0);
    call(&mut state, now, false);
    assert_eq!(state.held(), 10);
    put_in(&mut state, &[0; 1_000]);
    put_out(&mut state, &[0; 500]);
    assert!(state.held() >= 1_510, "{}", state.held());
    state.input.take();
    state.output.sent(500);
    state.output.give_back(&mut None);
    state.take_call(1);
    assert_eq!(state.held(), 0);
}

/// The poller runs a call of the connection, which has arrived with another behind it.
fn inline(state: &mut State, now: Instant) -> u64 {
    let number = state.next_call_number();
    let call = InlineCall {
        number,
        method: MethodIndex(0),
        allowed: REQUEST,
        deadline: now + REQUEST,
        message: 0..8,
        caller: caller(true),
    };
    let chunk = chunk(b"{\"id\":7} {}", state);
    state.begun_to(&chunk, 0, 9);
    state.take_in_hand(&chunk, 9, call);
    number
}

#[test]
fn while_the_poller_runs_a_call_nothing_begins_or_ends() {
    let (mut state, now) = fresh();
    inline(&mut state, now);
    assert!(!state.may_begin(&BOUNDS));
    assert!(!state.is_quiet());
    assert_eq!(state.held(), 8);
}

#[test]
fn what_a_blocked_poller_had_in_hand_is_taken_over_once() {
    let (mut state, now) = fresh();
    let number = inline(&mut state, now);
    assert!(state.take_over(number + 1));
    assert!(state.inline_call().is_some_and(|call| call.number == number), "that was another one");
    for _ in 0..2 {
        assert!(state.take_over(number));
        assert!(state.inline_call().is_none());
        // What the record says has begun is not there once more: the space between the two has begun with the first.
        assert_eq!(state.input.waiting(), b"{}");
        assert_eq!(state.core.begun, 9);
        assert_eq!(state.calls.len(), 1);
    }
    assert!(state.may_begin(&BOUNDS), "it has an id, so others may run beside it");
    assert_eq!(state.due(&BOUNDS), Some(now + REQUEST), "its deadline holds");
    let call = state.take_call(number).unwrap();
    let Whom::Known(known) = call.caller else { panic!("it has been parsed") };
    assert_eq!(known.caller(&call.message).id.unwrap().get(), "7");
    assert_eq!(&*call.message, b"{\"id\":7}");
}

/// Its message came in pieces, so the time since the first was kept.
#[test]
fn a_call_that_is_taken_over_leaves_no_message_that_arrives_slowly() {
    let (mut state, now) = fresh();
    state.message_since = Some(now);
    let number = inline(&mut state, now);
    assert!(state.take_over(number));
    state.take_call(number);
    assert_eq!(state.message_due(&BOUNDS), None);
}

fn connection(socket: Socket) -> Arc<Connection> {
    Arc::new(of(socket, Key { index: 0, generation: 0 }))
}

#[test]
fn a_client_that_does_not_read_keeps_its_answers_waiting() {
    let (socket, mut client) = Socket::pair();
    let connection = connection(socket);
    let mut state = connection.lock();
    let answer = vec![7; 4 << 20];
    put_out(&mut state, &answer);
    state.flush(moment(Instant::now()), &mut None).unwrap();
    assert!(!state.output.is_empty(), "the test needs more than the socket takes");
    let mut read = vec![0; 64 << 10];
    let mut total = 0;
    while total < answer.len() {
        total += client.read(&mut read).unwrap();
        state.flush(moment(Instant::now()), &mut None).unwrap();
    }
    assert!(state.is_quiet());
    assert_eq!(state.held(), 0);
}

#[test]
fn to_a_client_that_is_gone_nothing_is_sent() {
    let (socket, client) = Socket::pair();
    let connection = connection(socket);
    drop(client);
    let mut state = connection.lock();
    put_out(&mut state, b"answer");
    assert!(state.flush(moment(Instant::now()), &mut None).is_err());
}

#[test]
fn lingering_tells_the_client_that_nothing_follows_and_forgets_its_input() {
    let (socket, mut client) = Socket::pair();
    let connection = connection(socket);
    let (mut state, now) = (connection.lock(), Instant::now());
    put_out(&mut state, b"answer");
    put_in(&mut state, b"more");
    state.flush(moment(Instant::now()), &mut None).unwrap();
    state.linger(moment(now));
    assert_eq!(state.phase, Phase::Lingering { until: now + LINGER });
    assert_eq!(state.held(), 0);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");
}
