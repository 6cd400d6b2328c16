//! The engine against servers that a test makes up: how it pipelines, waits, gives up and comes back.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::{Answer, Exchange, Fixed, Load, Phase, Report};

static GO: AtomicBool = AtomicBool::new(false);

/// A server on its own thread, which serves as many connections as `body` accepts.
struct Script {
    to: String,
    server: JoinHandle<()>,
}

impl Script {
    fn start(body: impl FnOnce(&TcpListener) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let to = listener.local_addr().expect("bound").to_string();
        Self { to, server: thread::spawn(move || body(&listener)) }
    }

    fn load(&self) -> Load {
        Load {
            to: self.to.clone(),
            connections: 1,
            pipeline: 1,
            rate: None,
            warm_up: Duration::ZERO,
            duration: Duration::from_millis(60),
        }
    }

    fn finish(self) {
        self.server.join().expect("the server saw what it should");
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().expect("a caller").0
}

/// Sends back what comes until the caller leaves.
fn echo(mut caller: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = caller.read(&mut bytes) {
        if caller.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

fn abc() -> Fixed {
    Fixed::new(b"abc".to_vec(), b"abc".to_vec())
}

fn run(load: &Load, exchange: &impl Exchange) -> Report {
    load.run(exchange, &GO, &mut |_| {}).expect("a report")
}

#[test]
fn a_pipeline_goes_out_in_one_write_and_so_does_what_replaces_it() {
    let script = Script::start(|listener| {
        let mut caller = accept(listener);
        let mut bytes = [0; 100];
        // In halves: what replaces each half is one write as well.
        assert_eq!(caller.read(&mut bytes).expect("calls"), 8 * 3);
        for _ in 0..10 {
            caller.write_all(b"abcabcabcabc").expect("a caller that reads");
            assert_eq!(caller.read(&mut bytes).expect("calls"), 4 * 3);
        }
        caller.write_all(b"abcabcabcabcabcabcabcabc").expect("a caller that reads");
        echo(caller);
    });
    let report = run(&Load { pipeline: 8, ..script.load() }, &abc());
    assert!(report.is_clean() && report.calls > 40, "{report:?}");
    script.finish();
}

#[test]
fn answers_in_pieces_are_put_together() {
    let script = Script::start(|listener| {
        let mut caller = accept(listener);
        caller.set_nodelay(true).expect("an option");
        let mut byte = [0];
        while let Ok(1) = caller.read(&mut byte) {
            if caller.write_all(&byte).is_err() {
                return;
            }
        }
    });
    let report = run(&Load { pipeline: 3, ..script.load() }, &abc());
    assert!(report.is_clean() && report.calls > 3, "{report:?}");
    script.finish();
}

#[test]
fn calls_and_answers_larger_than_any_buffer_get_through() {
    let script = Script::start(|listener| echo(accept(listener)));
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    // The echo takes bytes only as fast as it gets rid of them, so both directions fill up.
    let report = run(&Load { pipeline: 2, ..script.load() }, &Fixed::new(large.clone(), large));
    assert!(report.is_clean() && report.calls > 0, "{report:?}");
    script.finish();
}

#[test]
fn a_server_that_stops_answering_ends_with_what_is_missing() {
    // In the open loop six calls are due, and there is room for two at a time.
    for (rate, unanswered) in [(None, 2), (Some(100.0), 5)] {
        let script = Script::start(|listener| {
            let mut caller = accept(listener);
            caller.read_exact(&mut [0; 3]).expect("a call");
            caller.write_all(b"abc").expect("a caller that reads");
            while let Ok(1..) = caller.read(&mut [0; 100]) {}
        });
        let load = Load { pipeline: 2, rate, ..script.load() };
        let exchange = abc();
        let mut engine = Engine::new(&load, load.check().expect("an address"), &exchange).expect("an engine");
        engine.grace = Duration::from_millis(300);
        let report = engine.run(&GO, &mut |_| {}).expect("a report");
        assert_eq!((report.calls, report.unanswered, report.closed), (1, unanswered, 0), "{report:?}");
        script.finish();
    }
}

/// They counted for the warm-up alone, and a server that hung passed for one that had nothing to do.
#[test]
fn calls_of_the_warm_up_that_are_never_answered_are_missing() {
    let script = Script::start(|listener| {
        let mut caller = accept(listener);
        while let Ok(1..) = caller.read(&mut [0; 100]) {}
    });
    let load = Load { pipeline: 2, warm_up: Duration::from_millis(20), ..script.load() };
    let exchange = abc();
    let mut engine = Engine::new(&load, load.check().expect("an address"), &exchange).expect("an engine");
    engine.grace = Duration::from_millis(50);
    let report = engine.run(&GO, &mut |_| {}).expect("a report");
    assert_eq!((report.calls, report.unanswered), (0, 2), "{report:?}");
    script.finish();
}

#[test]
fn an_exchange_that_counts_wrong_costs_its_connection_and_no_more() {
    #[derive(Clone)]
    struct Beyond(usize);
    impl Exchange for Beyond {
        fn request(&mut self, out: &mut Vec<u8>) {
            out.extend_from_slice(b"abc");
        }
        fn answer(&mut self, _: &[u8]) -> Answer {
            Answer::Right { consumed: self.0 }
        }
    }
    for consumed in [0, 1000] {
        let script = Script::start(|listener| {
            echo(accept(listener));
        });
        let report = run(&script.load(), &Beyond(consumed));
        assert_eq!((report.calls, report.wrong), (0, 1), "{report:?}");
        script.finish();
    }
}

#[test]
fn an_answer_too_many_is_wrong() {
    let script = Script::start(|listener| {
        let mut caller = accept(listener);
        caller.read_exact(&mut [0; 3]).expect("a call");
        caller.write_all(b"abcabc").expect("a caller that reads");
        // It hangs up on us.
        assert!(matches!(caller.read(&mut [0; 1]), Ok(0) | Err(_)));
    });
    let report = run(&script.load(), &abc());
    assert_eq!((report.calls, report.wrong), (1, 1), "{report:?}");
    script.finish();
}

#[test]
fn a_connection_that_is_closed_is_made_again() {
    let script = Script::start(|listener| {
        for _ in 0..3 {
            let mut caller = accept(listener);
            caller.read_exact(&mut [0; 3]).expect("a call");
            caller.write_all(b"abc").expect("a caller that reads");
        }
        echo(accept(listener));
    });
    let stop = AtomicBool::new(false);
    let load = Load { duration: Duration::from_secs(3600), ..script.load() };
    let report = load.run(&abc(), &stop, &mut |progress| stop.store(progress.calls > 3, Ordering::Relaxed));
    let report = report.expect("a report");
    assert_eq!(report.closed, 3, "{report:?}");
    assert!(report.calls > 3, "{report:?}");
    script.finish();
}

#[test]
fn an_open_loop_accounts_for_every_call_that_was_due() {
    for (rate, connections, due) in [(1000.0, 3, 60), (10.0, 1, 1), (33.0, 2, 2)] {
        let script = Script::start(move |listener| {
            let callers: Vec<_> = (0..connections).map(|_| accept(listener)).collect();
            let servers: Vec<_> = callers.into_iter().map(|caller| thread::spawn(|| echo(caller))).collect();
            for server in servers {
                server.join().expect("an echo");
            }
        });
        let report = run(&Load { rate: Some(rate), connections, ..script.load() }, &abc());
        assert_eq!(report.calls, due, "{rate} a second: {report:?}");
        assert!(report.is_clean(), "{report:?}");
        script.finish();
    }
}

#[test]
fn an_open_loop_counts_from_when_a_call_was_due() {
    // The server begins to answer when every call has long been due.
    let script = Script::start(|listener| {
        let mut caller = accept(listener);
        let begun = Instant::now();
        caller.read_exact(&mut [0; 3]).expect("a call");
        caller.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        assert!(caller.read(&mut [0; 1]).is_err(), "one call at a time");
        assert!(begun.elapsed() >= Duration::from_millis(100));
        caller.set_read_timeout(None).expect("a timeout");
        caller.write_all(b"abc").expect("a caller that reads");
        echo(caller);
    });
    let report = run(&Load { rate: Some(1000.0), ..script.load() }, &abc());
    assert_eq!(report.calls, 60, "{report:?}");
    // The last call was due after 59 ms, and then waited for those before it.
    assert!(report.min() >= Duration::from_millis(40), "{report:?}");
    script.finish();
}

#[test]
fn a_load_that_is_told_to_stop_has_what_it_had() {
    let script = Script::start(|listener| echo(accept(listener)));
    let stop = AtomicBool::new(false);
    let load = Load { duration: Duration::from_secs(3600), ..script.load() };
    let report = load.run(&abc(), &stop, &mut |progress| stop.store(progress.calls > 0, Ordering::Relaxed));
    let report = report.expect("a report");
    assert!(report.is_clean() && report.calls > 0, "{report:?}");
    assert!(report.elapsed < Duration::from_secs(60) && !report.elapsed.is_zero(), "{report:?}");
    script.finish();
}

#[test]
fn each_phase_is_told_in_its_turn() {
    let script = Script::start(|listener| echo(accept(listener)));
    let mut phases = Vec::new();
    let load = Load { warm_up: Duration::from_millis(20), ..script.load() };
    let report = load.run(&abc(), &GO, &mut |progress| phases.push(progress.phase)).expect("a report");
    phases.dedup();
    assert_eq!(phases, [Phase::WarmUp, Phase::Measuring, Phase::Finishing]);
    assert_eq!(report.elapsed, load.duration);
    script.finish();
}

#[test]
fn loads_of_several_threads_add_up() {
    let script = Script::start(|listener| echo(accept(listener)));
    let mut first = run(&script.load(), &abc());
    script.finish();
    let second = first.clone();
    first.merge(&second);
    assert_eq!((first.calls, first.arrived), (2 * second.calls, 2 * second.arrived));
    assert_eq!((first.elapsed, first.max()), (second.elapsed, second.max()));
    assert!((first.rate() - 2.0 * second.rate()).abs() < 1e-6);
}

#[test]
fn settings_that_can_not_be_are_named_with_what_was_found() {
    let good = || Load { to: "127.0.0.1:1".to_owned(), ..Load::default() };
    assert!(good().check().is_ok());
    for (load, found) in [
        (Load { to: "8080".to_owned(), ..good() }, "expected HOST:PORT"),
        (Load { connections: 0, ..good() }, "connections: expected at least 1, found 0"),
        (Load { pipeline: 0, ..good() }, "pipeline: expected at least 1"),
        (Load { connections: 1 << 20, pipeline: 1 << 20, ..good() }, "found 1048576 × 1048576"),
        (Load { rate: Some(0.0), ..good() }, "found 0"),
        (Load { rate: Some(-1.0), ..good() }, "found -1"),
        (Load { rate: Some(f64::NAN), ..good() }, "found NaN"),
        (Load { rate: Some(f64::INFINITY), ..good() }, "found inf"),
        (Load { rate: Some(2e8), ..good() }, "found 200000000"),
        (Load { duration: Duration::ZERO, ..good() }, "duration: expected some time"),
        (Load { connections: 60 << 20, ..good() }, "raise the limit"),
    ] {
        let error = load.check().expect_err(found).to_string();
        assert!(error.contains(found), "{error}");
    }
}
