//! A pre-fork echo server from the primitive alone: one listener, one process for each CPU, blocking reads.
//!
//!     cargo run --example fork_processes -- 127.0.0.1:8090
//!     nc 127.0.0.1 8090          # in another terminal; the line `crash` ends the child that reads it
//!
//! A child that crashes is restarted with its task id, and its neighbours never notice. Ctrl-C ends all.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::{env, io, process};

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8090".to_owned());
    // Before the fork: all children accept from the same listener.
    let listener =
        TcpListener::bind(&address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("listening on {}", listener.local_addr()?);

    let task_id = tine::ForkProcesses::new(0)
        .max_restarts(tine::DEFAULT_MAX_RESTARTS)
        // Without this, children would draw the same random numbers if the parent had drawn any.
        .after_fork(|_task_id| rand::rng().reseed().expect("the system has random bytes"))
        .run()?;

    // From here on this is a child; the parent stays in `run`.
    println!("child {task_id} has pid {}", process::id());
    for connection in listener.incoming() {
        if let Err(error) = echo(task_id, connection?) {
            eprintln!("child {task_id}: {error}");
        }
    }
    Ok(())
}

fn echo(task_id: usize, mut connection: TcpStream) -> io::Result<()> {
    let lines = BufReader::new(connection.try_clone()?).lines();
    for line in lines {
        let line = line?;
        if line == "crash" {
            process::abort();
        }
        writeln!(connection, "child {task_id}, lucky number {}: {line}", rand::random_range(1..=99))?;
    }
    Ok(())
}
