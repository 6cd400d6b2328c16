//! Servers of others: how each is started for a comparison, with one thread or process and nothing switched on that a
//! `ping` doesn't need.
//!
//! A server that this machine doesn't have is `None`, with a note about it.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tine::BoxError;

use super::cores::{Cores, Place};
use super::process::{Owned, await_line};
use super::service::Folder;

/// What nginx answers to a `GET` in the place of a native `ping`.
pub const NGINX_BODY: &str = r#"{"out":"pong","result":"ireader 0"}"#;

/// A server that listens. Its process is the one that serves.
#[derive(Debug)]
pub struct Peer {
    pub process: Owned,
    pub address: String,
}

/// The folder of servers that come with the benches.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join("peers")
}

/// A port for a server that can't be told to take any: free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts a program; None, and a note, where it is not installed.
fn start(
    command: &mut Command,
    install: &str,
    cores: &Cores,
    place: Place,
) -> Result<Option<Owned>, BoxError> {
    let program = command.get_program().display().to_string();
    let child = cores.at(place, || command.stdin(Stdio::null()).spawn())?;
    match child {
        Ok(child) => Ok(Some(Owned { child })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("{program} is not installed ({install}): left out");
            Ok(None)
        }
        Err(error) => Err(format!("{program}: {error}").into()),
    }
}

/// Redis that keeps everything in memory.
pub fn redis(cores: &Cores, place: Place) -> Result<Option<Peer>, BoxError> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::piped());
    let Some(mut process) = start(&mut command, "apt: redis-server", cores, place)? else { return Ok(None) };
    let output = process.child.stdout.take().ok_or("standard output is a pipe")?;
    await_line(output, "Ready to accept connections")?;
    Ok(Some(Peer { process, address: format!("127.0.0.1:{port}") }))
}

/// nginx with one process that answers every request with this JSON.
pub fn nginx(body: &str, cores: &Cores, place: Place) -> Result<Option<(Peer, Folder)>, BoxError> {
    let (folder, port) = (Folder::new()?, free_port()?);
    let at = folder.path().display();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log stderr notice;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log off;\n  keepalive_requests 1000000000;\n  default_type application/json;\n\
           client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/fastcgi;\n\
           uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n\
           server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{body}'; }} }}\n\
         }}\n"
    );
    let path = folder.path().join("nginx.conf");
    fs::write(&path, config)?;
    let mut command = Command::new("nginx");
    command
        .arg("-e")
        .arg("stderr")
        .arg("-p")
        .arg(folder.path())
        .arg("-c")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let Some(mut process) = start(&mut command, "apt: nginx-light", cores, place)? else { return Ok(None) };
    let log = process.child.stderr.take().ok_or("standard error is a pipe")?;
    // It listens before it says so.
    await_line(log, "using the \"epoll\" event method")?;
    Ok(Some((Peer { process, address: format!("127.0.0.1:{port}") }, folder)))
}

/// The pre-fork server in plain Python, with this many workers.
pub fn prefork(workers: usize, cores: &Cores, place: Place) -> Result<Option<Peer>, BoxError> {
    let mut command = Command::new("python3");
    command.arg(folder().join("prefork.py")).arg(workers.to_string()).stdout(Stdio::piped());
    let process = start(&mut command, "apt: python3", cores, place)?;
    process.map(with_address).transpose()
}

/// A server of the crate with Rust servers, whose program [`rust_peers`] finds.
pub fn rust(program: &Path, name: &str, cores: &Cores, place: Place) -> Result<Option<Peer>, BoxError> {
    let mut command = Command::new(program);
    command.arg(name).stdout(Stdio::piped());
    let process = start(&mut command, "--build-peers builds it", cores, place)?;
    process.map(with_address).transpose()
}

/// For a server that prints where it listens.
fn with_address(mut process: Owned) -> Result<Peer, BoxError> {
    let output = process.child.stdout.take().ok_or("standard output is a pipe")?;
    let address = await_line(output, "127.0.0.1:")?;
    Ok(Peer { process, address })
}

/// The program of the crate with Rust servers, built if that is asked for; None, and a note, where there is none.
pub fn rust_peers(build: bool) -> Result<Option<PathBuf>, BoxError> {
    let target = super::target_folder()?.join("peers");
    let program = target.join("release").join("tine-peers");
    if build {
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--release", "--quiet", "--locked", "--manifest-path"]);
        command.arg(folder().join("rust").join("Cargo.toml")).arg("--target-dir").arg(&target);
        // Cargo has told this process how to build another crate.
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_cargo(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        if !command.status().is_ok_and(|built| built.success()) {
            eprintln!("the crate benches/peers/rust can't be built here (it needs crates.io): left out");
            return Ok(None);
        }
    }
    if !program.exists() {
        eprintln!("the crate benches/peers/rust is not built: left out; --build-peers builds it");
        return Ok(None);
    }
    Ok(Some(program))
}

/// True for what cargo sets for one package; where cargo itself lives and whether it may use the network stays.
fn is_of_cargo(variable: &str) -> bool {
    variable.starts_with("CARGO_PKG_")
        || variable.starts_with("CARGO_BIN_EXE_")
        || ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_CRATE_NAME"].contains(&variable)
}
