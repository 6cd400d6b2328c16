//! Holds two readers to their contract: the one of children's messages, and the one of an exec hand-off. Whatever the bytes are, no
//! connection is lost or counted twice, and what was understood is written again in the same way.
//!
//! Fuzz targets come here through `internals`, and `cargo test` comes with the corpus. So a breach is an error and no panic.

use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::policy::escrow::{Escrow, Which};
use super::policy::state::{SupervisorState, WorkerId};
use super::reload::exec_handoff::ExecHandoff;
use super::reload::generation::state_settings;
use crate::channel::{FromTemplate, FromWorker, MOST_DESCRIPTORS, ToTemplate, ToWorker};

/// The workers that say what stands in the input, by turns.
const WORKERS: [WorkerId; 3] = [1, 2, 3];

/// Messages, one a line, as they come from workers by turns: each is read by whoever could receive it, and what is about
/// connections is done. How many lines are a message of somebody.
///
/// # Errors
///
/// A message is another one after it was written and read again, or a connection was lost or is there twice.
pub(crate) fn hold_messages(bytes: &[u8]) -> Result<usize, String> {
    let mut escrow: Escrow<Rc<()>, ()> = Escrow::default();
    for worker in WORKERS {
        escrow.begin(worker, ());
    }
    let descriptor = Rc::new(());
    let mut messages = 0;
    for (line, worker) in bytes.split(|byte| *byte == b'\n').zip(WORKERS.into_iter().cycle()) {
        let read = [
            comes_back::<ToTemplate>(line)?,
            comes_back::<FromTemplate>(line)?,
            comes_back::<ToWorker>(line)?,
            comes_back::<FromWorker>(line)?,
        ];
        messages += usize::from(read.contains(&true));
        if let Ok(message) = serde_json::from_slice(line) {
            follow(&mut escrow, worker, message, &descriptor);
            let (kept, held) = (escrow.len(), Rc::strong_count(&descriptor) - 1);
            if kept != held {
                return Err(format!("{kept} connections are kept, with {held} descriptors"));
            }
        }
    }
    for worker in WORKERS {
        escrow.ended(worker, "SIGKILL".to_owned());
    }
    escrow.give_up_waiting();
    match Rc::strong_count(&descriptor) - 1 {
        0 => Ok(messages),
        held => Err(format!("all workers have ended, and {held} descriptors are still there")),
    }
}

/// Does what a worker says of connections, and hands on what waits.
fn follow(escrow: &mut Escrow<Rc<()>, ()>, worker: WorkerId, message: FromWorker, descriptor: &Rc<()>) {
    match message {
        FromWorker::Keep { connections, .. } => {
            // As many as fit, which may be fewer than it names.
            let count = connections.len().min(MOST_DESCRIPTORS);
            escrow.keep(worker, connections, vec![Rc::clone(descriptor); count]);
        }
        FromWorker::Closed { connections, .. } => escrow.closed(worker, &connections),
        FromWorker::Offered { connections, .. } => {
            escrow.offered(worker, connections);
        }
        FromWorker::Adopted { from, results, .. } => {
            escrow.adopted(worker, from, results);
        }
        // The end of a worker is no message; one of these stands for it.
        FromWorker::BootFailed { reason } => {
            escrow.ended(worker, reason);
            escrow.begin(worker, ());
        }
        _ => {}
    }
    let adopters: Vec<(WorkerId, usize)> =
        WORKERS.into_iter().map(|worker| (worker, escrow.served_by(worker))).collect();
    for hand_off in escrow.plan(&adopters, Which::All) {
        escrow.sent(hand_off);
    }
}

/// What a program before has left. 1 where it is understood.
///
/// # Errors
///
/// It is another one after it was written and read again.
pub(crate) fn hold_exec_handoff(bytes: &[u8]) -> Result<usize, String> {
    if !comes_back::<ExecHandoff>(bytes)? {
        return Ok(0);
    }
    let handoff: ExecHandoff = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let (snapshot, config) = handoff.into_snapshot();
    // What it makes of it is for the tests of the state policy; here nothing in it does harm.
    let (state, _) = SupervisorState::go_on(snapshot, state_settings(&config));
    let _ = state.quiescent();
    Ok(1)
}

/// Whether these bytes are such a message.
fn comes_back<M: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<bool, String> {
    let Ok(read) = serde_json::from_slice::<M>(bytes) else { return Ok(false) };
    let text = |message: &M| serde_json::to_string(message).map_err(|error| error.to_string());
    let written = text(&read)?;
    let again = serde_json::from_str::<M>(&written)
        .map_err(|error| format!("{written} was written and can't be read: {error}"))?;
    let written_again = text(&again)?;
    if written == written_again { Ok(true) } else { Err(format!("{written}\nbecame {written_again}")) }
}
