//! Adopting: going on with connections of a worker that has died or let them go.
//!
//! The message brings that worker's arena and a socket for each connection. Whatever the arena says is copied and checked
//! before anything is made of it (`arena::KeptArena`), and costs one connection where it makes no sense. Connections are
//! prepared, the supervisor is told, and only then a socket is touched.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::arena::{ArenaError, KeptArena, Key, Moved, Refusal};
use crate::channel::{FromWorker, Taken};
use crate::fail_points::{self, Kind};
use crate::sys::peer::PeerAddress;
use crate::sys::socket::Socket;
use crate::sys::tcp;
use crate::worker::connection;
use crate::worker::due::Due;
use crate::worker::handover::prepare::Prepared;
use crate::worker::threads::poller_state::{PollerState, Todo};
use crate::worker::threads::worker_thread::WorkerThread;

/// When it is tried again to tell a supervisor whose channel is full.
const TELL_AGAIN: Duration = Duration::from_millis(2);

/// Connections that are prepared, and the word about them that the channel has not taken yet.
#[derive(Debug)]
pub(in crate::worker) struct Adoption {
    from: u32,
    results: Vec<Taken>,
    prepared: Vec<Prepared>,
}

impl PollerState {
    /// Goes on with connections that were worker process `from`'s.
    pub(in crate::worker) fn adopt(
        &mut self,
        thread: &mut WorkerThread,
        from: u32,
        cause: Option<&str>,
        connections: &[Key],
        descriptors: Vec<OwnedFd>,
    ) {
        fail_points::step(Kind::Adopt);
        let mut descriptors = descriptors.into_iter();
        let arena = descriptors.next().map(KeptArena::open);
        let (mut results, mut prepared, mut lost) = (Vec::new(), Vec::new(), 0);
        let slot = thread.shared.info.slot();
        // Where descriptors are missing there are fewer results, and the supervisor sees which did not arrive.
        for (key, socket) in connections.iter().zip(descriptors) {
            let made = match &arena {
                Some(Ok(arena)) => prepare(thread, arena, *key, socket, cause.unwrap_or("ended")),
                // Others may have the memory that this worker lacks.
                Some(Err(error @ ArenaError::Memory(_))) => Err(Refused::NotNow(error.to_string())),
                Some(Err(error)) => Err(Refused::Lost(error.to_string())),
                None => continue,
            };
            fail_points::step(Kind::Adopt);
            match made {
                Ok(made) => {
                    results.push(Taken::As(made.key()));
                    prepared.push(made);
                }
                Err(refused) => {
                    let (Refused::Over(why) | Refused::Lost(why) | Refused::NotNow(why)) = &refused;
                    lost += usize::from(matches!(refused, Refused::Lost(_)));
                    let result = refused.result();
                    tracing::debug!(
                        slot,
                        from,
                        ?key,
                        ?result,
                        why,
                        "a connection of another worker is not gone on with"
                    );
                    results.push(result);
                }
            }
        }
        if lost > 0 {
            tracing::warn!(
                slot,
                from,
                connections = lost,
                "connections of a worker are closed: nothing could be made of what it left of them"
            );
        }
        // Beside these the supervisor would give others their places.
        self.keep_young(thread);
        self.adoptions.push_back(Adoption { from, results, prepared });
        self.tell_adoptions(thread);
    }

    /// Tells the supervisor, in order, and goes on with what it has been told of.
    pub(in crate::worker) fn tell_adoptions(&mut self, thread: &mut WorkerThread) {
        while let Some(adoption) = self.adoptions.pop_front() {
            fail_points::step(Kind::Adopt);
            let new = adoption.prepared.iter().filter(|prepared| !prepared.has_place()).count();
            let without_place = self.reserve.are_kept(thread.shared) + new;
            let (from, results) = (adoption.from, adoption.results.clone());
            match self.channel.send_now(&FromWorker::Adopted { from, results, without_place }, &[]) {
                Ok(()) => {
                    let brings_some = !adoption.prepared.is_empty();
                    for prepared in adoption.prepared {
                        fail_points::step(Kind::Adopt);
                        let has_place = prepared.has_place();
                        let key = thread.take_in(prepared);
                        if !has_place {
                            self.came_without_place(key, thread);
                        }
                        self.todo.push_back(Todo::TakeUp(key));
                    }
                    // Whether there was none before can't be seen: prepared ones have their places already. Said once
                    // they count, so that a look which follows an earlier word can't have missed them.
                    if brings_some {
                        self.is_wanted_again(thread.now());
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.adoptions.push_front(adoption);
                    thread.shared.remind(Instant::now() + TELL_AGAIN, Due::Adoptions);
                    // What is queued on the channel would otherwise stand before it for ever.
                    let _ = self.channel.flush();
                    break;
                }
                // The supervisor is gone, and will never have heard of them.
                Err(_) => adoption.prepared.into_iter().for_each(|prepared| thread.drop_prepared(prepared)),
            }
        }
    }
}

fn prepare(
    thread: &mut WorkerThread,
    arena: &KeptArena,
    key: Key,
    socket: OwnedFd,
    cause: &str,
) -> Result<Prepared, Refused> {
    let over = |error: std::io::Error| Refused::Over(error.to_string());
    let (socket, peer) = Socket::handed_over(socket).map_err(over)?;
    let moved = match peer {
        PeerAddress::Tcp(_) => {
            let progress = tcp::progress(&socket).map_err(over)?;
            if progress.is_over {
                return Err(Refused::Over("its peer is gone".into()));
            }
            Moved::Counted { taken: progress.taken, sent: progress.sent }
        }
        PeerAddress::Unix { .. } => Moved::Recorded,
    };
    let kept = arena.kept(key, moved).map_err(|refusal| match refusal {
        Refusal::NotThere => Refused::Over(refusal.to_string()),
        Refusal::Senseless(_) | Refusal::InTheMiddle => Refused::Lost(refusal.to_string()),
    })?;
    if !connection::are_sensible(kept.flags) {
        return Err(Refused::Lost("its framing makes no sense".into()));
    }
    thread.prepare(socket, peer, kept, cause).ok_or_else(|| Refused::NotNow("there is no room for it".into()))
}

/// Why a connection is not gone on with.
enum Refused {
    /// It has just ended: its client has gone, or its worker had closed it and died before it said so.
    Over(String),
    /// Its client has lost something.
    Lost(String),
    /// This worker lacks room or memory for it; another may have it.
    NotNow(String),
}

impl Refused {
    fn result(&self) -> Taken {
        match self {
            Self::Over(_) | Self::Lost(_) => Taken::Refused,
            Self::NotNow(_) => Taken::NotNow,
        }
    }
}
