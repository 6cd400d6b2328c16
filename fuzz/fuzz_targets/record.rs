//! A connection's record and blocks in a dead worker's arena, as an adopter reads them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tine::internals::hold_to_contract;

fuzz_target!(|bytes: &[u8]| {
    if let Err(breach) = hold_to_contract("record", bytes) {
        panic!("{breach}");
    }
});
