//! Socket pairs that keep message boundaries and carry descriptors: the ground that channels stand on.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
// nix gives out no descriptor of a message that did not arrive whole, and so nobody would ever close those that did.
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::descriptors;

/// Descriptors one message can carry: the kernel's `SCM_MAX_FD`.
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Not in `libc`. The number is Linux's own; of its architectures PA-RISC alone, for which there is no std, differs.
const F_SETSIG: libc::c_int = 10;

/// What a receive found.
#[derive(Debug)]
pub(crate) enum Packet {
    Message {
        length: usize,
        /// Those at the end are missing when this process has no room for them (EMFILE).
        descriptors: Vec<OwnedFd>,
        /// Its bytes did not fit.
        cut_short: bool,
    },
    /// Nothing has arrived.
    Nothing,
    /// No process holds the other end any more.
    Closed,
}

/// Two connected ends, non-blocking and closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message whole or not at all; `WouldBlock` when the other end's queue is full.
///
/// It reaches a channel or nobody. Where a handler has closed the channel and its number is another socket's by now, the kernel
/// refuses: a Unix stream takes no message with an address, TCP none with `MSG_FASTOPEN`, once it is connected. A
/// sequenced socket heeds neither. To look before each send would leave a moment in which the number can change hands.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let only_to_lines = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | only_to_lines;
    let nobody = UnixAddr::new_abstract(b"tine")?;
    loop {
        match sendmsg(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, Some(&nobody)) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(lost_by(errno.into())),
            Ok(_) => return Ok(()),
        }
    }
}

/// Has the kernel kill this process as soon as the other end of `fd` is closed or sends anything, until
/// [`live_on`]. For a process that runs code which may never return, so that it can't look for itself.
pub(crate) fn die_with_other_end(fd: BorrowedFd<'_>) -> io::Result<()> {
    let this_process = nix::unistd::getpid().as_raw();
    // SAFETY: F_SETOWN takes a number and touches no memory.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, this_process) })?;
    // SAFETY: as above. SIGKILL rather than the default SIGIO, which that code may have a handler for.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGKILL) })?;
    set_signalling(fd, true)?;
    // What happened before it was armed raises no signal.
    let mut wanted = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut wanted, PollTimeout::ZERO)?;
    if wanted.iter().any(|other_end| other_end.any() == Some(true)) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Takes [`die_with_other_end`] back.
pub(crate) fn live_on(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_signalling(fd, false)
}

fn set_signalling(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_ASYNC, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Receives one message into `buffer`.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(fd, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(Packet::Nothing),
            // Told once, when the other end was closed with messages unread, and before what it sent, which still
            // waits here behind the error.
            Err(rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(lost_by(error.into())),
            Ok(message) => break message,
        }
    };
    // All that the kernel has installed are owned here, also where it had no room for the others (MSG_CTRUNC).
    let mut descriptors = Vec::new();
    for control in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = control {
            descriptors.extend(received);
        }
    }
    // Zero bytes are the end of the connection: channels never send an empty message.
    if message.bytes == 0 && descriptors.is_empty() && !message.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Packet::Closed);
    }
    let cut_short = message.flags.contains(ReturnFlags::TRUNC);
    Ok(Packet::Message { length: message.bytes, descriptors, cut_short })
}

fn lost_by(error: io::Error) -> io::Error {
    descriptors::lost_by("the channel to the supervisor", &error);
    error
}

#[cfg(test)]
mod tests {
    use std::fs::{File, read_dir};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"hello", &[there.as_fd(), here.as_fd()]).unwrap();
        let mut buffer = [0; 64];
        let Packet::Message { length, descriptors, cut_short } = receive(there.as_fd(), &mut buffer).unwrap()
        else {
            panic!("expected a message");
        };
        assert_eq!((&buffer[..length], descriptors.len(), cut_short), (&b"hello"[..], 2, false));
        assert!(matches!(receive(there.as_fd(), &mut buffer).unwrap(), Packet::Nothing));
    }

    #[test]
    fn a_message_that_does_not_fit_says_so() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"longer than four", &[]).unwrap();
        assert!(matches!(
            receive(there.as_fd(), &mut [0; 4]).unwrap(),
            Packet::Message { cut_short: true, length: 4, .. }
        ));
    }

    #[test]
    fn the_other_end_closing_is_seen_after_what_it_sent() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"last words", &[]).unwrap();
        drop(here);
        let mut buffer = [0; 64];
        assert!(matches!(receive(there.as_fd(), &mut buffer).unwrap(), Packet::Message { length: 10, .. }));
        assert!(matches!(receive(there.as_fd(), &mut buffer).unwrap(), Packet::Closed));
    }

    #[test]
    fn what_the_other_end_sent_arrives_although_it_left_without_reading() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"never read", &[]).unwrap();
        send(there.as_fd(), b"last words", &[]).unwrap();
        drop(there);
        let mut buffer = [0; 64];
        assert!(matches!(receive(here.as_fd(), &mut buffer).unwrap(), Packet::Message { length: 10, .. }));
        assert!(matches!(receive(here.as_fd(), &mut buffer).unwrap(), Packet::Closed));
    }

    #[test]
    fn a_full_queue_is_an_error_not_a_wait() {
        let (here, _there) = pair().unwrap();
        let error = (0..100_000).find_map(|_| send(here.as_fd(), &[1; 4096], &[]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn descriptors_of_a_message_that_did_not_arrive_whole_are_owned_and_closed() {
        const INSIDE: &str = "TINE_TEST_CUT_CONTROL";
        if std::env::var_os(INSIDE).is_none() {
            // In a process of its own, because the limit is the whole process's.
            let this_test = "sys::seqpacket::tests::descriptors_of_a_message_that_did_not_arrive_whole_are_owned_and_closed";
            let mut run = Command::new(std::env::current_exe().unwrap());
            let run = run.args(["--exact", this_test]).env(INSIDE, "1").output().unwrap();
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
            return;
        }
        let open = || read_dir("/proc/self/fd").unwrap().count();
        let (here, there) = pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        // Behind these no number is taken by what the test was started with.
        let _gaps: Vec<File> = (0..32).map(|_| null.try_clone().unwrap()).collect();
        let before = open();
        let lowest_free = null.try_clone().unwrap().as_raw_fd();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        for room in [0_u64, 1, 3, 10] {
            let received = |bytes: &[u8]| {
                send(here.as_fd(), bytes, &[null.as_fd(); 10]).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, u64::try_from(lowest_free).unwrap() + room, hard).unwrap();
                let packet = receive(there.as_fd(), &mut [0; 64]).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
                let Packet::Message { descriptors, .. } = packet else { panic!("expected a message") };
                descriptors.len() as u64
            };
            assert_eq!((received(b"ten"), received(b"")), (room, room));
            assert_eq!(open(), before, "with room for {room}");
        }
    }

    #[test]
    fn a_message_reaches_no_other_kind_of_socket() {
        let (stream, mut other_end) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let null = File::open("/dev/null").unwrap();
        for socket in [stream.as_fd(), accepted.as_fd(), null.as_fd()] {
            for descriptors in [&[][..], &[null.as_fd()]] {
                let error = send(socket, b"between tine's processes", descriptors).unwrap_err();
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
            }
        }
        drop((stream, accepted));
        let read = |from: &mut dyn io::Read| from.read(&mut [0; 64]).unwrap();
        assert_eq!((read(&mut other_end), read(&mut client)), (0, 0));
    }
}
