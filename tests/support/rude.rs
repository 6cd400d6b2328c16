//! What impolite clients do: leave without a word, and look without waiting.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

use super::Wire;

impl Wire {
    /// Breaks the connection off: the service gets a reset, not an end.
    pub fn reset(self) {
        setsockopt(&self.stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })
            .expect("a socket option");
    }

    /// Sends no more, but goes on reading.
    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection stands");
    }

    /// True when nothing has arrived so far, without waiting for it.
    pub fn has_nothing(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket can be made non-blocking");
        let found = self.stream.peek(&mut [0; 1]);
        self.stream.set_nonblocking(false).expect("a socket can be made blocking");
        matches!(found, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends as much of `bytes` as fits without waiting; how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.stream.set_nonblocking(true).expect("a socket can be made non-blocking");
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the service reads or waits: {error}"),
            }
        }
        self.stream.set_nonblocking(false).expect("a socket can be made blocking");
        sent
    }

    /// Reads until the connection ends, by whatever end.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let _ = self.stream.read_to_end(&mut all);
        all
    }
}
