//! What a supervisor leaves to the program that takes its place.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tine::internals::hold_to_contract;

fuzz_target!(|bytes: &[u8]| {
    if let Err(breach) = hold_to_contract("exec_handoff", bytes) {
        panic!("{breach}");
    }
});
