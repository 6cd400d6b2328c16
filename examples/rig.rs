//! The server that tests and benches use: methods that are quick, slow, hungry or deadly on request.
//!
//! Each takes an object: `sleep {"ms": 50}`, `spin {"us": 1000}`, `mix {"ms": 5, "us": 500}`. Beside them are the built-in
//! `ping`, `echo`, `tine.methods`, `tine.worker`.
//!
//! Environment variables make it fail before it serves, or after: `RIG_PRELOAD`, `RIG_STATE`, `RIG_WORKER_START` and
//! `RIG_WORKER_STOP` are each `fail`, `panic`, `segv`, `exit`, `hang`, `hang at exit`, `thread` (leaves a thread behind) or `later` (exits
//! soon after). A value that begins with `@` names a file that has such a word, or isn't there: that can change while it runs.

#![allow(clippy::unnecessary_wraps)] // handlers have one shape, whether they can fail or not

#[path = "support/meddle.rs"]
mod meddle;

use std::collections::HashMap;
use std::hint::black_box;
use std::io::Write;
use std::os::fd::{BorrowedFd, RawFd};
use std::process::{self, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use nix::sys::socket::{getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use tine::internals::{FailPoint, die_after};
use tine::{BoxError, Call, Error, Server};

#[path = "support/traps.rs"]
mod traps;

fn main() -> ExitCode {
    traps::set_panic_hook("main");
    rig().run()
}

fn rig() -> Server {
    Server::new()
        .preload(|| {
            traps::set_panic_hook("preload");
            misbehave("RIG_PRELOAD")
        })
        .on_worker_start(|_worker| misbehave("RIG_WORKER_START"))
        .on_worker_stop(|_worker| {
            // Nobody is left to be told of a failure.
            let _ = misbehave("RIG_WORKER_STOP");
        })
        .state(|_worker| {
            traps::set_panic_hook("state");
            traps::set_panic_hook("alone");
            Ok(FlakyCalls::default())
        })
        .state(|_worker| misbehave("RIG_STATE").map(|()| Counts::default()))
        // Seeded after the fork, or all workers would draw the same numbers.
        .state(|_worker| Ok(Mutex::new(StdRng::try_from_rng(&mut SysRng)?)))
        .method("sleep", sleep)
        .method("spin", spin)
        .method("mix", mix)
        .method("flaky", flaky)
        .method("crash", crash)
        .method("scribble", scribble)
        .method("deafen", meddle::deafen)
        .method("meddle", meddle::meddle)
        .method("open", meddle::open)
        .method("selectable", meddle::selectable)
        .method("tell", meddle::tell)
        .method("limits", meddle::limits)
        .method("trip", trip)
        .method("panic", panic)
        .method("fail", fail)
        .method("trap", traps::trap)
        .method("started_as", started_as)
        .method("count", count)
        .method("hang", hang)
        .method("leak", leak)
        .method("blob", blob)
        .method("rand", random)
        .method("arm", arm)
        .method("orphan", orphan)
        .method("shell", shell)
        .method("fork", fork)
        .method("hush", hush)
}

fn misbehave(variable: &str) -> Result<(), BoxError> {
    let word = std::env::var(variable).unwrap_or_default();
    let word = match word.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).unwrap_or_default(),
        None => word,
    };
    match word.as_str() {
        "fail" => Err(format!("{variable} asked for it").into()),
        "panic" => panic!("{variable} asked for it"),
        "segv" => {
            write_to_nowhere();
            Ok(())
        }
        "exit" => process::exit(7),
        "hang" => {
            // In one piece, or lines of other processes could get in between.
            std::io::stderr().write_all(format!("{variable} hangs {}\n", process::id()).as_bytes())?;
            loop {
                thread::park();
            }
        }
        "hang at exit" => {
            hang_at_exit();
            Ok(())
        }
        "later" => {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(100));
                process::exit(7);
            });
            Ok(())
        }
        "thread" => {
            // A thread gives itself its name when it first runs.
            let (runs, running) = std::sync::mpsc::channel();
            let body = move || {
                let _ = runs.send(());
                loop {
                    thread::park();
                }
            };
            thread::Builder::new().name("left behind".into()).spawn(body)?;
            Ok(running.recv()?)
        }
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
struct Sleep {
    ms: u64,
}

/// Waits, as for a database.
fn sleep(_call: &Call<'_>, Sleep { ms }: Sleep) -> Result<(), Error> {
    thread::sleep(Duration::from_millis(ms));
    Ok(())
}

#[derive(Deserialize)]
struct Spin {
    us: u64,
}

/// Burns CPU. The thread's own time is counted, not the clock's: work doesn't shrink when others have the core.
fn spin(_call: &Call<'_>, Spin { us }: Spin) -> Result<(), Error> {
    let end = cpu_time()? + Duration::from_micros(us);
    while cpu_time()? < end {
        for turn in 0..100 {
            black_box(turn);
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Mix {
    ms: u64,
    us: u64,
}

/// Waits, then burns CPU, as handlers do that ask a database and work on what it says.
fn mix(call: &Call<'_>, Mix { ms, us }: Mix) -> Result<(), Error> {
    sleep(call, Sleep { ms })?;
    spin(call, Spin { us })
}

fn cpu_time() -> Result<Duration, Error> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).map_err(Error::internal)
}

#[derive(Deserialize)]
struct Flaky {
    every: u64,
    ms: u64,
}

#[derive(Default)]
struct FlakyCalls(AtomicU64);

/// Quick, but each `every`-th call in this worker waits. Answers whether this one did.
fn flaky(call: &Call<'_>, Flaky { every, ms }: Flaky) -> Result<bool, Error> {
    if every == 0 {
        return Err(Error::invalid_params("`every` must be at least 1"));
    }
    let nth = call.state::<FlakyCalls>().0.fetch_add(1, Ordering::Relaxed) + 1;
    let slow = nth.is_multiple_of(every);
    if slow {
        thread::sleep(Duration::from_millis(ms));
    }
    Ok(slow)
}

#[derive(Deserialize)]
struct Crash {
    how: How,
    /// For `exit`.
    #[serde(default)]
    code: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Segv,
    Abort,
    Exit,
    Stack,
    Oom,
    /// Without a word to anybody who would like to hear of it.
    Vanish,
    /// All its threads, until somebody has it go on or kills it.
    Stop,
    /// It doesn't, this time.
    None,
}

/// Takes the worker down, in the ways that handlers do; or not.
fn crash(_call: &Call<'_>, Crash { how, code }: Crash) -> Result<(), Error> {
    match how {
        How::Segv => write_to_nowhere(),
        How::Abort => process::abort(),
        How::Exit => process::exit(code),
        How::Stack => {
            black_box(recurse_for_ever(0));
        }
        // What the kernel does to a process when memory runs out, without the risk that it picks another one.
        How::Oom => raise(Signal::SIGKILL).map_err(Error::internal)?,
        How::Vanish => vanish(code),
        How::Stop => raise(Signal::SIGSTOP).map_err(Error::internal)?,
        How::None => {}
    }
    Ok(())
}

/// Ends the process without its exit handlers.
#[allow(unsafe_code)]
fn vanish(code: i32) {
    // SAFETY: it returns to nobody, so nothing of this process can be misused after it.
    unsafe { nix::libc::_exit(code) }
}

/// Whoever exits never comes to an end, as where a library flushes something to somebody who does not answer.
#[allow(unsafe_code)]
fn hang_at_exit() {
    extern "C" fn park() {
        let _ = std::io::stderr().write_all(b"the exit hangs\n");
        loop {
            thread::park();
        }
    }
    // SAFETY: `park` is a function and stays one.
    unsafe { nix::libc::atexit(park) };
}

/// A real access to memory that isn't there, as in a C library with a bug.
#[allow(unsafe_code)]
fn write_to_nowhere() {
    let nowhere = std::ptr::without_provenance_mut::<u64>(8);
    // SAFETY: the lowest page is never mapped (`vm.mmap_min_addr`), so this can only fault and change no memory; `volatile`
    // keeps the access in the program.
    unsafe { nowhere.write_volatile(1) }
}

#[allow(unconditional_recursion)]
fn recurse_for_ever(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse_for_ever(depth + 1) + frame[0]
}

/// Params or a result of which one is only as good as what its name says: its type has code of its own, as types do that check what
/// they hold.
struct Tripping(String);

impl<'de> Deserialize<'de> for Tripping {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Plain {
            at: String,
        }
        let Plain { at } = Plain::deserialize(from)?;
        stumble(&at, "params");
        Ok(Self(at))
    }
}

impl serde::Serialize for Tripping {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        stumble(&self.0, "result");
        to.serialize_str(&self.0)
    }
}

/// `crash in params` crashes there, `hang in result` never comes back from there.
fn stumble(how: &str, here: &str) {
    match how.split_once(" in ") {
        Some(("crash", there)) if there == here => write_to_nowhere(),
        Some(("hang", there)) if there == here => loop {
            thread::park();
        },
        _ => {}
    }
}

/// Answers how it was asked to go wrong `at` reading its params, or writing its result.
fn trip(_call: &Call<'_>, at: Tripping) -> Result<Tripping, Error> {
    Ok(at)
}

/// Overwrites all that this worker shares with the supervisor by noise of this seed, and takes the worker down: what a
/// wild pointer could do at worst.
#[allow(unsafe_code)]
fn scribble(_call: &Call<'_>, Seed { seed }: Seed) -> Result<(), Error> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(Error::internal)?;
    // A plain one: eight million numbers of a good generator take a program that was not optimised many seconds.
    let mut noise = seed;
    for line in maps.lines().filter(|line| line.contains("memfd:tine-arena") && line.contains(" rw-s ")) {
        let place = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).map_err(Error::internal);
        let (from, to) = place.ok_or_else(|| Error::internal("expected a range"))?;
        let (from, to) = (number(from)?, number(to)?);
        // Most of it is a sparse file that nobody reads; the rest is enough for every record.
        for at in (from..to.min(from + SCRIBBLED)).step_by(8) {
            let word = std::ptr::with_exposed_provenance_mut::<u64>(at);
            // SAFETY: none is meant: this is what a broken handler does. The address is aligned and mapped for writing,
            // as the line of `maps` says; what other threads make of the noise ends with the process, below.
            unsafe { word.write_volatile(noise ^ noise >> 29) }
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        }
    }
    raise(Signal::SIGKILL).map_err(Error::internal)
}

/// Bytes that `scribble` overwrites at the beginning of a mapping.
const SCRIBBLED: usize = 64 << 20;

#[derive(Deserialize)]
struct Seed {
    seed: u64,
}

#[derive(Deserialize)]
struct Panic {
    message: String,
}

/// Panics; the message is for the log.
fn panic(_call: &Call<'_>, Panic { message }: Panic) -> Result<(), Error> {
    panic!("{message}")
}

#[derive(Deserialize)]
struct Fail {
    code: Option<i32>,
    message: String,
    data: Option<serde_json::Value>,
    status: Option<u16>,
}

/// Answers an error of its own; without a code an internal one, whose message is for the log.
fn fail(_call: &Call<'_>, Fail { code, message, data, status }: Fail) -> Result<(), Error> {
    let error = match code {
        Some(code) => Error::new(code, message),
        None => Error::internal(message),
    };
    let error = match data {
        Some(data) => error.with_data(data),
        None => error,
    };
    Err(match status {
        Some(status) => error.with_status(status),
        None => error,
    })
}

#[derive(Deserialize)]
struct Count {
    of: String,
    add: u64,
}

#[derive(Default)]
struct Counts(Mutex<HashMap<String, u64>>);

/// Adds to this worker's count of that name and answers what it is then: shows that calls ran which nobody answers.
fn count(call: &Call<'_>, Count { of, add }: Count) -> Result<u64, Error> {
    let counts = &call.state::<Counts>().0;
    let mut counts = counts.lock().map_err(|_| Error::internal("the counts' lock is poisoned"))?;
    let count = counts.entry(of).or_default();
    *count = count.saturating_add(add);
    Ok(*count)
}

/// Answers the arguments that it finds itself started with, and one variable of its environment.
fn started_as(_call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<(Vec<String>, String), Error> {
    Ok((std::env::args().skip(1).collect(), std::env::var("RIG_MARK").unwrap_or_default()))
}

/// Never returns, and doesn't look whether it should.
fn hang(_call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<(), Error> {
    loop {
        thread::park();
    }
}

#[derive(Deserialize)]
struct Bytes {
    bytes: usize,
    /// For `blob`: what the text repeats, so that answers to different callers differ.
    #[serde(default)]
    of: String,
}

/// Keeps memory for good, every page of it touched.
fn leak(_call: &Call<'_>, Bytes { bytes, .. }: Bytes) -> Result<(), Error> {
    black_box(vec![1_u8; bytes].leak());
    Ok(())
}

/// Answers a text of that many bytes.
fn blob(_call: &Call<'_>, Bytes { bytes, of }: Bytes) -> Result<String, Error> {
    let of = if of.is_empty() { "x" } else { &of };
    let mut text = of.repeat(bytes / of.len() + 1);
    let end = (0..=bytes).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    Ok(text)
}

/// Leaves a process behind that ends a little later without its parent, and answers its pid.
fn orphan(_call: &Call<'_>, Sleep { ms }: Sleep) -> Result<i32, Error> {
    let left_behind = format!("sleep {}.{:03} >/dev/null & echo $!", ms / 1_000, ms % 1_000);
    let shell = process::Command::new("sh").args(["-c", &left_behind]).output().map_err(Error::internal)?;
    String::from_utf8_lossy(&shell.stdout).trim().parse().map_err(Error::internal)
}

#[derive(Deserialize)]
struct Shell {
    line: String,
}

/// Runs a line as C code does, with all that a program inherits; answers its exit code.
#[allow(unsafe_code)]
fn shell(_call: &Call<'_>, Shell { line }: Shell) -> Result<i32, Error> {
    let line = std::ffi::CString::new(line).map_err(Error::internal)?;
    // SAFETY: the line ends in a zero byte and outlives the call.
    let status = unsafe { nix::libc::system(line.as_ptr()) };
    Ok(nix::libc::WEXITSTATUS(status))
}

/// Forks without executing anything, as a crash reporter or a library for parallel work does; answers the child's pid. It ends
/// after that time.
#[allow(unsafe_code)]
fn fork(_call: &Call<'_>, Sleep { ms }: Sleep) -> Result<i32, Error> {
    // SAFETY: the child calls nothing but usleep and _exit, which are safe there whatever other threads have locked.
    match unsafe { nix::unistd::fork() }.map_err(Error::internal)? {
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
        nix::unistd::ForkResult::Child => {
            let us = u32::try_from(ms * 1_000).unwrap_or(u32::MAX);
            // SAFETY: it takes a number.
            unsafe { nix::libc::usleep(us) };
            // SAFETY: it takes a number and does not return.
            unsafe { nix::libc::_exit(0) }
        }
    }
}

/// Ends listening for everybody who has one of the sockets that this worker listens on.
#[allow(unsafe_code)]
fn hush(_call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<(), Error> {
    let open = std::fs::read_dir("/proc/self/fd").map_err(Error::internal)?;
    let numbers: Vec<RawFd> = open.flatten().filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect();
    for number in numbers {
        // SAFETY: the number was open a moment ago; one that is closed meanwhile makes the question fail.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        if getsockopt(&fd, sockopt::AcceptConn) == Ok(true) {
            nix::sys::socket::shutdown(number, nix::sys::socket::Shutdown::Both).map_err(Error::internal)?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Arm {
    kind: Steps,
    steps: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Steps {
    Path,
    Adopt,
}

/// Has this worker die at the n-th step from now on of a call's way, or of adopting a connection. In builds without debug
/// assertions it does nothing.
fn arm(_call: &Call<'_>, Arm { kind, steps }: Arm) -> Result<(), Error> {
    let kind = match kind {
        Steps::Path => FailPoint::Path,
        Steps::Adopt => FailPoint::Adopt,
    };
    die_after(kind, steps);
    Ok(())
}

/// A number that no other worker draws.
fn random(call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<u64, Error> {
    let mut generator = call
        .state::<Mutex<StdRng>>()
        .lock()
        .map_err(|_| Error::internal("the generator's lock is poisoned"))?;
    Ok(generator.next_u64())
}
