//! A whole connection: a worker serves a client that says anything, in any pieces, and ends in any way.
//!
//! The last three bytes say how it goes about it: what its listener takes, how long its pieces are, how it reads and ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tine::internals::hold_connection_to_contract;

fuzz_target!(|bytes: &[u8]| {
    if let Err(breach) = hold_connection_to_contract(bytes) {
        panic!("{breach}");
    }
});
