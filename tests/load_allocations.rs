//! The load engine asks for no memory in the steady state: its calls would otherwise measure the allocator too.
//!
//! Alone in its file, because a program has one allocator.

#![allow(unsafe_code)] // an allocator can't be had without

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use tine::load::{Load, Native, Phase};

/// The system's allocator, which counts what each thread asks it for.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ASKED.set(ASKED.get() + 1);
}

// SAFETY: every call goes on to the system's allocator as it came; counting touches a thread-local number that needs
// neither memory nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: all memory is the system's, see `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: all memory is the system's, see `alloc`.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_call_asks_for_no_memory() {
    for (pipeline, rate) in [(1, None), (16, None), (4, Some(5000.0))] {
        let stop = AtomicBool::new(false);
        let ping = Native::new("ping", Some(r#""ireader 0""#)).expect("JSON");
        let load = Load {
            to: pong_server(),
            connections: 2,
            pipeline,
            rate,
            warm_up: Duration::from_millis(50),
            duration: Duration::from_millis(350),
        };
        let mut asked = Vec::with_capacity(100);
        let report = load.run(&ping, &stop, &mut |progress| {
            if progress.phase == Phase::Measuring {
                asked.push((progress.calls, ASKED.get()));
            }
        });
        let report = report.expect("a report");
        assert!(report.is_clean(), "{report:?}");
        let ((first_calls, first), (last_calls, last)) = (asked[0], asked[asked.len() - 1]);
        assert!(last_calls > first_calls, "{asked:?}");
        // A connection's own buffers grow when an answer first comes in two parts.
        assert!(last - first <= 2, "{} calls, {pipeline} deep: {asked:?}", last_calls - first_calls);
    }
}

/// Answers two connections' pings on a thread each.
fn pong_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let to = listener.local_addr().expect("bound").to_string();
    let request = framed(r#"{"in":"ping","params":"ireader 0"}"#).len();
    let answer = framed(r#"{"out":"pong","result":"ireader 0"}"#);
    thread::spawn(move || {
        for _ in 0..2 {
            let (mut caller, _) = listener.accept().expect("a caller");
            let answer = answer.clone();
            thread::spawn(move || {
                let mut bytes = vec![0; request];
                while caller.read_exact(&mut bytes).is_ok() && caller.write_all(&answer).is_ok() {}
            });
        }
    });
    to
}

fn framed(body: &str) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short");
    [&length.to_le_bytes(), body.as_bytes()].concat()
}
