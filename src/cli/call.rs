//! `tine call`: one call from the command line.
//!
//! Standard output gets JSON and nothing else, so that a script can pipe it; whatever is said to a person goes to
//! standard error. Exit codes: 0 a result, 1 an error answer, 2 a bad command line, 3 no answer.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::value::RawValue;

use super::args::CallArgs;
use super::{page, params};
use crate::client::{Client, ClientError, http};

const OK: u8 = 0;
const ERROR_ANSWER: u8 = 1;
const BAD_COMMAND_LINE: u8 = 2;
const NO_ANSWER: u8 = 3;

/// Makes the call, prints what came of it, and says how to exit.
pub(crate) fn run(args: &CallArgs) -> ExitCode {
    let end = call(args, io::stdin());
    if let Some(json) = &end.json {
        let printed = writeln!(io::stdout(), "{json}").and_then(|()| io::stdout().flush());
        if let Err(error) = printed {
            page::complain(&format!("error: the answer can't be written to standard output: {error}"));
            return ExitCode::from(NO_ANSWER);
        }
    }
    if let Some(words) = &end.words {
        page::complain(&format!("error: {words}"));
    }
    ExitCode::from(end.code)
}

/// How a call ended: for the script, for the person, for the shell.
struct End {
    json: Option<String>,
    words: Option<String>,
    code: u8,
}

impl End {
    fn without_json(code: u8, words: String) -> Self {
        Self { json: None, words: Some(words), code }
    }
}

fn call(args: &CallArgs, stdin: impl Read) -> End {
    let params = match params::read("PARAMS", args.params.as_deref(), stdin) {
        Ok(params) => params,
        Err(words) => return End::without_json(BAD_COMMAND_LINE, words),
    };
    match answer(args, params.as_deref()) {
        Ok(result) => End { json: Some(result.get().to_owned()), words: None, code: OK },
        Err(ClientError::Remote(error)) => match serde_json::to_string(&error) {
            Ok(json) => End { json: Some(json), words: None, code: ERROR_ANSWER },
            Err(_) => End::without_json(ERROR_ANSWER, error.to_string()),
        },
        Err(ClientError::Address(why)) => End::without_json(BAD_COMMAND_LINE, format!("--to: {why}")),
        Err(error) => End::without_json(NO_ANSWER, error.to_string()),
    }
}

fn answer(args: &CallArgs, params: Option<&RawValue>) -> Result<Box<RawValue>, ClientError> {
    if args.http {
        return http::call(&args.to, &args.method, params, args.timeout);
    }
    let client = Client::connect_timeout(&args.to, args.timeout)?;
    let client = if args.json_rpc { client.json_rpc() } else { client };
    client.call_raw(&args.method, params)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn args(to: &str, params: Option<&str>) -> CallArgs {
        CallArgs {
            method: "ping".to_owned(),
            params: params.map(str::to_owned),
            to: to.to_owned(),
            timeout: Duration::from_secs(60),
            json_rpc: false,
            http: false,
        }
    }

    /// Calls a server that answers one call with `out` and `result`, and returns that call too.
    fn call_answered_with(out: &str, result: &str, params: Option<&str>, stdin: &str) -> (End, String) {
        let answer = format!(r#"{{"out":"{out}","result":{result},"id":1}}"#);
        call_answered(answer, |to| call(&args(to, params), stdin.as_bytes()))
    }

    fn call_answered(answer: String, made: impl FnOnce(&str) -> End) -> (End, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let to = listener.local_addr().expect("a bound socket").to_string();
        let server = thread::spawn(move || {
            let (mut caller, _) = listener.accept().expect("a caller");
            let mut head = [0; 4];
            caller.read_exact(&mut head).expect("a length");
            let mut call = vec![0; u32::from_le_bytes(head) as usize];
            caller.read_exact(&mut call).expect("as many bytes");
            let length = u32::try_from(answer.len()).expect("a short answer");
            caller.write_all(&length.to_le_bytes()).expect("a caller that reads");
            caller.write_all(answer.as_bytes()).expect("a caller that reads");
            String::from_utf8(call).expect("JSON")
        });
        let end = made(&to);
        (end, server.join().expect("no panic"))
    }

    #[test]
    fn json_rpc_is_spoken_when_asked_for() {
        for (answer, json, code) in [
            (r#""result":[1.50]"#, "[1.50]", 0),
            (r#""error":{"code":-32601,"message":"none"}"#, r#"{"code":-32601,"message":"none"}"#, 1),
        ] {
            let answer = format!(r#"{{"jsonrpc":"2.0",{answer},"id":1}}"#);
            let (end, sent) = call_answered(answer, |to| {
                call(&CallArgs { json_rpc: true, ..args(to, Some("1.50")) }, io::empty())
            });
            assert_eq!((end.json.as_deref(), end.words, end.code), (Some(json), None, code));
            assert!(sent.contains(r#""jsonrpc":"2.0","method":"ping","params":[1.50],"id":1"#), "{sent}");
            assert!(sent.contains("timeout_ms"), "{sent}");
        }
    }

    #[test]
    fn an_answer_that_is_no_http_exits_3() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let to = listener.local_addr().expect("a bound socket").to_string();
        let server = thread::spawn(move || {
            let (mut caller, _) = listener.accept().expect("a caller");
            let mut start = [0; 16];
            caller.read_exact(&mut start).expect("a request");
            caller.write_all(b"\x04\0\0\0null").expect("a caller that reads");
            String::from_utf8(start.to_vec()).expect("text")
        });
        let end = call(&CallArgs { http: true, ..args(&to, None) }, io::empty());
        assert_eq!((end.json, end.code), (None, 3));
        assert!(end.words.expect("a reason").contains("HTTP"));
        assert_eq!(server.join().expect("no panic"), "POST /ping HTTP/");
    }

    #[test]
    fn a_result_is_printed_as_it_was_written_and_exits_0() {
        let (end, sent) = call_answered_with("pong", r#""\u0041""#, Some("1.50"), "");
        assert_eq!((end.json.as_deref(), end.words, end.code), (Some(r#""\u0041""#), None, 0));
        assert!(sent.contains(r#""in":"ping","params":1.50"#), "{sent}");
    }

    #[test]
    fn an_error_answer_is_printed_as_json_too_and_exits_1() {
        let error = r#"{"code":-32601,"message":"method not found"}"#;
        let (end, sent) = call_answered_with("error", error, None, "");
        assert_eq!((end.json.as_deref(), end.words, end.code), (Some(error), None, 1));
        assert!(!sent.contains("params"), "{sent}");
    }

    #[test]
    fn a_dash_reads_the_params_from_standard_input() {
        let (end, sent) = call_answered_with("pong", "null", Some("-"), "{\"from\": \"a pipe\"}\n");
        assert_eq!((end.json.as_deref(), end.code), (Some("null"), 0));
        assert!(sent.contains(r#""params":{"from": "a pipe"}"#), "{sent}");
    }

    #[test]
    fn params_that_are_no_json_exit_2_and_say_how_to_quote_them() {
        for (typed, advice) in [
            ("ireader 0", r#"'"ireader 0"'"#),
            ("it's", r#"'"it'\''s"'"#),
            ("{ms: 5}", r#"'{"ms": 5}'"#),
            ("", r#"'""'"#),
        ] {
            // Nothing listens there, and nothing is sent.
            let end = call(&args("127.0.0.1:1", Some(typed)), io::empty());
            let words = end.words.expect("a reason");
            assert!(words.contains(advice), "{words}");
            assert_eq!((end.json, end.code), (None, 2));
        }
    }

    #[test]
    fn standard_input_that_is_no_json_exits_2() {
        for stdin in [&b"oops"[..], b"", b"\xff"] {
            let end = call(&args("127.0.0.1:1", Some("-")), stdin);
            assert_eq!((end.json, end.code), (None, 2));
            assert!(end.words.expect("a reason").contains("standard input"));
        }
    }

    #[test]
    fn an_address_that_is_none_exits_2() {
        for http in [false, true] {
            let end = call(&CallArgs { http, ..args("8080", None) }, io::empty());
            assert_eq!((end.json, end.code), (None, 2));
            assert!(end.words.expect("a reason").contains("--to: expected HOST:PORT"));
        }
    }

    #[test]
    fn no_server_exits_3_and_prints_no_json() {
        let nobody = std::env::temp_dir().join(format!("tine-call-{}", std::process::id()));
        let to = format!("unix:{}", nobody.display());
        for http in [false, true] {
            let end = call(&CallArgs { http, ..args(&to, None) }, io::empty());
            assert_eq!((end.json, end.code), (None, 3));
            assert!(end.words.expect("a reason").contains("no server"));
        }
    }
}
