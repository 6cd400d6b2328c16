//! The `tine` daemon.
fn main() {}
