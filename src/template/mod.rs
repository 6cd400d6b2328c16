//! The template: one process for each generation, from which workers are forked.
//!
//! The supervisor executes the program anew for it, so that user code and its libraries stay out of the
//! supervisor. It reads the configuration it is given, runs `preload`, and from then on only forks. It has one
//! thread whenever it forks: anything else could leave a lock held for ever in the child.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::channel::{self, Channel, FromTemplate, Received, ToTemplate};
use crate::config::{self, Config, Overrides, Source};
use crate::rpc::Service;
use crate::sys::descriptors;
use crate::sys::limits;
use crate::sys::process::{self, Forked};
use crate::sys::signals;
use crate::sys::title;
use crate::worker::{self, Birth};

/// What the intermediate process of a fork tells the template by its exit code.
const WORKER_FORKED: i32 = 0;

/// The template that this process is, if it was started as one.
#[derive(Debug)]
pub(crate) struct Template {
    channel: Channel,
    generation: u32,
    config: Config,
}

/// A template's first message, before it has understood it.
struct Beginning {
    generation: u32,
    source: Source,
}

/// Takes the channel that a supervisor left for this process. Call it before any thread is started.
pub(crate) fn inherited_channel() -> Option<io::Result<Channel>> {
    let channel = crate::sys::exec::take_inherited(channel::TEMPLATE_VARIABLE)?;
    // Out of the way of what `preload` opens.
    Some(channel.map(|channel| Channel::from(descriptors::control(channel))))
}

/// Runs the template to its end; the result is its exit code.
pub(crate) fn run(mut channel: Channel, overrides: &Overrides, service: Service) -> i32 {
    // What `ps` shows. It is a help to people only, so a failure is no failure.
    let _ = nix::sys::prctl::set_name(c"tine-template");
    match begin(&mut channel, overrides, &service) {
        Ok((generation, config)) => {
            let template = Template { channel, generation, config };
            template.serve(service)
        }
        Err(reason) => {
            // Where the supervisor is gone nobody is left to tell.
            let _ = channel.send(&FromTemplate::Failed { reason }, Vec::new());
            1
        }
    }
}

/// Everything up to readiness.
fn begin(channel: &mut Channel, overrides: &Overrides, service: &Service) -> Result<(u32, Config), String> {
    // Before user code, which may have a use for one of them.
    signals::ignore_what_is_for_the_supervisor().map_err(|error| format!("signals: {error}"))?;
    signals::write_errors_only().map_err(|error| format!("signals: {error}"))?;
    let beginning = receive_beginning(channel)?;
    // A help to people only, so a failure is no failure.
    let _ = title::set(&format!("tine: template gen {} ({})", beginning.generation, service.about().title));
    let config = config::check(&beginning.source, overrides).map_err(|error| error.to_string())?;
    config::check_methods(&beginning.source, &service.method_names()).map_err(|error| error.to_string())?;
    service.preload().map_err(|error| format!("the template can't start: {error}"))?;
    one_thread_only()?;
    // A library that ignores SIGCHLD would have every fork look as if it had failed.
    process::keep_exit_statuses().map_err(|error| format!("SIGCHLD: {error}"))?;
    let methods = service.method_names();
    let checked = serde_json::to_value(&config).map_err(|error| format!("the configuration: {error}"))?;
    let (version, handoff) = (channel::VERSION, channel::HANDOFF_VERSION);
    let warnings = config::warnings(&beginning.source, &config);
    let ready = FromTemplate::Ready { version, methods, config: checked, handoff, warnings };
    channel
        .send(&ready, Vec::new())
        .map_err(|error| format!("the supervisor can't be told that the template is ready: {error}"))?;
    Ok((beginning.generation, config))
}

fn receive_beginning(channel: &mut Channel) -> Result<Beginning, String> {
    let (message, descriptors) = match receive(channel) {
        Ok(Some(received)) => received,
        Ok(None) => return Err("the supervisor is gone".into()),
        Err(error) => return Err(format!("the template's first message is not understood: {error}")),
    };
    let ToTemplate::Begin { version, generation, source: name, descriptors: limit } = message else {
        return Err(format!("expected the message that begins a template, found {message:?}"));
    };
    if version != channel::VERSION {
        return Err(format!("expected messages of version {}, found {version}", channel::VERSION));
    }
    if let Some(limit) = limit {
        limits::was_started_with(limit);
        limits::restore_in_forks().map_err(|error| format!("a hook for children: {error}"))?;
    }
    let mut text = String::new();
    let config = descriptors.into_iter().next().ok_or("the configuration is missing")?;
    let mut config = File::from(config);
    config
        .rewind()
        .and_then(|()| config.read_to_string(&mut text))
        .map_err(|error| format!("the configuration can't be read: {error}"))?;
    Ok(Beginning { generation, source: Source { name, text } })
}

/// The next message; None when the supervisor is gone.
fn receive(channel: &mut Channel) -> io::Result<Option<(ToTemplate, Vec<OwnedFd>)>> {
    loop {
        match channel.receive()? {
            Received::Message(message, descriptors) => return Ok(Some((message, descriptors))),
            Received::Closed => return Ok(None),
            Received::Nothing => {
                let mut wanted = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
                match poll(&mut wanted, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
    }
}

fn one_thread_only() -> Result<(), String> {
    let threads = process::thread_count().map_err(|error| format!("threads can't be counted: {error}"))?;
    if threads == 1 {
        return Ok(());
    }
    let names = process::thread_names().join(", ");
    Err(format!(
        "preload must leave one thread, found {threads} ({names}): a lock that another thread holds at the fork \
         would stay held for ever in every worker; start threads in on_worker_start instead"
    ))
}

impl Template {
    /// Forks a worker for every request until the supervisor is gone.
    fn serve(mut self, service: Service) -> i32 {
        loop {
            match receive(&mut self.channel) {
                Ok(None) => return 0,
                Ok(Some((
                    ToTemplate::Fork { worker, slot, may_keep, doors_shut, quarantine, region },
                    descriptors,
                ))) => {
                    match fork_twice() {
                        Ok(Grandchild::Here) => {
                            let generation = self.generation;
                            let birth = Birth {
                                slot,
                                generation,
                                may_keep,
                                doors_shut,
                                quarantine,
                                region,
                                descriptors,
                            };
                            // The template's own channel goes with it: a worker has no business on it.
                            drop(self.channel);
                            worker::run(service, self.config, birth)
                        }
                        Ok(Grandchild::Elsewhere) => {}
                        Err(error) => {
                            let reason = error.to_string();
                            if self
                                .channel
                                .send(&FromTemplate::ForkFailed { worker, reason }, Vec::new())
                                .is_err()
                            {
                                return 0;
                            }
                        }
                    }
                }
                // The kernel refuses to let us listen, and would do so without end; the supervisor starts another.
                Err(error) if error.raw_os_error().is_some() => return 1,
                // A second beginning, or a message of a later version: not ours to act on.
                Ok(Some((ToTemplate::Begin { .. }, _))) | Err(_) => {}
            }
        }
    }
}

enum Grandchild {
    /// We are it.
    Here,
    /// We are the template.
    Elsewhere,
}

/// Forks a child that forks the worker and ends at once, so that the worker's parent becomes the supervisor, as
/// the nearest subreaper, and it alone reaps it. Each worker has a session of its own, which it doesn't lead, together with
/// what its handlers start: a terminal's signals are for the supervisor alone, and a terminal that a handler opens does not
/// become the worker's own.
fn fork_twice() -> io::Result<Grandchild> {
    match process::fork()? {
        Forked::Parent { child } => forked_by(child),
        Forked::Child => match nix::unistd::setsid().map_err(io::Error::from).and_then(|_| process::fork()) {
            Ok(Forked::Child) => Ok(Grandchild::Here),
            Ok(Forked::Parent { .. }) => process::exit_now(WORKER_FORKED),
            // An errno of Linux fits an exit code.
            Err(error) => process::exit_now(error.raw_os_error().unwrap_or(nix::libc::EAGAIN)),
        },
    }
}

fn forked_by(child: Pid) -> io::Result<Grandchild> {
    loop {
        match waitpid(child, None) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(WaitStatus::Exited(_, WORKER_FORKED)) => return Ok(Grandchild::Elsewhere),
            Ok(WaitStatus::Exited(_, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(_) => return Err(io::Error::other("the process that forks a worker was killed")),
        }
    }
}
