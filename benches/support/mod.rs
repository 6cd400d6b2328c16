//! What the benches share: servers that they start, pin to a core and end; loads that they drive; figures made of runs.
//!
//! A bench pins itself to the load's core and has every server started on the other one, unless the figure is about
//! more than one core. Every process here is a child that is ended by its pid when its owner goes.

#![allow(dead_code, unreachable_pub)] // each bench uses its part

pub mod children;
pub mod cores;
pub mod drive;
pub mod http;
pub mod machine;
pub mod numbers;
pub mod peers;
pub mod process;
pub mod service;
pub mod wrk;

use std::path::{Path, PathBuf};

use tine::BoxError;

/// The params of the `ping` that most figures are about.
pub const PING_PARAMS: &str = r#""ireader 0""#;

/// That `ping` as it is sent: a length prefix and a native request.
pub fn ping_frame() -> Vec<u8> {
    framed(&format!(r#"{{"in":"ping","params":{PING_PARAMS}}}"#))
}

/// A message behind its length.
pub fn framed(message: &str) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), message.as_bytes()].concat()
}

/// Where cargo builds, whatever it was told about that.
pub fn target_folder() -> Result<PathBuf, BoxError> {
    let program = Path::new(env!("CARGO_BIN_EXE_tine"));
    Ok(program.ancestors().nth(2).ok_or("cargo builds into a folder for each profile")?.to_owned())
}

/// True when the figures are wanted; otherwise (`cargo test --all-targets`) one short round shows that all works.
pub fn is_for_the_record() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// What the user wrote behind `--`, without the flags that cargo adds.
pub fn own_arguments() -> Vec<String> {
    std::env::args().skip(1).filter(|argument| argument != "--bench" && argument != "--test").collect()
}
