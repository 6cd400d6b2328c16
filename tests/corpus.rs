//! The corpus of the fuzz targets, replayed: what was found once stays found, without a fuzzer and on stable Rust.
//!
//! Each file goes through its target as it is and cut off at every byte; a target that reads a stream reads it whole and in pieces.
//! The target for whole connections needs a worker, whose own tests replay its files.

use std::fs;
use std::path::Path;

use tine::internals::{fuzz_targets, hold_to_contract};

/// A file is tried cut off at so many of its bytes, from either end.
const CUTS: usize = 64;

#[test]
fn every_file_of_the_corpus_keeps_its_reader_to_the_contract() {
    for target in fuzz_targets() {
        let mut found = 0;
        let mut files = 0;
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        for entry in fs::read_dir(&directory).expect("each target has a corpus") {
            let path = entry.expect("a directory's entry").path();
            let bytes = fs::read(&path).expect("a file of the corpus");
            let hold = |bytes: &[u8]| {
                hold_to_contract(target, bytes)
                    .unwrap_or_else(|breach| panic!("{}: {breach}", path.display()))
            };
            found += hold(&bytes);
            let cuts = (0..bytes.len()).filter(|cut| *cut < CUTS || bytes.len() - cut <= CUTS);
            for cut in cuts {
                hold(&bytes[..cut]);
                hold(&bytes[cut..]);
            }
            files += 1;
        }
        assert!(files >= 5, "{target} has a corpus of {files} files");
        assert!(found > 0 || target == "detect", "no file of {target} holds anything that it reads");
    }
}

#[test]
fn a_target_that_is_none_is_an_error() {
    assert!(hold_to_contract("carrier pigeon", b"").is_err());
}
