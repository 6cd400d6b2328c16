//! What the parts of a call cost, without sockets and threads: decode, encode, dispatch, and the scoreboard's counters.
//!
//!     cargo bench --bench micro
//!
//! For comparing one change with another; a call's cost as a caller sees it is what `figures` measures.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use tine::Error;
use tine::internals::{Counters, Decoded, DecodedCall, Dispatcher, decode, encode_error};

/// Threads of a worker with the default configuration, the poller included.
const THREADS: usize = 9;
const METHODS: usize = 16;

fn framed(body: &str) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short message");
    [&length.to_le_bytes(), body.as_bytes()].concat()
}

/// The messages that all benches of calls see: a small one, and one of a few hundred bytes with an id.
fn messages() -> [(&'static str, Vec<u8>); 2] {
    let order = json!({
        "customer": { "name": "Ada Lovelace", "address": ["12 St James's Square", "London"], "since": 1833 },
        "items": [{ "sku": "A-1001", "count": 3, "price": 12.5 }, { "sku": "B-77", "count": 1, "price": 250.0 }],
        "comment": "leave it with the neighbours, \u{e9}ventuellement",
    });
    [
        ("small", framed(r#"{"in":"ping","params":"ireader 0"}"#)),
        ("order", framed(&json!({ "in": "echo", "params": order, "id": 4711 }).to_string())),
    ]
}

fn call(message: &[u8]) -> DecodedCall<'_> {
    match decode(message) {
        Decoded::Call(call) => call,
        other => panic!("expected a call, found {other:?}"),
    }
}

fn decoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (name, message) in messages() {
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| call(black_box(&message)).consumed));
        group.bench_function(format!("{name}, incomplete"), |bencher| {
            bencher.iter(|| matches!(decode(black_box(&message[..message.len() - 1])), Decoded::NeedMore));
        });
    }
}

fn encoding(criterion: &mut Criterion) {
    let error = Error::new(1, "no such customer").with_data(json!({ "customer": 4711 }));
    let mut out = Vec::with_capacity(4096);
    criterion.bench_function("encode/error", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_error(black_box(&error), &mut out);
            out.len()
        });
    });
}

fn dispatching(criterion: &mut Criterion) {
    let dispatcher = Dispatcher::new().expect("the built-in methods");
    let mut out = Vec::with_capacity(4096);
    let mut group = criterion.benchmark_group("dispatch");
    for (name, message) in messages() {
        let decoded = call(&message);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                dispatcher.answer(black_box(&decoded), &mut out).expect("a result");
                out.len()
            });
        });
        group.bench_function(format!("{name}, decoded too"), |bencher| {
            bencher.iter(|| {
                out.clear();
                dispatcher.answer(&call(black_box(&message)), &mut out).expect("a result");
                out.len()
            });
        });
    }
}

fn counting(criterion: &mut Criterion) {
    let mut counters = Counters::new(THREADS, METHODS).expect("memory");
    let mut group = criterion.benchmark_group("scoreboard");
    let mut now_ns = 0;
    group.bench_function("begin and finish a call", |bencher| {
        bencher.iter(|| {
            now_ns += 1_000;
            counters.count(0, black_box(3), now_ns, 700);
        });
    });
    for (thread, method) in (0..THREADS).flat_map(|thread| (0..METHODS).map(move |method| (thread, method))) {
        counters.count(thread, method, 1, 10_000);
    }
    group.bench_function("snapshot of 9 threads with 16 methods, summed", |bencher| {
        bencher.iter(|| counters.read());
    });
}

criterion_group!(benches, decoding, encoding, dispatching, counting);
criterion_main!(benches);
