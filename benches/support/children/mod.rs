//! Servers that a bench has in its own program: it starts itself again with the server's name as the only argument.
//!
//! Each prints the address that it listens on, and ends with the bench that started it.

mod echo;
mod threads;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use tine::BoxError;

use super::cores::{Cores, Place};
use super::peers::Peer;
use super::process::{Owned, await_line};

/// A server in this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// An epoll loop that echoes bytes: what the socket allows.
    Echo,
    /// A blocking thread for each connection that answers `ping`.
    ThreadPerConnection,
}

impl Own {
    const ALL: [Self; 2] = [Self::Echo, Self::ThreadPerConnection];

    fn argument(self) -> &'static str {
        match self {
            Self::Echo => "child:echo",
            Self::ThreadPerConnection => "child:thread-per-connection",
        }
    }

    /// Starts it in a process of its own.
    pub fn start(self, cores: &Cores, place: Place) -> Result<Peer, BoxError> {
        let mut command = Command::new(this_program()?);
        command.arg(self.argument()).stdout(Stdio::piped());
        let mut process = Owned::start(cores, place, &mut command)?;
        let output = process.child.stdout.take().ok_or("standard output is a pipe")?;
        let address = await_line(output, "127.0.0.1:")?;
        Ok(Peer { process, address })
    }
}

/// To be called first in `main`: where this process was started as one of these servers it serves until it is killed.
pub fn serve_if_child() -> Result<(), BoxError> {
    let argument = std::env::args().nth(1);
    let Some(own) = Own::ALL.into_iter().find(|own| Some(own.argument()) == argument.as_deref()) else {
        return Ok(());
    };
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    match own {
        Own::Echo => echo::serve(listener)?,
        Own::ThreadPerConnection => threads::serve(&listener)?,
    }
    Ok(())
}

/// This program, which may be a server too.
pub fn this_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}
