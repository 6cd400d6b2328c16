//! Two clients in Rust: the `jsonrpc` crate over TCP and HTTP, and jsonrpsee over HTTP. The crate opens a connection for each
//! call over TCP, writes one value without a delimiter, in small pieces, and keeps its side open; it has no notifications.
//!
//! usage: tine-clients HOST:PORT

use std::error::Error;
use std::net::SocketAddr;

use jsonrpc::Client;
use jsonrpc::simple_http::SimpleHttpTransport;
use jsonrpc::simple_tcp::TcpTransport;
use jsonrpsee_core::ClientError;
use jsonrpsee_core::client::ClientT;
use jsonrpsee_core::params::{ArrayParams, BatchRequestBuilder, ObjectParams};
use jsonrpsee_core::rpc_params;
use jsonrpsee_http_client::{HttpClient, HttpClientBuilder};
use serde_json::{Value, json};

const CALLS: usize = 1_000;
const BATCHES: usize = 10;
const NOTIFICATIONS: u64 = 100;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let address: SocketAddr = std::env::args().nth(1).ok_or("usage: tine-clients HOST:PORT")?.parse()?;
    let url = format!("http://{address}/");

    through_jsonrpc(&TcpTransport::new(address).into())?;
    let crate_version = version_of("jsonrpc")?;
    println!("jsonrpc crate {crate_version}, TCP: {CALLS} calls, {BATCHES} batches of 10, errors");
    through_jsonrpc(&SimpleHttpTransport::builder().url(&url)?.build().into())?;
    println!("jsonrpc crate {crate_version}, HTTP: {CALLS} calls, {BATCHES} batches of 10, errors");

    let client = HttpClientBuilder::default().build(&url)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(through_jsonrpsee(&client))?;
    println!(
        "jsonrpsee {}, HTTP: {CALLS} calls, {BATCHES} batches of 10, {NOTIFICATIONS} notifications, errors",
        version_of("jsonrpsee-http-client")?
    );
    Ok(())
}

/// The version of a package that this program was built with.
fn version_of(package: &str) -> Result<&'static str, Box<dyn Error>> {
    let mut lines = include_str!("../Cargo.lock").lines();
    lines.find(|line| *line == format!("name = {package:?}")).ok_or("expected the package in Cargo.lock")?;
    let version = lines.next().and_then(|line| line.strip_prefix("version = "));
    Ok(version.ok_or("expected its version in Cargo.lock")?.trim_matches('"'))
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what}: expected {wanted:?}, found {found:?}").into())
}

fn through_jsonrpc(client: &Client) -> Outcome {
    for n in 0..CALLS {
        let params = json!([n, format!("Grüße {n}")]);
        expect("a call", client.call::<Value>("echo", Some(&jsonrpc::arg(&params)))?, params)?;
    }

    let params: Vec<_> = (0..10).map(|n| jsonrpc::arg([n])).collect();
    for _ in 0..BATCHES {
        let build = |(n, params)| client.build_request(if n < 9 { "echo" } else { "nothing" }, Some(params));
        let batch: Vec<_> = params.iter().map(|params| &**params).enumerate().map(build).collect();
        let answers = client.send_batch(&batch)?;
        let answers: Vec<_> = answers.into_iter().flatten().map(|answer| answer.result::<Value>()).collect();
        for (n, answer) in answers.iter().take(9).enumerate() {
            expect("a result", answer.as_ref().ok(), Some(&json!([n])))?;
        }
        expect("an error in a batch", code_of(answers.last())?, -32601)?;
    }

    let own = json!({"code": 7, "message": "out of paper", "data": {"tray": 2}});
    let Err(jsonrpc::Error::Rpc(error)) = client.call::<Value>("fail", Some(&jsonrpc::arg(own))) else {
        return Err("expected the client's own error".into());
    };
    expect("code", error.code, 7)?;
    expect("message", error.message.as_str(), "out of paper")?;
    expect("data", error.data.map(|data| data.get().to_owned()).as_deref(), Some(r#"{"tray":2}"#))?;
    expect("no such method", code_of(Some(&client.call("nothing", None)))?, -32601)?;
    expect("wrong params", code_of(Some(&client.call("sleep", Some(&jsonrpc::arg(["long"])))))?, -32602)
}

fn code_of(answer: Option<&Result<Value, jsonrpc::Error>>) -> Result<i32, Box<dyn Error>> {
    match answer {
        Some(Err(jsonrpc::Error::Rpc(error))) => Ok(error.code),
        other => Err(format!("expected the client's own error, found {other:?}").into()),
    }
}

async fn through_jsonrpsee(client: &HttpClient) -> Outcome {
    for n in 0..CALLS {
        let text = format!("Grüße {n}");
        let answer: Value = client.request("echo", rpc_params![n, &text]).await?;
        expect("a call", answer, json!([n, text]))?;
    }

    for _ in 0..BATCHES {
        let mut batch = BatchRequestBuilder::new();
        for n in 0..9 {
            batch.insert("echo", rpc_params![n])?;
        }
        batch.insert("nothing", ArrayParams::new())?;
        let answers = client.batch_request::<Value>(batch).await?;
        expect("results", answers.num_successful_calls(), 9)?;
        let answers: Vec<_> = answers.into_iter().collect();
        for (n, answer) in answers.iter().take(9).enumerate() {
            expect("a result", answer.as_ref().ok(), Some(&json!([n])))?;
        }
        let last = answers.last().ok_or("expected answers")?;
        expect("an error in a batch", last.as_ref().err().map(|error| error.code()), Some(-32601))?;
    }

    for _ in 0..NOTIFICATIONS {
        client.notification("count", rpc_params!["jsonrpsee", 1]).await?;
    }
    // They run beside later calls, so the last ones may not have yet.
    let mut looks = 0;
    while client.request::<u64, _>("count", rpc_params!["jsonrpsee", 0]).await? != NOTIFICATIONS {
        looks += 1;
        if looks > CALLS {
            return Err("some notifications did not run".into());
        }
    }

    let mut own = ObjectParams::new();
    own.insert("code", 7)?;
    own.insert("message", "out of paper")?;
    own.insert("data", json!({"tray": 2}))?;
    let Err(ClientError::Call(error)) = client.request::<Value, _>("fail", own).await else {
        return Err("expected the client's own error".into());
    };
    expect("code", error.code(), 7)?;
    expect("message", error.message(), "out of paper")?;
    expect("data", error.data().map(|data| data.get()), Some(r#"{"tray":2}"#))?;
    for (method, code) in [("nothing", -32601), ("sleep", -32602)] {
        match client.request::<Value, _>(method, rpc_params!["long"]).await {
            Err(ClientError::Call(error)) => expect(method, error.code(), code)?,
            other => return Err(format!("{method}: expected the client's own error, found {other:?}").into()),
        }
    }
    Ok(())
}
