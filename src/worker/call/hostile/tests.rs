//! The seeds of all fuzz targets, each in many manners, and what proptest makes of them.
//!
//! `PROPTEST_CASES=100000 cargo test --release a_whole_connection` tries more.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::wire::Kind;

/// The files below `fuzz/corpus`, with the names of their targets.
fn corpus() -> Vec<(String, Vec<u8>)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut files = Vec::new();
    for folder in std::fs::read_dir(corpus).unwrap().map(|folder| folder.unwrap()) {
        let target = folder.file_name().into_string().unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            files.push((target.clone(), file.unwrap().path()));
        }
    }
    files.sort();
    files.into_iter().map(|(target, file)| (target, std::fs::read(file).unwrap())).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let batch =
        br#"[{"jsonrpc":"2.0","method":"slow","params":["a"],"id":1},{"jsonrpc":"2.0","method":"echo"},7]"#;
    let mut seeds: Vec<Vec<u8>> = corpus().into_iter().map(|(_, seed)| seed).collect();
    seeds.push(batch.repeat(3));
    seeds.push(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\"x\"".repeat(3));
    assert!(seeds.len() > 40, "the corpus is there");
    seeds
}

#[test]
fn each_seed_is_answered_and_let_go_however_it_is_cut() {
    for seed in seeds().iter().filter(|seed| seed.len() < 4_096) {
        for piece in [1, 7, usize::MAX] {
            let served = serve(seed, Manner { piece, ..Manner::default() });
            served.unwrap_or_else(|breach| panic!("{}: {breach}", seed.escape_ascii()));
        }
        for ending in [Ending::Patient, Ending::Gone] {
            let manner =
                Manner { ending, is_tight: true, is_pool_late: true, reads_late: true, ..Manner::default() };
            serve(seed, manner).unwrap();
        }
    }
}

#[test]
fn every_file_of_the_connections_corpus_is_held() {
    let files = corpus().into_iter().filter(|(target, _)| target == "connection");
    let answers: Vec<usize> = files.map(|(_, input)| hold(&input).unwrap()).collect();
    assert!(answers.iter().sum::<usize>() > answers.len() && answers.len() > 5, "{answers:?}");
}

/// A checker that finds nothing would let everything pass.
#[test]
fn answers_that_are_cut_or_missing_or_too_many_are_found() {
    let accepts = Manner::default().accepts;
    let framed = |body: &str| [&u32::try_from(body.len()).unwrap().to_le_bytes(), body.as_bytes()].concat();
    let http =
        |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let cases = [
        (Kind::Length, framed(r#"{"in":"ping"}"#), framed("{}")),
        (Kind::Stream, br#"{"in":"ping"}"#.to_vec(), b"{}\n".to_vec()),
        (Kind::Header, b"Content-Length: 2\r\n\r\n{}".to_vec(), b"Content-Length: 2\r\n\r\n{}".to_vec()),
        (Kind::Http, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), http("ok")),
    ];
    for (kind, message, answer) in cases {
        let asked = Asked::of(Framing::new(kind, accepts), &message.repeat(2)).unwrap();
        assert_eq!(asked.most, 2, "{kind:?}");
        let heard = |bytes: &[u8]| asked.answers_in(bytes, accepts.order);
        assert_eq!(heard(&answer.repeat(2)), Ok(2), "{kind:?}");
        assert!(heard(&answer.repeat(2)[..answer.len() * 2 - 1]).is_err(), "{kind:?}: cut");
        assert!(heard(b"\xFF\xFF").is_err(), "{kind:?}: no answer");
        assert!(kind == Kind::Http || asked.least == 2, "{kind:?}: each is answered");
        assert_eq!(heard(&answer).is_err(), kind == Kind::Http, "{kind:?}: an end needs a word");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_whole_connection_of_anything_is_answered_and_let_go(
        which in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        manner in any::<[u8; MANNER]>(),
    ) {
        let seeds = seeds();
        let mut bytes: Vec<u8> = which.iter().flat_map(|index| index.get(&seeds).iter().take(5_000).copied()).collect();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) * 2 + 1);
        bytes.extend(manner);
        hold(&bytes).unwrap();
    }
}
