//! The limit that everything is compared with: one thread, level-triggered epoll, and every byte that arrives goes back.
//!
//! It is as little as a correct server can do: two system calls for each read that finds something, and one that waits for
//! all of them together.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// More than any load here sends at once.
const BUFFER: usize = 64 * 1024;
const EVENTS: usize = 512;
const LISTENER: u64 = u64::MAX;

/// Serves for ever.
///
/// Sockets are blocking: one that epoll reports has something to read, and the load takes its answers before it sends
/// more than a socket's buffer holds.
pub fn serve(listener: TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let input = |source: &dyn AsFd, data| {
        epoll.add(source.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, data)).map_err(io::Error::from)
    };
    input(&listener, LISTENER)?;
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let ready = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..ready] {
            if event.data() == LISTENER {
                while let Some(stream) = accept(&listener)? {
                    let index = stream.as_raw_fd().unsigned_abs() as usize;
                    input(&stream, index as u64)?;
                    connections.resize_with(connections.len().max(index + 1), || None);
                    connections[index] = Some(stream);
                }
                continue;
            }
            let Ok(index) = usize::try_from(event.data()) else { continue };
            let Some(Some(stream)) = connections.get_mut(index) else { continue };
            if !echo(stream, &mut buffer) {
                connections[index] = None;
            }
        }
    }
}

fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nodelay(true)?;
            Ok(Some(stream))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// False when the connection is over.
fn echo(stream: &mut TcpStream, buffer: &mut [u8]) -> bool {
    match stream.read(buffer) {
        Ok(0) | Err(_) => false,
        Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
    }
}
