//! A worker's acceptor: who comes in, who is left to others, and who comes after whom.

use std::io::Read;
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};

use nix::libc;
use nix::sys::epoll::{EpollCreateFlags, EpollTimeout};
use nix::unistd::{Pid, gettid};

use super::*;
use crate::wire::{ByteOrder, Kinds};

const TOKEN: u64 = 7;
const FREE: AcceptPolicy = AcceptPolicy { leave_to_others: None, room: 100, has_siblings: false };
const BUSY: AcceptPolicy = AcceptPolicy { leave_to_others: Some(Duration::from_millis(20)), ..FREE };

/// A worker's acceptor, and what came in by it. Clients of a Unix socket wait as soon as they have connected.
struct Scene {
    epoll: Epoll,
    acceptor: Acceptor,
    address: SocketAddr,
    accepted: Vec<(Socket, PeerAddress)>,
}

impl Scene {
    fn new() -> Self {
        Self::for_users(None)
    }

    fn for_users(allow_uids: Option<Vec<u32>>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tine acceptor {} {}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { address, ..Self::at(Listener::Unix(listener), allow_uids) }
    }

    fn at(listener: Listener, allow_uids: Option<Vec<u32>>) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        let config = config::Listener {
            address: config::Address::Unix("/unused".into()),
            backlog: 16,
            prefix: ByteOrder::Little,
            framings: Kinds::default(),
            mode: None,
            owner: None,
            allow_uids,
        };
        let mut acceptor = Acceptor::new(listener, &config, TOKEN, 64);
        acceptor.open(&epoll).unwrap();
        let address = SocketAddr::from_abstract_name("unused").unwrap();
        Self { epoll, acceptor, address, accepted: Vec::new() }
    }

    fn clients(&self, count: usize) -> Vec<UnixStream> {
        (0..count).map(|_| UnixStream::connect_addr(&self.address).unwrap()).collect()
    }

    /// The same socket, as another worker has it, or a child that a handler has forked.
    fn same_listener(&self) -> Listener {
        Listener::inherited(self.acceptor.listener.as_fd().try_clone_to_owned().unwrap()).unwrap()
    }

    fn visit(&mut self, standing: AcceptPolicy) -> Visit {
        match self.acceptor.visit(&self.epoll, standing, |socket, peer, _| self.accepted.push((socket, peer)))
        {
            Visit::GivesWay => self.acceptor.give_way(&self.epoll),
            visit => visit,
        }
    }

    /// Whether the worker would be woken for somebody at the listener.
    fn is_called(&self) -> bool {
        let mut events = [EpollEvent::empty()];
        let reported = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap();
        reported == 1 && events[0].data() == TOKEN
    }
}

#[test]
fn a_free_worker_takes_all_that_wait_and_keeps_the_door_open() {
    let mut scene = Scene::new();
    assert!(!scene.is_called());
    let _clients = scene.clients(3);
    assert!(scene.is_called());
    assert_eq!(scene.visit(FREE), Visit::Done);
    assert_eq!(scene.accepted.len(), 3);
    assert_eq!(scene.acceptor.shut(), None);
    assert!(!scene.is_called());
}

#[test]
fn more_than_a_batch_is_reported_again() {
    let mut scene = Scene::new();
    let _clients = scene.clients(BATCH + 1);
    assert_eq!(scene.visit(FREE), Visit::Done);
    assert_eq!(scene.accepted.len(), BATCH);
    assert!(scene.is_called());
    scene.visit(FREE);
    assert_eq!(scene.accepted.len(), BATCH + 1);
}

#[test]
fn beside_others_it_takes_one_at_a_time() {
    let mut scene = Scene::new();
    let _clients = scene.clients(3);
    for taken in 1..=3 {
        assert!(scene.is_called(), "what waits is reported by the entry that was added anew");
        assert_eq!(scene.visit(AcceptPolicy { has_siblings: true, ..FREE }), Visit::Done);
        assert_eq!(scene.accepted.len(), taken);
        assert_eq!(scene.acceptor.shut(), None);
    }
    assert!(!scene.is_called());
}

#[test]
fn a_busy_worker_leaves_who_waits_to_others_and_takes_them_when_it_looks_again() {
    let mut scene = Scene::new();
    let _clients = scene.clients(2);
    assert_eq!(scene.visit(BUSY), Visit::Shut { why: Shut::NoThread, took_any: false });
    assert!(scene.accepted.is_empty());
    assert!(!scene.is_called(), "it must not be woken in place of another");
    assert!(Shut::NoThread.look_again().is_some(), "nobody else may have a free thread");
    scene.acceptor.open(&scene.epoll).unwrap();
    assert!(scene.is_called());
    assert_eq!(scene.visit(FREE), Visit::Done);
    assert_eq!(scene.accepted.len(), 2);
}

#[test]
fn a_worker_takes_what_it_has_room_for_and_no_more() {
    let mut scene = Scene::new();
    let _clients = scene.clients(3);
    let full = Visit::Shut { why: Shut::NoRoom, took_any: true };
    assert_eq!(scene.visit(AcceptPolicy { room: 2, ..FREE }), full);
    assert_eq!(scene.accepted.len(), 2);
    assert!(!scene.is_called());
    scene.acceptor.open(&scene.epoll).unwrap();
    let nothing = Visit::Shut { why: Shut::NoRoom, took_any: false };
    assert_eq!(scene.visit(AcceptPolicy { room: 0, ..FREE }), nothing, "others must hear of it");
    scene.acceptor.open(&scene.epoll).unwrap();
    assert_eq!(scene.visit(FREE), Visit::Done);
    assert_eq!(scene.accepted.len(), 3);
}

#[test]
fn a_call_that_came_before_the_door_was_shut_is_ignored() {
    let mut scene = Scene::new();
    let _clients = scene.clients(1);
    scene.visit(BUSY);
    assert_eq!(scene.visit(FREE), Visit::Done);
    assert!(scene.accepted.is_empty());
    assert_eq!(scene.acceptor.shut(), Some(Shut::NoThread));
}

#[test]
fn opening_an_open_door_changes_nothing() {
    let mut scene = Scene::new();
    scene.acceptor.open(&scene.epoll).unwrap();
    let _clients = scene.clients(1);
    assert!(scene.is_called());
}

#[test]
fn users_that_are_not_allowed_are_turned_away_and_the_others_served() {
    let me = nix::unistd::getuid().as_raw();
    let mut mine = Scene::for_users(Some(vec![me, me + 1]));
    let _clients = mine.clients(1);
    mine.visit(FREE);
    let pid = i32::try_from(std::process::id()).unwrap();
    assert_eq!(mine.accepted[0].1, PeerAddress::Unix { uid: me, pid });

    let mut others = Scene::for_users(Some(vec![me + 1]));
    let mut clients = others.clients(2);
    assert_eq!(others.visit(FREE), Visit::Done);
    assert!(others.accepted.is_empty());
    for client in &mut clients {
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "closed");
    }
}

#[test]
fn closing_takes_who_waits_even_at_a_shut_door_and_nobody_after() {
    for standing in [None, Some(BUSY)] {
        let mut scene = Scene::new();
        let _clients = scene.clients(BATCH + 1);
        if let Some(standing) = standing {
            scene.visit(standing);
        }
        let mut accepted = 0;
        scene.acceptor.close(&scene.epoll, false, |_, _, _| accepted += 1);
        assert_eq!(accepted, BATCH + 1);
        assert!(UnixStream::connect_addr(&scene.address).is_err());
    }
}

#[test]
fn one_that_is_gone_takes_who_comes_until_nobody_waits_and_is_closed_for_whoever_has_it() {
    let scene = Scene::new();
    let others = scene.same_listener();
    let mut clients = scene.clients(BATCH + 1);
    let (mut accepted, address) = (0, scene.address);
    scene.acceptor.close(&scene.epoll, true, |_, _, _| {
        accepted += 1;
        // While those before it are taken in.
        if accepted <= 2 {
            clients.push(UnixStream::connect_addr(&address).unwrap());
        }
    });
    assert_eq!((accepted, clients.len()), (BATCH + 3, BATCH + 3));
    assert!(others.is_shut_down());
    let refused = UnixStream::connect_addr(&address).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "nobody would accept it");
}

#[test]
fn one_that_this_worker_alone_leaves_goes_on_in_the_others() {
    let scene = Scene::new();
    let others = scene.same_listener();
    scene.acceptor.close(&scene.epoll, false, |_, _, _| panic!("nobody waits"));
    let _client = UnixStream::connect_addr(&scene.address).unwrap();
    assert!(!others.is_shut_down() && others.accept().is_ok());
}

/// Ends the workers of a test that wait at the listener, also where the test fails.
struct Ends(Listener);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

/// Waits as a poller does, and says whenever it has taken somebody in, until the listener is shut down.
fn work_beside_others(mut scene: Scene, number: usize, said: Sender<usize>) -> Pid {
    let (say_id, id) = channel();
    std::thread::spawn(move || {
        say_id.send(gettid()).unwrap();
        while !scene.acceptor.listener.is_shut_down() {
            scene.epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE).unwrap();
            scene.visit(AcceptPolicy { has_siblings: true, ..FREE });
            if scene.accepted.pop().is_some() && said.send(number).is_err() {
                return;
            }
        }
    });
    id.recv().unwrap()
}

/// Waits until a thread of this process sleeps in epoll.
fn sleeps(thread: Pid) {
    let path = format!("/proc/self/task/{thread}/syscall");
    let waits = [
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        libc::SYS_epoll_pwait,
    ];
    let in_call = |text: &str| text.split(' ').next().and_then(|number| number.parse().ok());
    while !in_call(&std::fs::read_to_string(&path).unwrap()).is_some_and(|call| waits.contains(&call)) {
        std::thread::yield_now();
    }
}

/// The kernel wakes the first of those that sleep at a listener, so each of these has a thread.
#[test]
fn one_that_has_accepted_goes_to_the_end_of_the_line() {
    let scene = Scene::new();
    let (address, (say, said)) = (scene.address.clone(), channel());
    let _ends = Ends(scene.same_listener());
    let other = Scene::at(scene.same_listener(), None);
    let threads = [scene, other].into_iter().zip(0..).map(|(scene, number)| {
        let thread = work_beside_others(scene, number, say.clone());
        sleeps(thread);
        thread
    });
    let threads: Vec<Pid> = threads.collect();
    drop(say);
    let mut clients = Vec::new();
    for accepts in [0, 1, 0, 1, 0, 1] {
        threads.iter().copied().for_each(sleeps);
        clients.push(UnixStream::connect_addr(&address).unwrap());
        let who = said.recv_timeout(Duration::from_secs(60));
        assert_eq!(who, Ok(accepts), "after {} before it", clients.len() - 1);
    }
}

#[test]
fn a_tcp_client_comes_in_with_its_address() {
    let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
    let address = listener.local_tcp_address().unwrap();
    let mut scene = Scene::at(listener, None);
    let client = TcpStream::connect(address).unwrap();
    scene.epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE).unwrap();
    scene.visit(FREE);
    assert_eq!(scene.accepted[0].1, PeerAddress::Tcp(client.local_addr().unwrap()));
}
