//! Whether a call may be made again, and after what pause. Only what was certainly not run.
//!
//! Values in, decision out; `calls` waits and sends. A call that was sent and has no answer may have run, so it's never here.

use std::time::Duration;

use serde::Deserialize;

use super::error::{ClientError, RemoteError};

/// The codes that say that the call was refused without being run: overloaded, and method in quarantine.
const REFUSED: [i32; 2] = [-32000, -32004];

/// The pause where the server names none, and the first while there is no server.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause while there is no server.
const LONGEST: Duration = Duration::from_secs(1);

/// The longest pause that a server is granted, as long as the default cool-down of a quarantine. Without it one bad number would
/// put a call without a timeout to sleep for years.
const LONGEST_ADVISED: Duration = Duration::from_secs(30);

/// How long to wait before the next try of what has failed so many times before this error. `None` to give up: what is left of
/// the call's time would not outlast the pause that the server asks for, or the call may have run.
pub(super) fn pause(error: &ClientError, failures: u32, left: Option<Duration>) -> Option<Duration> {
    let pause = match error {
        ClientError::Remote(error) if REFUSED.contains(&error.code) => advised(error),
        ClientError::NoServer { .. } => {
            FIRST.saturating_mul(1_u32.checked_shl(failures.min(8)).unwrap_or(1)).min(LONGEST)
        }
        _ => return None,
    };
    left.is_none_or(|left| pause < left).then_some(pause.min(LONGEST_ADVISED))
}

fn advised(error: &RemoteError) -> Duration {
    #[derive(Deserialize)]
    struct Data {
        retry_after_ms: u64,
    }
    let data = error.data.as_ref().and_then(|data| serde_json::from_str::<Data>(data.get()).ok());
    data.map_or(FIRST, |data| Duration::from_millis(data.retry_after_ms.max(1)))
}

#[cfg(test)]
mod tests {
    use std::io;

    use serde_json::value::RawValue;

    use super::*;

    fn remote(code: i32, data: &str) -> ClientError {
        let data = Some(RawValue::from_string(data.to_owned()).expect("JSON"));
        ClientError::Remote(RemoteError { code, message: "no".to_owned(), data })
    }

    fn no_server() -> ClientError {
        ClientError::NoServer { addr: "here".to_owned(), source: io::ErrorKind::ConnectionRefused.into() }
    }

    #[test]
    fn what_was_not_run_is_tried_again_while_there_is_time() {
        let ms = Duration::from_millis;
        for (error, failures, left, expected) in [
            (remote(-32000, r#"{"retry_after_ms":30}"#), 0, None, Some(ms(30))),
            (remote(-32000, r#"{"retry_after_ms":30}"#), 9, Some(ms(31)), Some(ms(30))),
            (remote(-32000, r#"{"retry_after_ms":30}"#), 0, Some(ms(30)), None),
            (remote(-32000, r#"{"retry_after_ms":0}"#), 0, None, Some(ms(1))),
            (remote(-32000, "null"), 0, None, Some(ms(100))),
            (remote(-32000, r#"{"retry_after_ms":"soon"}"#), 0, None, Some(ms(100))),
            (remote(-32004, r#"{"retry_after_ms":20000}"#), 0, None, Some(ms(20_000))),
            // No number makes a call sleep for years, and the call that hasn't the time asked for doesn't try at all.
            (remote(-32000, r#"{"retry_after_ms":18446744073709551615}"#), 0, None, Some(ms(30_000))),
            (remote(-32000, r#"{"retry_after_ms":40000}"#), 0, Some(ms(60_000)), Some(ms(30_000))),
            (remote(-32000, r#"{"retry_after_ms":40000}"#), 0, Some(ms(35_000)), None),
            (no_server(), 0, None, Some(ms(100))),
            (no_server(), 2, None, Some(ms(400))),
            (no_server(), u32::MAX, None, Some(ms(1_000))),
            (no_server(), 0, Some(ms(50)), None),
        ] {
            assert_eq!(pause(&error, failures, left), expected, "{error:?}, {failures}, {left:?}");
        }
    }

    #[test]
    fn what_may_have_run_never_is() {
        for error in [
            remote(-32001, "null"),
            remote(-32002, r#"{"retry_after_ms":1}"#),
            remote(17, r#"{"retry_after_ms":1}"#),
            ClientError::Closed,
            ClientError::Timeout { after: Duration::ZERO },
            ClientError::Protocol("?".to_owned()),
            ClientError::Io(io::ErrorKind::Other.into()),
            ClientError::Address("?".to_owned()),
        ] {
            assert_eq!(pause(&error, 0, None), None, "{error:?}");
        }
    }
}
