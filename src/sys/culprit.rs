//! Which thread takes this process down: handlers for the signals of a crash, and a hook for `exit`.
//!
//! A worker calls [`record`] once, and [`this_thread_is`] on each thread that runs handlers, before the first of them.
//! What is stored is a number in one word of shared memory; who reads it, and what is made of it, is not known here.
//!
//! **Who dies where.** The word is 0 until one compare-and-swap gives it its number. A process that dies before that, also
//! inside the handler, leaves 0: nobody is named. The first to get there stays: what crashes afterwards, as a destructor that
//! `exit` runs or another thread that trips over the same damage, is a consequence.
//!
//! **What stays as it was.** The handler puts the default back and lets the signal come again, so exit status and core are those
//! of the fault. A second thread that faults meanwhile finds the handler still there, and not the default: with
//! `SA_RESETHAND` it could end the process before the first has stored anything.
//!
//! **std's part.** std gives the main thread and each that it starts a stack of their own for signals, and has handlers for
//! SIGSEGV and SIGBUS that tell an overflow of the stack; a worker has reset those with all others (see
//! `process::reset_signals`). The stacks are still there, and are used here, so a thread that has overflowed its stack
//! can still run the handler; one that has none, as std made none where somebody else handled SIGSEGV before `main`, gets one.
//! What std's handlers tell, this one does, as a bit of the number.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::last_moment;

/// The signals of a crash. TRAP and SYS are what `abort` is on some processors, and a forbidden system call.
const CRASHES: [Signal; 7] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGABRT,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];

/// Stored for a thread that has not said which it is: one that a handler has started.
pub(crate) const STRANGER: u64 = u64::MAX;

/// Added to the number of a thread that has overflowed its stack.
pub(crate) const STACK_OVERFLOW: u64 = 1 << 32;

/// How far below a stack an access counts as an overflow of it: more than the guard, as functions may need much at once.
const BELOW_STACK: usize = 64 * 1024;

/// How far above its end, as the C library and the kernel differ about whose the guard is.
const ABOVE_END: usize = 4096;

/// Room for the handler and for the registers that the kernel saves; those alone are over 10 KiB on some processors.
const SIGNAL_STACK: usize = 64 * 1024;

struct Record {
    word: &'static AtomicU64,
    /// A process that a handler forks has this record too, and its end is its own.
    pid: libc::pid_t,
}

static RECORD: OnceLock<Record> = OnceLock::new();

thread_local! {
    /// What is stored when this thread is the culprit. Made at compile time and without a destructor, so that reading it is a
    /// plain load, in a signal handler too; it has been written before, so its memory is there even where a dynamic linker
    /// makes that at first use.
    static NUMBER: Cell<u64> = const { Cell::new(STRANGER) };
    /// The lowest address of this thread's stack; 0 where that is not known. As above.
    static STACK_END: Cell<usize> = const { Cell::new(0) };
}

/// Has the culprit's number stored in `word` when this process crashes or calls `exit`. Once, in a process that was just
/// forked and whose signals are at their defaults.
///
/// # Errors
///
/// The kernel or the C library refuses, or it was called before.
pub(crate) fn record(word: &'static AtomicU64) -> io::Result<()> {
    let pid = std::process::id().cast_signed();
    if RECORD.set(Record { word, pid }).is_err() {
        return Err(io::Error::other("culprits are recorded already"));
    }
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO;
    let handler = SigAction::new(SigHandler::SigAction(crashed), flags, SigSet::empty());
    for signal in CRASHES {
        // SAFETY: `crashed` is async-signal-safe, as is said there.
        unsafe { sigaction(signal, &handler) }?;
    }
    // SAFETY: `exiting` is a function and stays one. It runs on the thread that calls `exit`, and does no more than a
    // handler of signals may.
    if unsafe { libc::atexit(exiting) } != 0 {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    Ok(())
}

/// Says which number is stored when the calling thread is the culprit, and sees to it that the thread can run a handler when
/// its stack has overflowed. `number` is not 0 and below [`STACK_OVERFLOW`].
///
/// # Errors
///
/// The kernel refuses the stack.
pub(crate) fn this_thread_is(number: u64) -> io::Result<()> {
    debug_assert!(number != 0 && number < STACK_OVERFLOW, "{number} has a meaning of its own");
    NUMBER.set(number);
    STACK_END.set(end_of_this_stack().unwrap_or(0));
    let mut current = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: a null new stack changes nothing; `current` is writable and large enough for the one there is.
    Errno::result(unsafe { libc::sigaltstack(ptr::null(), &raw mut current) })?;
    if current.ss_flags & libc::SS_DISABLE == 0 {
        return Ok(());
    }
    // For the life of the process: the kernel would use it after this thread has given it back.
    let memory = vec![0_u8; SIGNAL_STACK].leak();
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: memory.len() };
    // SAFETY: the memory is writable, of that size, never given back and nobody else's.
    Errno::result(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) })?;
    Ok(())
}

/// The lowest address of the calling thread's stack.
fn end_of_this_stack() -> Option<usize> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut end, mut size) = (ptr::null_mut(), 0);
    // SAFETY: the thread is the calling one, so it lives; `attributes` is writable, and initialised where this returns 0.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: `attributes` was initialised just now; the other pointers are to locals.
    let failed = unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut end, &raw mut size) };
    // SAFETY: it was initialised above and is not used again.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    (failed == 0).then(|| end.addr())
}

/// Async-signal-safe: two loads.
fn is_at_the_end_of_the_stack(address: usize) -> bool {
    let end = STACK_END.try_with(Cell::get).unwrap_or(0);
    end != 0 && (end.saturating_sub(BELOW_STACK)..end.saturating_add(ABOVE_END)).contains(&address)
}

/// The record, unless this is another process that has it too. Async-signal-safe: loads and `getpid`.
fn own_record() -> Option<&'static Record> {
    // SAFETY: it takes nothing and can't fail.
    RECORD.get().filter(|record| unsafe { libc::getpid() } == record.pid)
}

/// Async-signal-safe: loads, one compare-and-swap, `getpid`.
fn store_number(extra: u64) {
    let Some(record) = own_record() else { return };
    let number = NUMBER.try_with(Cell::get).unwrap_or(STRANGER);
    let number = if number == STRANGER { number } else { number | extra };
    let _ = record.word.compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed);
}

/// Async-signal-safe, as its parts are.
fn let_poller_finish() {
    if own_record().is_some() {
        last_moment::wait_for_hand();
    }
}

extern "C" fn exiting() {
    store_number(0);
    let_poller_finish();
}

/// Async-signal-safe: beside [`store_number`] and [`let_poller_finish`] it calls `signal`, `raise` and `getpid` alone, and takes
/// no lock.
extern "C" fn crashed(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let saved = Errno::last_raw();
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO, and every signal sent by `kill` and
    // its kin carries a pid; for the others the bits are not looked at.
    let (code, sender) = unsafe { ((*info).si_code, (*info).si_pid()) };
    let is_a_fault = code > 0;
    // A signal from outside reaches some thread, whatever that does.
    // SAFETY: `getpid` takes nothing and can't fail.
    if is_a_fault || sender == unsafe { libc::getpid() } {
        let is_access = is_a_fault && matches!(signal, libc::SIGSEGV | libc::SIGBUS);
        // SAFETY: as above; an access that faults has an address.
        let is_overflow = is_access && is_at_the_end_of_the_stack(unsafe { (*info).si_addr() }.addr());
        store_number(if is_overflow { STACK_OVERFLOW } else { 0 });
    }
    let_poller_finish();
    // SAFETY: the default is no function, so no code of ours runs when the signal comes again.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // A fault comes again by itself when its instruction does; with the address in the core.
    let comes_again = matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE);
    if !(is_a_fault && comes_again) {
        // SAFETY: it takes a number. The signal waits until this handler has returned, and then ends the process.
        unsafe { libc::raise(signal) };
    }
    Errno::set_raw(saved);
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::hint::black_box;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{self, Command, ExitStatus, Stdio};
    use std::thread;

    use super::*;
    use crate::sys::memory::{self, ReadableMemory, WritableMemory};

    const HOW: &str = "TINE_TEST_CULPRIT";
    const MAIN: u64 = 7;
    const OTHER: u64 = 8;

    /// Has this test run again in a process that dies as `how` says; what it left behind.
    fn die(how: &str) -> (ExitStatus, u64) {
        let shared = memory::create_sealed(c"test", 4096).unwrap();
        let found = ReadableMemory::map(shared.as_fd(), 8).unwrap();
        let this_test = "sys::culprit::tests::whoever_takes_the_process_down_is_stored";
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", this_test, "--nocapture", "--test-threads=1"])
            .env(HOW, how)
            .stdin(shared)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        if how.starts_with("wait") {
            let mut ready = [0; 6];
            child.stderr.as_mut().unwrap().read_exact(&mut ready).unwrap();
            let signal = if how == "wait for segv" { Signal::SIGSEGV } else { Signal::SIGABRT };
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        }
        (child.wait().unwrap(), found.load(0).unwrap())
    }

    /// The process that dies.
    fn victim(how: &str) {
        let memory = Box::leak(Box::new(WritableMemory::map(io::stdin().as_fd(), 8).unwrap()));
        crate::sys::process::reset_signals();
        record(memory.word(0).unwrap()).unwrap();
        this_thread_is(MAIN).unwrap();
        let fall = || {
            black_box(recurse_for_ever(0));
        };
        match how {
            "segv" => write_to_nowhere(),
            "abort" => process::abort(),
            "exit" => process::exit(3),
            "raise" => drop(nix::sys::signal::raise(Signal::SIGFPE)),
            "stack" => fall(),
            "segv in another thread" => in_a_thread(OTHER, write_to_nowhere),
            "stack of another thread" => in_a_thread(OTHER, fall),
            "stack of a thread without a signal stack" => in_a_thread(OTHER, || {
                let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                // SAFETY: this takes the thread's stack for signals away, which nothing uses now.
                unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) };
                this_thread_is(OTHER).unwrap();
                black_box(recurse_for_ever(0));
            }),
            "exit in another thread" => in_a_thread(OTHER, || process::exit(4)),
            "segv in a stranger" => thread::spawn(write_to_nowhere).join().unwrap(),
            "_exit" => crate::sys::process::exit_now(5),
            "abort in a child" => abort_in_a_child(),
            "wait for segv" | "wait for abort" => {
                eprintln!("ready");
                loop {
                    thread::park();
                }
            }
            _ => unreachable!("{how}"),
        }
        process::exit(99)
    }

    fn in_a_thread(number: u64, work: impl FnOnce() + Send + 'static) {
        let body = move || {
            this_thread_is(number).unwrap();
            work();
        };
        thread::spawn(body).join().unwrap();
    }

    fn write_to_nowhere() {
        let nowhere = ptr::without_provenance_mut::<u64>(8);
        // SAFETY: the lowest page is never mapped, so this can only fault.
        unsafe { nowhere.write_volatile(1) }
    }

    #[allow(unconditional_recursion)]
    fn recurse_for_ever(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        recurse_for_ever(depth + 1) + frame[0]
    }

    /// Its end is not this process's, which then ends by `_exit`.
    fn abort_in_a_child() {
        // SAFETY: the child calls nothing but `abort`.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => process::abort(),
            nix::unistd::ForkResult::Parent { child } => {
                nix::sys::wait::waitpid(child, None).unwrap();
                crate::sys::process::exit_now(6);
            }
        }
    }

    #[test]
    fn whoever_takes_the_process_down_is_stored() {
        if let Ok(how) = env::var(HOW) {
            victim(&how);
        }
        let by_signal = |signal: i32| (None, Some(signal));
        let by_exit = |code: i32| (Some(code), None);
        let table = [
            ("segv", by_signal(libc::SIGSEGV), MAIN),
            ("abort", by_signal(libc::SIGABRT), MAIN),
            ("exit", by_exit(3), MAIN),
            ("raise", by_signal(libc::SIGFPE), MAIN),
            ("stack", by_signal(libc::SIGSEGV), MAIN | STACK_OVERFLOW),
            ("segv in another thread", by_signal(libc::SIGSEGV), OTHER),
            ("stack of another thread", by_signal(libc::SIGSEGV), OTHER | STACK_OVERFLOW),
            ("stack of a thread without a signal stack", by_signal(libc::SIGSEGV), OTHER | STACK_OVERFLOW),
            ("exit in another thread", by_exit(4), OTHER),
            ("segv in a stranger", by_signal(libc::SIGSEGV), STRANGER),
            // What no handler sees, what comes from outside, and what only a child has done names nobody.
            ("_exit", by_exit(5), 0),
            ("wait for segv", by_signal(libc::SIGSEGV), 0),
            ("wait for abort", by_signal(libc::SIGABRT), 0),
            ("abort in a child", by_exit(6), 0),
        ];
        for (how, ended, culprit) in table {
            let (status, found) = die(how);
            assert_eq!((status.code(), status.signal()), ended, "{how}");
            assert_eq!(found, culprit, "{how}");
        }
    }
}
