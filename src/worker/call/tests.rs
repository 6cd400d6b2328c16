//! A worker dies between any two instructions: at each step of a call's way its arena is read as another worker would
//! read it, and every message must be input still, or a call, or answered; one of these, and once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::threadless::Threadless;
use crate::arena::Key;
use crate::arena::{ArenaReader, KeptArena, KeptConnection, Moved, Ran};
use crate::config::Config;
use crate::fail_points::looking;
use crate::sys::socket::Listener;
use crate::sys::tcp;
use crate::wire::{Accepts, ByteOrder, Kinds};
use crate::worker::connection::Connection;
use crate::worker::handover::leave::Going;
use crate::worker::threads::duty::Task;
use crate::worker::threads::poller_state::Todo;
use crate::worker::threads::worker_thread::WorkerThread;

/// A message that the client sends: what becomes of it, and how long its params are.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Run by the poller, right where it is read.
    Quick(usize),
    /// Run by the pool.
    Slow(usize),
    /// Answered at once.
    Unknown,
    /// Answered at once, without an id: a length of zero, or with HTTP a page behind an empty line.
    Empty,
    /// A batch of a slow call, an unknown one and a quick one, all with the same id.
    Batch(usize),
}

/// How messages are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Length,
    /// With a line break before every second value.
    Stream,
    /// Every second request comes in chunks.
    Http,
}

/// Calls in a batch.
const MEMBERS: usize = 3;

/// What happens next.
#[derive(Debug, Clone)]
enum Act {
    Send(Kind),
    /// The poller reads, when so much of what was sent has arrived, in 255ths.
    Read(u8),
    /// A thread of the pool takes the call of this number among those that wait.
    Run(u8),
    /// The worker lets the connection go, and has to go on with it itself.
    LetGo,
}

/// What the client has said, and who looks on.
struct Scene {
    way: Way,
    arena: OwnedFd,
    /// The supervisor's view of it.
    reader: ArenaReader,
    key: Key,
    /// Another descriptor of the worker's socket, as the supervisor has.
    socket: OwnedFd,
    client: RefCell<TcpStream>,
    /// All that the client has written, and will.
    said: RefCell<Vec<u8>>,
    /// Where each message ends, and its id.
    messages: RefCell<Vec<(usize, Option<u64>)>>,
    heard: RefCell<Vec<u8>>,
    looks: Cell<u64>,
}

impl Scene {
    /// What another worker would find in the arena, if this one died now.
    fn kept(&self) -> KeptConnection {
        let progress = tcp::progress(&self.socket).unwrap();
        let moved = Moved::Counted { taken: progress.taken, sent: progress.sent };
        KeptArena::open(&self.arena).unwrap().kept(self.key, moved).unwrap()
    }

    /// Reads the arena as another worker would, if this one died now.
    fn look(&self) {
        self.looks.set(self.looks.get() + 1);
        let kept = self.kept();
        let (taken, sent) = (kept.taken, kept.sent);
        let begun = usize::try_from(taken).unwrap() - kept.input.len();
        let said = self.said.borrow();
        assert_eq!(kept.input, said[begun..usize::try_from(taken).unwrap()], "input is what was said");

        let mut heard = self.heard.borrow_mut();
        let mut more = vec![0; usize::try_from(sent).unwrap() - heard.len()];
        self.client.borrow_mut().read_exact(&mut more).unwrap();
        heard.extend(more);
        let answers = [&heard[..], &kept.output[..]].concat();
        let mut fates: BTreeMap<Option<u64>, usize> = BTreeMap::new();
        let mut note = |id| *fates.entry(id).or_default() += 1;
        let mut rest = &answers[..];
        while !rest.is_empty() {
            let (answer, next) = self.way.split_answer(rest).expect("answers are published whole");
            note(id_of(answer));
            rest = next;
        }
        // The poller's own calls are named a moment shorter: the record of their answers is put off until others can see them.
        let by_the_pool = |ran: &&Ran| self.way.text_of(&ran.message).starts_with(br#"{"in":"slow""#);
        let lost = kept.ran.iter().filter(by_the_pool).count();
        assert!(
            lost <= self.reader.running(),
            "a call that its caller would be told is lost is among what runs"
        );
        for ran in &kept.ran {
            let id = id_of(self.way.text_of(&ran.message));
            note(id);
            let members: BTreeSet<u32> = ran.gathered.iter().map(|(member, _)| *member).collect();
            assert_eq!(members.len(), ran.gathered.len(), "no call of a batch is answered twice");
            assert!(ran.gathered.iter().all(|(_, answer)| id_of(answer) == id), "answers are whole");
        }
        for call in &kept.waited {
            let id = id_of(self.way.text_of(&call.message));
            note(id);
            assert!(call.gathered.iter().all(|(_, answer)| id_of(answer) == id), "answers are whole");
        }

        let mut expected: BTreeMap<Option<u64>, usize> = BTreeMap::new();
        for (_, id) in self.messages.borrow().iter().filter(|(end, _)| *end <= begun) {
            *expected.entry(*id).or_default() += 1;
        }
        assert_eq!(fates, expected, "every message that has begun is a call or answered, and once");
    }
}

fn id_of(message: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(message).unwrap();
    let Some(batch) = value.as_array() else { return value.get("id").and_then(serde_json::Value::as_u64) };
    let ids: BTreeSet<u64> = batch.iter().map(|member| member["id"].as_u64().unwrap()).collect();
    assert_eq!((batch.len(), ids.len()), (MEMBERS, 1), "a batch is answered whole");
    ids.first().copied()
}

impl Way {
    fn message(self, kind: Kind, id: u64) -> (Vec<u8>, Option<u64>) {
        let (method, params) = match kind {
            Kind::Quick(length) => ("echo", length),
            Kind::Slow(length) => ("slow", length),
            Kind::Unknown => ("nobody", 0),
            Kind::Empty if self == Self::Http => {
                // As the first bytes of all an empty line is a stream's white space.
                let line = if id == 0 { "" } else { "\r\n" };
                return (format!("{line}GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes(), None);
            }
            Kind::Empty if self == Self::Stream => return (b"\n []".to_vec(), None),
            Kind::Empty => return (vec![0; 4], None),
            Kind::Batch(length) => {
                let text = "x".repeat(length);
                let member = |method| {
                    format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":["{text}"],"id":{id}}}"#)
                };
                let members = ["slow", "nobody", "echo"].map(member);
                return (self.framed(&format!("[{}]", members.join(",")), id), Some(id));
            }
        };
        let body = format!(r#"{{"in":"{method}","params":"{}","id":{id}}}"#, "x".repeat(params));
        (self.framed(&body, id), Some(id))
    }

    fn framed(self, body: &str, id: u64) -> Vec<u8> {
        let head = "POST / HTTP/1.1\r\nHost: a\r\n";
        let length = body.len();
        match self {
            Self::Length => [&u32::try_from(length).unwrap().to_le_bytes(), body.as_bytes()].concat(),
            Self::Stream => format!("{}{body}", if id.is_multiple_of(2) { "\n" } else { "" }).into_bytes(),
            Self::Http if id.is_multiple_of(2) => {
                format!("{head}Content-Length: {length}\r\n\r\n{body}").into_bytes()
            }
            Self::Http => {
                let (first, second) = body.split_at(length / 2);
                let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
                let chunks = [chunk(first), chunk(second), chunk("")].concat();
                format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").into_bytes()
            }
        }
    }

    /// The first answer, and what comes behind it. None where it isn't whole.
    fn split_answer(self, answers: &[u8]) -> Option<(&[u8], &[u8])> {
        match self {
            Self::Length => {
                let (length, rest) = answers.split_first_chunk()?;
                rest.split_at_checked(u32::from_le_bytes(*length) as usize)
            }
            Self::Stream => answers.split_at_checked(1 + answers.iter().position(|byte| *byte == b'\n')?),
            Self::Http => {
                let text = self.text_of(answers);
                let head = std::str::from_utf8(&answers[..answers.len() - text.len()]).unwrap();
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
                text.split_at_checked(length.parse().unwrap())
            }
        }
    }

    /// A message as it lies in the arena, without what HTTP has before it.
    fn text_of(self, message: &[u8]) -> &[u8] {
        let head = match self {
            Self::Length | Self::Stream => 0,
            Self::Http => 4 + message.windows(4).position(|end| end == b"\r\n\r\n").expect("a head"),
        };
        &message[head..]
    }
}

/// The worker with a connection that the client has made, and who looks on from now on.
fn begin(way: Way) -> (WorkerThread, WorkerThread, Arc<Connection>, Rc<Scene>) {
    let Threadless { mut poller, pool, memory, .. } = Threadless::open(&Config::default()).unwrap();
    let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let client = TcpStream::connect(listener.local_tcp_address().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    let duplicate = socket.as_fd().try_clone_to_owned().unwrap();
    let accepts = Accepts { kinds: Kinds::default(), order: ByteOrder::Little, max_message: 1 << 20 };
    poller.accepted(socket, peer, accepts);
    let connection = poller.shared.all_connections().remove(0);
    // The supervisor has it, or no call would begin.
    poller.shared.has_new.store(false, Ordering::Relaxed);
    connection.kept.store(true, Ordering::Relaxed);
    let scene = Rc::new(Scene {
        way,
        reader: ArenaReader::open(&memory).unwrap(),
        arena: memory,
        key: connection.key,
        socket: duplicate,
        client: RefCell::new(client),
        said: RefCell::default(),
        messages: RefCell::default(),
        heard: RefCell::default(),
        looks: Cell::new(0),
    });
    let onlooker = Rc::clone(&scene);
    looking::at_each_step(move || onlooker.look());
    (poller, pool, connection, scene)
}

/// The most that is on its way at once: a client that writes more waits until it is read.
const ON_THE_WAY: usize = 100_000;

/// Waits until the worker's side has more bytes of the client's, up to so many.
fn arrive(scene: &Scene, written: &mut usize, upto: usize) {
    let taken = usize::try_from(tcp::progress(&scene.socket).unwrap().taken).unwrap();
    let upto = upto.min(taken + ON_THE_WAY);
    if upto > *written {
        scene.client.borrow_mut().write_all(&scene.said.borrow()[*written..upto]).unwrap();
        *written = upto;
        let mut poll = [nix::poll::PollFd::new(scene.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE).unwrap();
    }
}

fn play(way: Way, acts: &[Act]) -> u64 {
    let (mut poller, mut pool, connection, scene) = begin(way);
    let mut waiting = Vec::new();
    let mut written = 0;
    let mut go_on = |poller: &mut WorkerThread, pool: &mut WorkerThread, act: &Act| {
        match act {
            Act::Send(kind) => {
                let id = scene.messages.borrow().len() as u64;
                let (bytes, id) = way.message(*kind, id);
                scene.said.borrow_mut().extend(bytes);
                let end = scene.said.borrow().len();
                scene.messages.borrow_mut().push((end, id));
            }
            Act::Read(which) => {
                let said = scene.said.borrow().len();
                arrive(&scene, &mut written, said * usize::from(*which) / 255);
                poller.look_at_the_clock();
                poller.readable(&connection);
            }
            Act::Run(which) => {
                waiting.extend(std::iter::from_fn(|| pool.shared.next_task_now()));
                if !waiting.is_empty()
                    && let Task::Run(job) = waiting.remove(usize::from(*which) % waiting.len())
                {
                    pool.run(&job);
                }
            }
            Act::LetGo => {
                poller.let_connection_go(&connection);
                assert!(
                    matches!(connection.lock().going, Going::Offered { .. }),
                    "no thread is in a call of it"
                );
                scene.look();
                poller.stay(&connection);
            }
        }
        for todo in poller.shared.for_poller.take() {
            match todo {
                Todo::Turn(key) => poller.take_turn(key),
                other => panic!("{other:?} in a scene without it"),
            }
        }
        scene.look();
    };
    for act in acts {
        go_on(&mut poller, &mut pool, act);
    }
    // What is left comes to its end.
    for _ in 0..10_000 {
        go_on(&mut poller, &mut pool, &Act::Read(255));
        go_on(&mut poller, &mut pool, &Act::Run(0));
        let state = connection.lock();
        let begun = state.taken() == scene.said.borrow().len() as u64 && state.input.is_empty();
        if begun && state.is_quiet() {
            break;
        }
    }
    assert!(connection.lock().is_quiet(), "all messages are answered");
    waiting.extend(std::iter::from_fn(|| pool.shared.next_task_now()));
    for task in waiting {
        let Task::Run(job) = task else { continue };
        assert!(job.ticket.is_given_up(), "calls that somebody waits for are answered");
        pool.run(&job);
    }
    assert!(poller.shared.gate.is_idle(), "every place is given back");
    assert_eq!(poller.shared.buffers.held(), 0);
    let looks = scene.looks.get();
    looking::at_each_step(|| {});
    looks
}

fn act() -> impl Strategy<Value = Act> {
    let length = prop_oneof![16 => 0_usize..300, 1 => 15_000..20_000_usize, 1 => 60_000..100_000_usize];
    prop_oneof![
        2 => length.clone().prop_map(|length| Act::Send(Kind::Quick(length))),
        2 => length.clone().prop_map(|length| Act::Send(Kind::Slow(length))),
        1 => length.prop_map(|length| Act::Send(Kind::Batch(length))),
        1 => Just(Act::Send(Kind::Unknown)),
        1 => Just(Act::Send(Kind::Empty)),
        4 => any::<u8>().prop_map(Act::Read),
        2 => any::<u8>().prop_map(Act::Run),
        1 => Just(Act::LetGo),
    ]
}

const WAYS: [Way; 3] = [Way::Length, Way::Stream, Way::Http];

#[test]
fn a_worker_may_die_at_every_step_of_a_call_that_the_poller_runs() {
    let acts = [Act::Send(Kind::Quick(10)), Act::Send(Kind::Quick(10)), Act::Send(Kind::Unknown)];
    for way in WAYS {
        assert!(play(way, &acts) > 50, "steps are looked at");
    }
}

#[test]
fn a_worker_may_die_at_every_step_of_calls_that_the_pool_runs_in_any_order() {
    let slow: Vec<Act> = (0..10).map(|_| Act::Send(Kind::Slow(10))).collect();
    for way in WAYS {
        assert!(play(way, &slow) > 100, "steps are looked at");
    }
}

#[test]
fn a_worker_may_die_at_every_step_of_a_batch() {
    let batches: Vec<Act> = (0..4).map(|index| Act::Send(Kind::Batch(index * 200))).collect();
    for way in WAYS {
        assert!(play(way, &batches) > 100, "steps are looked at");
    }
}

#[test]
fn a_worker_may_die_at_every_step_of_letting_go_what_waits_and_taking_it_back() {
    let mut acts: Vec<Act> =
        [Kind::Slow(10), Kind::Batch(10), Kind::Slow(20_000), Kind::Batch(300)].map(Act::Send).into();
    acts.extend([Act::Read(255), Act::LetGo]);
    for _ in 0..8 {
        acts.extend([Act::Run(0), Act::LetGo, Act::Read(255)]);
    }
    for way in WAYS {
        assert!(play(way, &acts) > 100, "steps are looked at");
    }
}

#[test]
fn who_goes_on_knows_when_something_moved_last_and_since_when_a_message_arrives() {
    let (mut poller, _pool, connection, scene) = begin(Way::Length);
    let accepted_ns = poller.moment().ns;
    assert_eq!((scene.kept().moved_ns, scene.kept().message_ns), (accepted_ns, 0), "nothing has come yet");
    let mut messages = Vec::new();
    for id in 0..2 {
        let (bytes, id) = Way::Length.message(Kind::Unknown, id);
        scene.said.borrow_mut().extend(bytes);
        messages.push((scene.said.borrow().len(), id));
    }
    let (first, both) = (messages[0].0, messages[1].0);
    scene.messages.replace(messages);
    let mut written = 0;
    let mut read = |upto| {
        arrive(&scene, &mut written, upto);
        poller.look_at_the_clock();
        poller.readable(&connection);
        (poller.moment().ns, scene.kept())
    };
    let (began_ns, kept) = read(3);
    assert_eq!((kept.moved_ns, kept.message_ns), (began_ns, began_ns), "a part of the first");
    let (_, kept) = read(first - 1);
    assert_eq!(kept.message_ns, began_ns, "more of it");
    let (now_ns, kept) = read(first + 5);
    assert_eq!(
        (kept.moved_ns, kept.message_ns),
        (now_ns, now_ns),
        "the first is answered, a part of the second is there"
    );
    let (now_ns, kept) = read(both);
    assert_eq!((kept.moved_ns, kept.message_ns), (now_ns, 0), "both are answered");
    looking::at_each_step(|| {});
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn a_worker_may_die_at_every_step_of_whatever_clients_do(
        way in prop::sample::select(WAYS.to_vec()),
        acts in prop::collection::vec(act(), 1..25),
    ) {
        play(way, &acts);
    }
}
