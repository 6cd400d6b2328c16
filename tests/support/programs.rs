//! Programs that run to their end, services started by a command line alone, and streams that are no `Wire`.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Folder, Service, Wire, await_child, framed};

/// What a program left behind. For programs that print little: nobody reads before they have ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// What was printed for a person, without its line breaks.
pub fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs a program to its end, with `input` on its standard input.
pub fn run(command: &mut Command, input: &str) -> Ran {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // Dropped at the end of the statement, which is the end of the input; who does not want it has closed it.
    let _ = child.stdin.take().expect("stdin is a pipe").write_all(input.as_bytes());
    let ended = await_child(&mut child);
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let text = |mut pipe: Box<dyn Read>| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("UTF-8");
        text
    };
    let stdout = text(Box::new(child.stdout.take().expect("stdout is a pipe")));
    let stderr = text(Box::new(child.stderr.take().expect("stderr is a pipe")));
    let ended = ended.unwrap_or_else(|| panic!("it did not end; it said:\n{stdout}\n{stderr}"));
    Ran { code: ended.code(), stdout, stderr }
}

impl Service {
    /// Starts `serve` with these arguments in a folder, whose configuration, if there is one, logs text; waits until
    /// it listens.
    pub fn start_in(folder: Folder, program: Command, arguments: &[&str]) -> Self {
        let mut service = Self::spawn(program, arguments, folder);
        let line = service.await_log("listening");
        let text = line["message"].as_str().unwrap_or_default();
        let address = text.split_once("listen=\"").and_then(|(_, rest)| rest.split_once('"'));
        service.address = Some(address.expect("the log names the addresses").0.to_owned());
        service
    }

    /// Every address it listens on.
    pub fn addresses(&self) -> Vec<&str> {
        self.address.as_deref().expect("the service listens").split(", ").collect()
    }
}

impl Wire {
    /// All answers up to the service's FIN.
    pub fn receive_to_the_end(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.receive_text()).collect()
    }

    /// Tells the service that nothing more will be sent.
    pub fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }
}

/// Somebody else's connection and the worker it is served by, to see that neither is harmed.
pub struct Bystander {
    wire: Wire,
    worker: Value,
}

impl Bystander {
    /// For a service with one worker.
    pub fn of(service: &Service) -> Self {
        let mut wire = service.connect();
        let worker = wire.call("tine.worker", Value::Null)["result"]["pid"].clone();
        assert!(worker.is_u64(), "{worker}");
        Self { wire, worker }
    }

    /// Fails when the worker is another one, or does not answer here or on a new connection.
    pub fn sees_no_harm(&mut self, service: &Service, what: &str) {
        let here = self.wire.call("tine.worker", Value::Null);
        assert_eq!(here["result"]["pid"], self.worker, "after {what}");
        let elsewhere = service.call("tine.worker", Value::Null);
        assert_eq!(elsewhere["result"]["pid"], self.worker, "after {what}");
    }
}

/// One call on any stream, with little-endian lengths.
pub fn call_on(mut stream: impl Read + Write, body: &str) -> String {
    stream.write_all(&framed(body)).expect("the service reads");
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).expect("an answer");
    let mut answer = vec![0; u32::from_le_bytes(prefix) as usize];
    stream.read_exact(&mut answer).expect("a whole answer");
    String::from_utf8(answer).expect("UTF-8")
}
