//! One plain blocking client of any speech, for where a scenario decides what is sent when.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::{Value, json};
use tine::BoxError;

use super::load::speech::{Found, Saying, Speech};
use super::service::PATIENCE;

#[derive(Debug)]
pub struct Plain {
    stream: TcpStream,
    speech: Speech,
    input: Vec<u8>,
    messages: u64,
}

/// A method and its params.
pub type Asked<'a> = (&'a str, Value);

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Where the answer says it.
    pub id: Option<u64>,
    /// What it came back with: the result, or the error object.
    pub outcome: Result<Value, Value>,
}

impl Plain {
    pub fn connect(to: SocketAddr, speech: Speech) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, speech, input: Vec::new(), messages: 0 })
    }

    pub fn speech(&self) -> Speech {
        self.speech
    }

    /// Sends calls at once, numbered from 0: all of them in one message where it takes several.
    pub fn send(&mut self, calls: &[Asked<'_>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let numbered: Vec<(usize, &Asked<'_>)> = calls.iter().enumerate().collect();
        let at_once = if self.speech.calls() > 1 { calls.len().max(1) } else { 1 };
        for message in numbered.chunks(at_once) {
            let texts: Vec<String> = message.iter().map(|(id, call)| self.text(*id, call)).collect();
            let text =
                if self.speech.calls() > 1 { format!("[{}]", texts.join(",")) } else { texts.concat() };
            let target = if self.speech.saying == Saying::Bare { message[0].1.0 } else { "" };
            let number = self.messages;
            self.messages += 1;
            self.speech
                .write_framed(&mut bytes, target, number, |out| out.extend_from_slice(text.as_bytes()));
        }
        self.stream.write_all(&bytes)
    }

    fn text(&self, id: usize, (method, params): &Asked<'_>) -> String {
        let call = match self.speech.saying {
            Saying::Native { ids: false } => json!({ "in": method, "params": params }),
            Saying::Native { ids: true } => json!({ "in": method, "params": params, "id": id }),
            Saying::Bare => params.clone(),
            Saying::JsonRpc | Saying::Batch { .. } => {
                json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id })
            }
        };
        call.to_string()
    }

    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// What the next message says, which tells of several calls where they are sent so; an error when the connection ends
    /// instead or nothing comes.
    pub fn receive(&mut self) -> Result<Vec<Told>, BoxError> {
        let Found { body, end, status, is_goodbye } = loop {
            if let Some(found) = self.speech.find_answer(&self.input, 0)? {
                break found;
            }
            let mut piece = vec![0; 65_536];
            let count = self.stream.read(&mut piece)?;
            if count == 0 {
                return Err(
                    format!("expected an answer, found the end after {} bytes", self.input.len()).into()
                );
            }
            self.input.extend_from_slice(&piece[..count]);
        };
        if is_goodbye {
            return Err("expected a service that goes on, found Connection: close".into());
        }
        let answer: Value = serde_json::from_slice(&self.input[body])?;
        self.input.drain(..end);
        match (self.speech.saying, answer) {
            (Saying::Batch { .. }, Value::Array(members)) => members.into_iter().map(told).collect(),
            (Saying::Batch { .. }, other) => Err(format!("expected an array, found {other}").into()),
            (Saying::Bare, answer) => {
                Ok(vec![Told { id: None, outcome: if status == 200 { Ok(answer) } else { Err(answer) } }])
            }
            (_, answer) => Ok(vec![told(answer)?]),
        }
    }

    /// One call, when all before it are answered.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Result<Value, Value>, BoxError> {
        self.send(&[(method, params)])?;
        let told = self.receive()?.pop().ok_or("expected the answer to a call, found none")?;
        Ok(told.outcome)
    }

    /// The pid of the worker that serves this connection.
    pub fn worker(&mut self) -> Result<i32, BoxError> {
        let answer = self.call("tine.worker", json!([]))?;
        let pid =
            answer.ok().and_then(|worker| worker["pid"].as_i64()).ok_or("expected the pid of a worker")?;
        Ok(i32::try_from(pid)?)
    }
}

/// What an answer in an envelope says.
fn told(mut answer: Value) -> Result<Told, BoxError> {
    let id = answer["id"].as_u64();
    let is_native = answer.get("out").is_some();
    let is_error = if is_native { answer["out"] == "error" } else { answer.get("error").is_some() };
    let place = if is_error && !is_native { "error" } else { "result" };
    match answer.get_mut(place) {
        Some(what) if is_error => Ok(Told { id, outcome: Err(what.take()) }),
        Some(what) => Ok(Told { id, outcome: Ok(what.take()) }),
        None => Err(format!("expected a result or an error, found {answer}").into()),
    }
}
