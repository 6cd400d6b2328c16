//! The channel: how the supervisor and one other process talk.
//!
//! A channel carries a closed set of named messages, each with any descriptors that belong to it, over a
//! non-blocking sequenced socket pair. Both ends are the same program, but not always the same version of it:
//! unknown fields are ignored and an unknown message is an error that its receiver logs. Sending never waits;
//! what the socket does not take is queued, and the queue is bounded.

mod messages;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::seqpacket::{self, Packet};

pub(crate) use seqpacket::MOST_DESCRIPTORS;

pub(crate) use messages::{FromTemplate, FromWorker, Quarantined, Taken, ToTemplate, ToWorker, VERSION};

/// The version of the exec hand-off: what a supervisor passes to the program that takes its place. A template says which version
/// its program understands.
pub(crate) const HANDOFF_VERSION: u32 = 2;

/// The environment variable by which a process learns that it is a template, and which descriptor its channel is. A supervisor
/// that runs already starts this program with this name, so the name stays.
pub(crate) const TEMPLATE_VARIABLE: &str = "TINE_TEMPLATE_LINE";

/// The largest message, in bytes. The largest sent today lists a template's methods; a socket pair takes
/// about 200 KiB in one message.
const LARGEST: usize = 128 * 1024;

/// Messages that may wait for a receiver that does not read. One that is this far behind is not alive.
const MOST_QUEUED: usize = 1024;

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: OwnedFd,
    queued: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    buffer: Box<[u8]>,
}

/// What a receive found.
#[derive(Debug)]
pub(crate) enum Received<M> {
    /// Descriptors that this process has no room for are missing at the end.
    Message(M, Vec<OwnedFd>),
    /// Nothing has arrived.
    Nothing,
    /// Nobody holds the other end any more, and all it sent has been received.
    Closed,
}

impl Channel {
    /// A channel's two ends: ours, and the descriptor that another process will make its own.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (here, there) = seqpacket::pair()?;
        Ok((Self::from(here), there))
    }

    /// Sends `message` now or queues it; the descriptors travel with it and are closed here.
    ///
    /// # Errors
    ///
    /// The other end is gone, or is so far behind that the queue is full.
    pub(crate) fn send(&mut self, message: &impl Serialize, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > LARGEST {
            return Err(io::Error::other(format!(
                "expected a message of at most {LARGEST} bytes, found {}",
                bytes.len()
            )));
        }
        if self.queued.len() >= MOST_QUEUED {
            return Err(io::Error::other("the other end of the channel does not read"));
        }
        self.queued.push_back((bytes, descriptors));
        self.flush()
    }

    /// Sends what is queued, as far as the socket takes it.
    ///
    /// # Errors
    ///
    /// The kernel refused a message, which is lost: kept, it would be tried again at every wake-up.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, descriptors)) = self.queued.front() {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match seqpacket::send(self.fd.as_fd(), bytes, &borrowed) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                done => {
                    self.queued.pop_front();
                    done?;
                }
            }
        }
        Ok(())
    }

    /// Sends `message` at once or not at all, so that whoever sends it knows whether it is on its way, and still has the
    /// descriptors.
    ///
    /// # Errors
    ///
    /// `WouldBlock` while others wait to be sent or the socket takes no more; otherwise the kernel refused it.
    pub(crate) fn send_now(
        &self,
        message: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        if self.has_queued() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        seqpacket::send(self.fd.as_fd(), &serde_json::to_vec(message)?, descriptors)
    }

    /// Has the kernel kill this process as soon as the other end is closed or sends anything, until
    /// [`Self::live_on`].
    pub(crate) fn die_with_other_end(&self) -> io::Result<()> {
        seqpacket::die_with_other_end(self.fd.as_fd())
    }

    pub(crate) fn live_on(&self) -> io::Result<()> {
        seqpacket::live_on(self.fd.as_fd())
    }

    /// True while messages wait for the socket to take them.
    pub(crate) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Receives the next message.
    ///
    /// # Errors
    ///
    /// The message is not one of `M`, or was cut short. The channel can still be used.
    pub(crate) fn receive<M: DeserializeOwned>(&mut self) -> io::Result<Received<M>> {
        match seqpacket::receive(self.fd.as_fd(), &mut self.buffer)? {
            Packet::Nothing => Ok(Received::Nothing),
            Packet::Closed => Ok(Received::Closed),
            Packet::Message { cut_short: true, .. } => Err(io::Error::other("a message arrived cut short")),
            // Which descriptors are missing only the message says, so its receiver counts them.
            Packet::Message { length, descriptors, .. } => {
                let bytes = self.buffer.get(..length).unwrap_or_default();
                Ok(Received::Message(serde_json::from_slice(bytes)?, descriptors))
            }
        }
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, queued: VecDeque::new(), buffer: vec![0; LARGEST].into_boxed_slice() }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_order_past_a_full_socket() {
        let (mut here, there) = Channel::pair().unwrap();
        let mut there = Channel::from(there);
        let most = u32::try_from(MOST_QUEUED).unwrap();
        for worker in 0..most {
            here.send(&FromTemplate::ForkFailed { worker, reason: "x".repeat(500) }, vec![]).unwrap();
        }
        assert!(here.has_queued(), "the test needs more messages than the socket takes");
        for expected in 0..most {
            let Received::Message(FromTemplate::ForkFailed { worker, .. }, _) = there.receive().unwrap()
            else {
                panic!("expected message {expected}");
            };
            assert_eq!(worker, expected);
            here.flush().unwrap();
        }
        assert!(!here.has_queued());
    }

    #[test]
    fn a_receiver_that_never_reads_is_an_error_not_a_growing_queue() {
        let (mut here, _there) = Channel::pair().unwrap();
        let error = (0..1_000_000).find_map(|_| here.send(&ToWorker::Drain, vec![]).err()).unwrap();
        assert!(error.to_string().contains("does not read"), "{error}");
    }

    #[test]
    fn what_can_not_be_sent_is_not_kept() {
        let (mut here, there) = Channel::pair().unwrap();
        drop(there);
        assert!(here.send(&ToWorker::Drain, vec![]).is_err());
        assert!(!here.has_queued());
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_messages_are_errors_that_leave_the_line_usable() {
        let (here, there) = seqpacket::pair().unwrap();
        let mut there = Channel::from(there);
        for text in [
            r#"{"message":"drain","since":7}"#,
            r#"{"message":"dance"}"#,
            "not json",
            r#"{"message":"drain"}"#,
        ] {
            seqpacket::send(here.as_fd(), text.as_bytes(), &[]).unwrap();
        }
        assert!(matches!(there.receive().unwrap(), Received::Message(ToWorker::Drain, _)));
        assert!(there.receive::<ToWorker>().is_err());
        assert!(there.receive::<ToWorker>().is_err());
        assert!(matches!(there.receive().unwrap(), Received::Message(ToWorker::Drain, _)));
        drop(here);
        assert!(matches!(there.receive::<ToWorker>().unwrap(), Received::Closed));
    }
}
