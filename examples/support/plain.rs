//! One plain blocking client, for where a scenario decides what is sent when.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::{Value, json};
use tine::BoxError;

use super::service::PATIENCE;

#[derive(Debug)]
pub struct Plain {
    stream: TcpStream,
}

impl Plain {
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// The next answer; an error when the connection ends instead or nothing comes.
    pub fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let mut answer = vec![0; usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(0)];
        self.stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    pub fn receive_value(&mut self) -> Result<Value, BoxError> {
        Ok(serde_json::from_slice(&self.receive()?)?)
    }

    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, BoxError> {
        self.send(&framed(&json!({ "in": method, "params": params })))?;
        self.receive_value()
    }

    /// The pid of the worker that serves this connection.
    pub fn worker(&mut self) -> Result<i32, BoxError> {
        let answer = self.call("tine.worker", &Value::Null)?;
        let pid = answer["result"]["pid"].as_i64().ok_or("expected the pid of a worker")?;
        Ok(i32::try_from(pid)?)
    }
}

/// A message behind its length.
pub fn framed(message: &Value) -> Vec<u8> {
    let body = message.to_string();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), body.as_bytes()].concat()
}
