//! The text of a configuration.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tine::internals::hold_to_contract;

fuzz_target!(|bytes: &[u8]| {
    if let Err(breach) = hold_to_contract("config", bytes) {
        panic!("{breach}");
    }
});
