//! Whatever bytes come, in whatever pieces: nothing panics, and a client that has ended its side is answered what there is to answer
//! and let go, with nothing left behind.
//!
//! The seeds are those of the fuzz targets. `PROPTEST_CASES=100000 cargo test --release a_whole_connection` tries more.

use std::io::ErrorKind;
use std::net::Shutdown;
use std::path::Path;

use super::*;
use crate::worker::connection::Phase;

/// How often both sides look before it counts as hung.
const LOOKS: usize = 20_000;

fn seeds() -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folders = std::fs::read_dir(corpus).unwrap().map(|folder| folder.unwrap().path());
    let mut files: Vec<_> = folders
        .flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()))
        .collect();
    files.sort();
    let batch =
        br#"[{"jsonrpc":"2.0","method":"slow","params":["a"],"id":1},{"jsonrpc":"2.0","method":"echo"},7]"#;
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    seeds.push(batch.repeat(3));
    seeds.push(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\"x\"".repeat(3));
    assert!(seeds.len() > 40, "the corpus is there");
    seeds
}

/// Sends all of it in pieces of this size, then ends the client's side, and waits until the worker has let it go.
fn send(bytes: &[u8], piece: usize) {
    let (mut poller, mut pool, tasks, connection, scene) = begin(Way::Length);
    looking::at_each_step(|| {});
    let mut client = scene.client.borrow_mut();
    client.set_nonblocking(true).unwrap();
    let (mut rest, mut has_ended, mut heard) = (bytes, false, vec![0; 1 << 16]);
    for _ in 0..LOOKS {
        if let Ok(sent) = client.write(&rest[..piece.min(rest.len())]) {
            rest = &rest[sent..];
        }
        if !has_ended && (rest.is_empty() || connection.lock().phase != Phase::Open) {
            has_ended = true;
            let _ = client.shutdown(Shutdown::Write);
        }
        poller.look_at_the_clock();
        poller.readable(&connection);
        poller.writable(&connection);
        while let Ok(Task::Run(job)) = tasks.try_recv() {
            pool.run(&job);
        }
        let turns = std::mem::take(&mut *poller.shared.turns.lock());
        for key in turns {
            poller.take_turn(key);
        }
        while !matches!(
            client.read(&mut heard).map_err(|error| error.kind()),
            Ok(0) | Err(ErrorKind::WouldBlock | ErrorKind::ConnectionReset)
        ) {}
        if connection.lock().phase == Phase::Closed {
            assert_eq!(connection.lock().held(), 0, "nothing is held");
            assert_eq!(poller.shared.buffers.held(), 0, "nothing is accounted for");
            assert_eq!(poller.shared.gate.retry_after(), std::time::Duration::ZERO, "no place is taken");
            return;
        }
    }
    panic!("it is still there after {LOOKS} looks: {:?}", connection.lock().phase);
}

#[test]
fn each_seed_is_answered_and_let_go_however_it_is_cut() {
    for seed in seeds().iter().filter(|seed| seed.len() < 4_096) {
        for piece in [1, 7, usize::MAX] {
            send(seed, piece);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_whole_connection_of_anything_is_answered_and_let_go(
        which in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        piece in prop_oneof![1_usize..10, Just(usize::MAX)],
    ) {
        let seeds = seeds();
        let mut bytes: Vec<u8> = which.iter().flat_map(|index| index.get(&seeds).iter().take(5_000).copied()).collect();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) * 2 + 1);
        send(&bytes, piece);
    }
}
