//! The methods that the JSON-RPC 2.0 specification has in its examples, as ordinary handlers: params come by name or by
//! position, as the caller likes.
//!
//! ```text
//! cargo run --example calculator -- serve
//! curl http://127.0.0.1:8080/ -d '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}'
//! ```

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;
use tine::{Call, Error, Server};

fn main() -> ExitCode {
    Server::new()
        .method("subtract", |_call: &Call<'_>, Subtract { minuend, subtrahend }| {
            minuend
                .checked_sub(subtrahend)
                .ok_or_else(|| Error::invalid_params("the difference is too large"))
        })
        .method("sum", |_call: &Call<'_>, numbers: Vec<i64>| {
            let sum = numbers.into_iter().try_fold(0, i64::checked_add);
            sum.ok_or_else(|| Error::invalid_params("the sum is too large"))
        })
        .method("get_data", |_call: &Call<'_>, ()| Ok(("hello", 5)))
        // What is only told to the service: nothing comes back.
        .method("update", |_call: &Call<'_>, _news: Value| Ok(()))
        .method("notify_hello", |_call: &Call<'_>, _greeting: Value| Ok(()))
        .method("notify_sum", |_call: &Call<'_>, _numbers: Vec<i64>| Ok(()))
        .run()
}

#[derive(Deserialize)]
struct Subtract {
    minuend: i64,
    subtrahend: i64,
}
